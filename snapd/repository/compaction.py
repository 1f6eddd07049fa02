"""`Compaction`: the live blocks of packs that are mostly dead, copied into new packs.

A copy is the same version of its key, byte for byte, in another place. Which packs are worth it is
decided elsewhere (`snapd.plans.space`); deleting what is left of them is the pruner's, by its own
rules, so a retained manifest that names an emptied pack keeps it until that manifest goes.

Crash argument. A power cut

- before a new pack's rename leaves a temporary file, which recovery removes: nothing was moved;
- after it leaves two packs that hold the same versions. Recovery takes both in. The newest manifest
  still has the old row live; the new pack is above its floor, so the copy inherits that and takes
  over. Whatever had removed or superseded the version is known as before, because it names key and
  version and not the place; the old pack and all it says about others is still there;
- after the next manifest: that names the copy, and the old pack only as long as others of its rows
  live. The generation before names the old pack, which is there until that generation goes;
- while the emptied packs are deleted: what they alone say about others is in the journal first.

A failed write or sync fails one new pack; the catalog still points to the old ones.

What happens to a block while it is copied wins over the copy. The catalog gives a copy the state of
the version it copies, whatever that is when the new pack is adopted. And since a pack with the
removal may come and go while this one is open, `Intake` says in the new pack's own index what was
removed or superseded since it was begun: a rebuild from packs alone revives nothing either.

Evicted blocks are not copied: nobody is promised them. What only their rows said, namely that older
versions in other packs are superseded, the pruner carries into the journal before their pack goes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from typing_extensions import Buffer

from snapd.blocks.keys import I64, Bools
from snapd.formats.pack import padded_sizes
from snapd.formats.sealed import padded
from snapd.plans import windows
from snapd.repository.files import aligned_buffer
from snapd.repository.state import RepositoryState
from snapd.repository.writer import PackWriter

WINDOW_BYTES_MAX = 16 * 2**20
"""Bytes of blocks in private memory at a time. Decoding and encoding may need as much again each,
so that all of it stays under 64 MiB. A block that is longer is a window of its own."""
_WINDOW_BLOCKS_MAX = 4096

Moved = Callable[[I64, I64], None]
"""moved(old, new): the blocks of these catalog rows, int64 [n] each, are at those rows now."""
Adopting = Callable[[], AbstractContextManager[Moved]]
"""Entered around the step in which copies take over in the catalog, which does no I/O. Whoever
keeps row numbers holds its own lock from entry to exit and goes over to the new ones when told."""


@dataclass(slots=True)
class CompactionResult:
    """What a compaction did."""

    packs: int = 0
    """Packs that were gone through to the end: none of their blocks is live any more."""
    packs_written: int = 0
    copied: int = 0
    """Blocks that live in the new packs."""
    copied_bytes: int = 0
    """Their sizes added up."""
    read_bytes: int = 0
    written_bytes: int = 0
    """Lengths of the new packs."""
    died: int = 0
    """Blocks that left the live set while they were copied."""
    rejected: int = 0
    """Blocks that are not what their checksum says: in quarantine, and never copied."""
    complete: bool = True
    """False if it was stopped; what was sealed by then is moved, the rest is where it was."""


class Blocks(Protocol):
    """What a compaction needs of the repository's blocks; see `BlockAccess`."""

    def read(self, rows: I64, buffers: Sequence[Buffer]) -> tuple[Bools, I64]:
        """Fill the buffers; which are good, bool [n], and from where. Raises DiskError."""

    def reject(self, rows: I64) -> int:
        """Take bad rows out of the live set."""


@contextmanager
def nobody() -> Iterator[Moved]:
    """`Adopting` where nobody keeps row numbers."""
    yield lambda old, new: None


def unpaced(amount: int) -> None:
    """As fast as the disk is."""


def never() -> bool:
    """Nobody stops it."""
    return False


class Compaction:
    """One compaction, on the calling thread. The repository goes on with everything else."""

    def __init__(
        self,
        state: RepositoryState,
        blocks: Blocks,
        begin_pack: Callable[[], PackWriter],
        *,
        pack_bytes_max: int,
        pace: Callable[[int], None],
        adopting: Adopting,
        stop: Callable[[], bool],
    ) -> None:
        self._state = state
        # A pack is sealed between two windows: under a small budget packs are small.
        self._window_bytes_max = min(WINDOW_BYTES_MAX, pack_bytes_max)
        self._blocks = blocks
        self._begin_pack = begin_pack
        self._pace = pace
        self._adopting = adopting
        self._stop = stop
        self._memory = memoryview(b"")
        self._writer: PackWriter | None = None
        self._rows: list[I64] = []
        """Old rows of all that the open pack was given, in order."""
        self.result = CompactionResult()

    def run(self, packs: Collection[int]) -> CompactionResult:
        """Copy what is live in these packs, by sequence; those that are not there are passed over.

        Raises DiskError or CorruptError; packs sealed by then count, and trying again is right.
        """
        try:
            for sequence in packs:
                if not self._copy_pack(sequence):
                    self.result.complete = False
                    return self.result
                self.result.packs += 1
            self._seal()
            return self.result
        finally:
            if self._writer is not None:
                self._writer.abort()

    def _copy_pack(self, sequence: int) -> bool:
        """Append the live blocks of one pack, in the order of their places; False to stop."""
        catalog = self._state.catalog
        with catalog.lock:
            pack = self._state.packs.get(sequence)
            if pack is None:
                return True
            rows = np.flatnonzero(catalog.is_live(pack.rows)) + pack.rows.start
            rows = rows[np.argsort(catalog.column("pack_offset", rows), kind="stable")]
            size = padded_sizes(catalog.column("size", rows))
        for piece in windows(
            np.arange(len(rows)),
            size,
            bytes_max=self._window_bytes_max,
            blocks_max=_WINDOW_BLOCKS_MAX,
        ):
            if self._stop():
                return False
            self._copy(rows[piece])
        return True

    def _copy(self, rows: I64) -> None:
        """Read one window, verified, and append what is good."""
        catalog = self._state.catalog
        rows = rows[catalog.is_live(rows)]
        if not len(rows):
            return
        table = catalog.take(rows)
        stored = int(padded_sizes(table.stored_size).sum())
        # Read once, written once.
        self._pace(2 * stored)
        buffers = self._buffers(table.size.tolist())
        good, _ = self._blocks.read(rows, buffers)
        self.result.read_bytes += stored
        if not good.all():
            self._reject(rows[~good])
            kept = np.flatnonzero(good)
            rows, table = rows[kept], table.take(kept)
            buffers = [buffers[at] for at in kept.tolist()]
        if not len(rows):
            return
        if self._writer is None:
            self._writer = self._begin_pack()
        self._writer.append(table, buffers)
        self._rows.append(rows)
        if self._writer.full:
            self._seal()

    def _reject(self, rows: I64) -> None:
        """What is live and cannot be read is bad. What died meanwhile may have lost its pack."""
        bad = rows[self._state.catalog.is_live(rows)]
        self.result.died += len(rows) - len(bad)
        self.result.rejected += len(bad)
        if len(bad):
            self._blocks.reject(bad)

    def _seal(self) -> None:
        """Make the open pack durable; from then on its rows are the live ones."""
        if self._writer is None:
            return
        writer, old = self._writer, np.concatenate(self._rows)
        self._writer, self._rows = None, []
        try:
            # What has died since it was appended needs no place in the index.
            writer.drop(np.flatnonzero(~self._state.catalog.is_live(old)))
            new = writer.seal(adopting=lambda: self._adopt(old))
        finally:
            writer.abort()
        live = self._state.catalog.is_live(new)
        if (new >= 0).any():
            self.result.packs_written += 1
            self.result.written_bytes += writer.bytes_written
        self.result.copied += int(live.sum())
        self.result.copied_bytes += int(self._state.catalog.column("size", new[live]).sum())
        self.result.died += int((~live).sum())

    @contextmanager
    def _adopt(self, old: I64) -> Iterator[Callable[[I64], None]]:
        """Let whoever keeps row numbers go over to the new ones in the step that makes them."""
        with self._adopting() as moved:

            def adopted(new: I64) -> None:
                catalog = self._state.catalog
                kept = new >= 0
                # Heat went on while the copy was made.
                catalog.set_heat(new[kept], catalog.column("heat", old[kept]))
                moved(old[kept], new[kept])

            yield adopted

    def _buffers(self, sizes: list[int]) -> list[memoryview]:
        """Aligned room for these blocks, the same memory each time."""
        lengths = [padded(size) for size in sizes]
        if sum(lengths) > self._memory.nbytes:
            self._memory = aligned_buffer(sum(lengths))
        buffers: list[memoryview] = []
        at = 0
        for length in lengths:
            buffers.append(self._memory[at : at + length])
            at += length
        return buffers
