"""`load_cold`: bring cold blocks into the store's memory, verified, whoever asked for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import xxhash

from snapd.attach.port import I32, Fill, Sink
from snapd.attach.session import Session
from snapd.blocks.keys import I64, U64, Bools
from snapd.blocks.table import U32
from snapd.errors import DiskError
from snapd.repository import Catalog, Repository, RowState
from snapd.wire.codes import ReturnCode


class LoadObserver(Protocol):
    """Who counts; see `snapd.metrics.Metrics`."""

    def warmup_loaded(self, result: str, blocks: int, bytes_moved: int) -> None:
        """Blocks that the background warm-up dealt with, and the bytes that it put back."""

    def demand_loaded(self, result: str, blocks: int, bytes_moved: int) -> None:
        """Blocks that a reader waited for, and the bytes that were put back."""

    def quarantined(self, reason: str, blocks: int) -> None:
        """Blocks that failed verification."""

    def warmup_progress(self, ratio: float) -> None:
        """Share of the blocks to warm up that were dealt with."""

    def warmup_done(self, seconds: float) -> None:
        """The background warm-up ended."""


@dataclass(frozen=True, slots=True)
class LoadResult:
    """Blocks by what became of them."""

    loaded: int = 0
    """Read from the disk and published."""
    loaded_bytes: int = 0
    from_memory: int = 0
    """Published as a life before had left them in memory; nothing was read from the disk."""
    from_memory_bytes: int = 0
    superseded: int = 0
    """Removed or replaced while they were read: the store kept what is newer."""
    rejected: int = 0
    """Not what their checksum says; never served."""
    no_space: int = 0
    failed: int = 0
    """The disk failed, or the block was copied and its pack deleted while it was read: still cold,
    and on disk."""
    waiting: I64 = field(default_factory=lambda: np.zeros(0, np.int64))
    """Positions, int64, of those that the store cannot take yet: still cold, and on disk."""
    error: DiskError | None = None

    def counts(self) -> list[tuple[str, int, int]]:
        """What there is to count: what became of blocks, how many, and the bytes put back."""
        moved = {"loaded": self.loaded_bytes, "from_memory": self.from_memory_bytes}
        names = ("loaded", "from_memory", "superseded", "rejected", "no_space", "failed")
        counts = [(name, int(getattr(self, name)), moved.get(name, 0)) for name in names]
        return [each for each in counts if each[1]]


def load_cold(
    session: Session,
    sink: Sink,
    repository: Repository,
    wanted: tuple[U32, U64, I64],
    *,
    demand: bool,
) -> LoadResult:
    """Load the cold blocks in these (slots, sequences) that hold these catalog rows.

    A block is published only if it was read whole and has its checksum, and only if its slot is
    still cold and of that version: the store decides that when the fill ends. A death in between
    leaves reserved space, which the store takes back with the writer's lock. Where a life before
    has left bytes in the buffers, those that have the block's checksum are taken as they are.

    The rows may be from long ago: compaction may have copied the blocks since, and the packs that
    they were in may be gone. A block counts as bad only if it cannot be read from its newest copy.

    Raises StoreUnavailableError when the store does not answer.
    """
    slots, sequences, rows = wanted
    residency, catalog = session.residency, repository.catalog
    with residency.lock:
        # Slots go over to a copy in the step that makes it.
        rows = np.where((held := residency.rows_of(slots, sequences)) >= 0, held, rows)
        sizes = catalog.column("size", rows)
    fill = sink.reserve(slots, sequences, sizes, demand=demand)
    given = np.flatnonzero(fill.codes == ReturnCode.OK)
    codes, from_memory = _check_held(fill, sizes, catalog.column("checksum", rows))
    wanting = np.flatnonzero((codes == ReturnCode.OK) & ~from_memory)
    error: DiskError | None = None
    if len(wanting):
        try:
            buffers = [fill.buffers[at] for at in wanting.tolist()]
            good, rows[wanting] = repository.read_newest(rows[wanting], buffers)
            codes[wanting[~good]] = ReturnCode.INVALID_READ
        except DiskError as caught:
            error = caught
            codes[wanting] = ReturnCode.TRANSFER_FAIL
    with residency.lock:
        newest, known = _newest(session, catalog, wanted, rows)
        # Where it is by now nobody has looked: it stays cold, and on disk.
        codes[(codes == ReturnCode.INVALID_READ) & ~known] = ReturnCode.TRANSFER_FAIL
        result = sink.publish(fill, codes)
        published = given[(result[given] == ReturnCode.OK) & (codes[given] == ReturnCode.OK)]
        bad = given[codes[given] == ReturnCode.INVALID_READ]
        # What was superseded stays on the books: the next scan finds it gone, and its row dies.
        residency.forget(slots[np.concatenate([published, bad])].astype(np.int64))
        residency.settle(
            fill.slots[published], fill.sequences[published], newest[published], cold=False
        )
        # What died while it was read may have lost its pack: that is no damage.
        state = catalog.state_of(rows[bad])
        damaged = rows[bad[(state == RowState.LIVE) | (state == RowState.EVICTED)]]
    if len(damaged):
        repository.reject(damaged)
    outcome = np.where(codes == ReturnCode.OK, result, codes)
    return _count(sizes, outcome, from_memory, damaged=len(damaged), error=error)


def _count(
    sizes: U64, outcome: I32, from_memory: Bools, *, damaged: int, error: DiskError | None
) -> LoadResult:
    """What became of n blocks, each counted once; `outcome` int32 [n] is 0 where published."""
    published = outcome == ReturnCode.OK
    read, kept = published & ~from_memory, published & from_memory
    waiting = np.flatnonzero(outcome == ReturnCode.REPLICA_IS_NOT_READY)
    no_space = int((outcome == ReturnCode.NO_AVAILABLE_HANDLE).sum())
    failed = int((outcome == ReturnCode.TRANSFER_FAIL).sum())
    others = int(published.sum()) + damaged + no_space + failed + len(waiting)
    return LoadResult(
        loaded=int(read.sum()),
        loaded_bytes=int(sizes[read].sum()),
        from_memory=int(kept.sum()),
        from_memory_bytes=int(sizes[kept].sum()),
        superseded=len(sizes) - others,
        rejected=damaged,
        no_space=no_space,
        failed=failed,
        waiting=waiting,
        error=error,
    )


def _check_held(fill: Fill, sizes: U64, checksums: U64) -> tuple[I32, Bools]:
    """The codes of a fill, int32 [n], and which buffers hold their block's bytes already, bool [n].

    Other bytes under `held_only` are what came after the block: nobody knows what, so it is dropped
    rather than brought back (OBJECT_NOT_FOUND). All else that does not match is read from the disk.
    """
    codes: I32 = fill.codes.copy()
    good: Bools = np.zeros(len(codes), np.bool_)
    if fill.held is None:
        return codes, good
    digest = xxhash.xxh3_64_intdigest
    for at in np.flatnonzero(fill.held & (codes == ReturnCode.OK)).tolist():
        good[at] = digest(fill.buffers[at][: int(sizes[at])]) == int(checksums[at])
    if fill.held_only is not None:
        codes[fill.held & fill.held_only & ~good & (codes == ReturnCode.OK)] = (
            ReturnCode.OBJECT_NOT_FOUND
        )
    return codes, good


def _newest(
    session: Session, catalog: Catalog, wanted: tuple[U32, U64, I64], rows: I64
) -> tuple[I64, Bools]:
    """Where the blocks that were read from `rows` are by now, int64 [n], and whether that is known
    to be where they were read, bool [n]. The caller holds the residency's lock."""
    slots, sequences, _ = wanted
    held = session.residency.rows_of(slots, sequences)
    newest = np.where(held >= 0, held, rows)
    stale = np.flatnonzero(~catalog.is_live(newest))
    newest[stale] = catalog.newest_copies(newest[stale])
    known = newest == rows
    # Of a row without a slot that is gone from memory, not even the key is known any more.
    known[stale] &= (held[stale] >= 0) | (catalog.column("size", rows[stale]) > 0)
    return newest, known
