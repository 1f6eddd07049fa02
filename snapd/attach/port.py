"""The attach port: what the workers need of a store, whichever it is.

A **source** lists blocks and gives their bytes; a **sink** takes blocks back. Both number blocks by
*slot*: the bundled store's are the records of its slot table, an adapter for another store keeps a
numbering of its own. A slot with its sequence names one version; the same pair never comes back
with other bytes. Each thread has a source or a sink of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

from snapd.blocks import BlockTable, KeyColumn
from snapd.blocks.keys import I64, U64, Bools
from snapd.blocks.table import F32, U32
from snapd.plans.residency import Residency
from snapd.wire.messages import StatsReply

I32 = npt.NDArray[np.int32]

PINNED_BYTES_MAX = 64 * 2**20
"""Most bytes that are pinned, or in a private buffer, at a time."""


@dataclass(frozen=True, slots=True)
class Scan:
    """One look at all slots: the sequence of what each holds, 0 where that is nothing."""

    sequence: U64
    """uint64 [slots]."""
    cold: Bools
    """bool [slots]: the slot holds a block that is on disk only."""
    boot_id: bytes
    """The life of the store that it was in, from its start to its end; empty if it was in two."""

    @classmethod
    def empty(cls) -> Self:
        """Of a store without slots."""
        return cls(np.zeros(0, np.uint64), np.zeros(0, np.bool_), b"")


@dataclass(frozen=True, slots=True)
class Registered:
    """Answer to a registration of n cold blocks."""

    codes: I32
    """`ReturnCode` of each, int32 [n]; 0 is registered."""
    slots: U32
    sequences: U64


@dataclass(frozen=True, slots=True)
class Fill:
    """Space for n cold blocks. Where the code is not 0 there is none, and the rest is 0."""

    cold_slots: U32
    cold_sequences: U64
    codes: I32
    slots: U32
    sequences: U64
    buffers: Sequence[memoryview]
    """Writable, padded to `DISK_ALIGNMENT` and aligned to it; empty where the code is not 0."""
    held: Bools | None = None
    """Buffers that hold bytes already, of a life before, which may be the block's: those that have
    its checksum need not be read from the disk. None: no buffer does."""
    held_only: Bools | None = None
    """Of those that are held, the ones whose other bytes would be what replaced the block after it
    was written to disk: where they do not have its checksum, it is not to come back. None: none."""


@dataclass(frozen=True, slots=True)
class Changes:
    """n things that happened to blocks in a store and that a scan cannot tell apart, as columns.

    For REMOVED the versions of the key before `sequences` are gone, for REMOVE_ALL those of epochs
    before `epochs`, for CORRUPT the version `slots`, `sequences` was dropped: its bytes were bad.
    """

    number: int
    """Acknowledge this when all of it is durable; until then it is given again."""
    kinds: npt.NDArray[np.uint8]
    """`EventKind` of each."""
    keys: KeyColumn
    slots: U32
    sequences: U64
    epochs: U32

    def __len__(self) -> int:
        return len(self.kinds)


class Feed(Protocol):
    """Tells what happened to blocks in a store."""

    def changes(self, ack: int, wait_ms: int) -> Changes:
        """What is not acknowledged yet, after `wait_ms` perhaps nothing. `ack` is the number of
        the last batch that is durable; who removed its blocks is answered then.

        Raises StoreUnavailableError when the store does not answer.
        """

    def close(self) -> None:
        """End the connection; idempotent."""


class Remover(Protocol):
    """Removes blocks from a store by key, on behalf of an operator. What was removed is in the feed
    like every other removal. Raises StoreUnavailableError when the store does not answer."""

    def remove(self, keys: KeyColumn) -> int:
        """Remove keys, resident or cold, whoever reads them; returns how many were there."""

    def remove_all(self) -> int:
        """Remove every key, whoever reads it; returns how many there were."""

    def close(self) -> None:
        """End the connection; idempotent."""


class Source(Protocol):
    """Lists a store's blocks and gives their bytes, without any effect on its eviction order.

    A store that died does not end a source: what it had mapped stays readable, and the answers of
    `still` and the checksums decide.
    """

    def refresh(self) -> None:
        """Have the next scan show everything that was put before this call, as far as the store
        answers. Never raises."""

    def scan(self) -> Scan:
        """What every slot holds now. Raises StoreUnavailableError where the store must be asked."""

    def describe(self, slots: I64) -> BlockTable:
        """The blocks in these slots, in order; a slot that is empty, dead or torn (being written,
        its record's checksum wrong) is left out. `incarnation` is 0 and `epoch` the store's own.
        """

    def heat(self, slots: I64) -> F32:
        """Heat of the blocks in these slots, float32 [n]; advisory."""

    def pinned(self, table: BlockTable) -> AbstractContextManager[Bools]:
        """Keep at most `PINNED_BYTES_MAX` bytes of blocks in place inside the `with`; which are
        held, bool [n]. Best effort: a store that does not answer holds nothing; nothing is raised.
        """

    def buffers(self, table: BlockTable) -> Sequence[memoryview]:
        """The bytes of each block, padded to `DISK_ALIGNMENT`; valid inside `pinned`."""

    def still(self, table: BlockTable) -> Bools:
        """Whether each slot still holds the version that the table describes, bool [n]. True after
        the bytes were used means that they were that version's throughout."""

    def report_corrupt(self, table: BlockTable) -> None:
        """Tell the store that these blocks do not have their checksum. Never raises."""

    def close(self) -> None:
        """End the connection; idempotent."""


class Sink(Protocol):
    """Takes blocks back into a store. Every method raises StoreUnavailableError when the store does
    not answer, and `SnapdError`s of the store that refused; nothing is half done then that
    `publish` would make visible."""

    def register_cold(self, table: BlockTable) -> Registered:
        """Make blocks known that are on disk only. A key that the store knows is refused with
        OBJECT_ALREADY_EXISTS, one that there is no room for with NO_AVAILABLE_HANDLE."""

    def cold_ready(self) -> None:
        """All cold blocks are registered: serve them."""

    def wanted(self, wait_ms: int) -> tuple[U32, U64]:
        """Slots and sequences of cold blocks that readers wait for; empty after `wait_ms`."""

    def reserve(self, slots: U32, sequences: U64, sizes: U64, *, demand: bool) -> Fill:
        """Space to load cold blocks into. `demand` may evict; without it NO_AVAILABLE_HANDLE says
        that the store is as full as a background load may make it. OBJECT_ALREADY_EXISTS says that
        something newer has the key, REPLICA_IS_NOT_READY to come again soon."""

    def publish(self, fill: Fill, codes: I32) -> I32:
        """Publish what was loaded: `codes` 0 where the bytes are in place and verified, else why
        not; OBJECT_NOT_FOUND where the block is not to come back. Returns int32 [n]: 0 where the
        block is now served; OBJECT_NOT_FOUND where the key was removed or replaced meanwhile;
        REPLICA_IS_NOT_READY where it is cold as before, and may be loaded again soon."""

    def drop_cold(self, slots: U32, sequences: U64) -> None:
        """Forget cold blocks; pairs that are no longer true are passed over."""

    def close(self) -> None:
        """End the connection; idempotent. Writes must have ended."""


class Offload(Protocol):
    """Tells a store which resident blocks are on disk, so that they stay readable when they are
    evicted. Both raise StoreUnavailableError when the store does not answer; what they did by then
    may be told again."""

    def keep(self, slots: I64, sequences: U64, epoch: int) -> Bools:
        """These blocks are durable and live; which the store still has, bool [n]. `epoch`: the
        remove-alls of the store that the caller knew of when he found that out."""

    def drop(self, slots: I64, sequences: U64) -> None:
        """These are not any more: whichever of them are on disk only are forgotten."""

    def close(self) -> None:
        """End the connection; idempotent."""


class AttachedStore(Protocol):
    """One life of a store that the daemon is attached to."""

    @property
    def segment_id(self) -> bytes:
        """The incarnation of its blocks, 16 bytes."""

    @property
    def boot_id(self) -> bytes:
        """This life of its process, 16 bytes."""

    @property
    def epoch(self) -> int:
        """Remove-alls in the segment's life when this daemon attached."""

    @property
    def version(self) -> str:
        """What the store calls itself."""

    @property
    def serves_cold(self) -> bool:
        """Whether readers get cold blocks, too: else they are misses until they are put back."""

    @property
    def open_remover(self) -> Callable[[], Remover] | None:
        """Opens a remover for the calling thread; None: this store has none."""

    @property
    def open_offload(self) -> Callable[[], Offload] | None:
        """Opens an `Offload` for the calling thread; None: what this store evicts is a miss."""

    def begin(self, residency: Residency | None) -> Residency:
        """What the life before still held is written, or lost: this one begins. Returns what is
        known of its slots: `residency` where that was the same segment's. Called once."""

    def source(self) -> Source:
        """A source for the calling thread. Never raises."""

    def sink(self) -> Sink:
        """A sink for the calling thread. Raises StoreUnavailableError."""

    def feed(self) -> Feed:
        """A feed for the calling thread. Raises StoreUnavailableError."""

    def stats(self) -> StatsReply:
        """Counters and gauges; raises StoreUnavailableError when this life is over."""

    def leave(self, successor: AttachedStore) -> bool:
        """`successor` has everything that this one had: give its memory back, unless somebody may
        still write into it; says whether."""

    def close(self) -> None:
        """End the connection of the thread that attached. What is mapped stays so."""


class Connector(Protocol):
    """Attaches to whichever store there is, life after life."""

    def attach(self, previous: AttachedStore | None) -> AttachedStore:
        """The store's present life; `previous` is the one before.

        Raises StoreUnavailableError when nobody answers, SnapdError when the store refuses.
        """
