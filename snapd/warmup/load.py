"""`load_cold`: bring cold blocks into the store's memory, verified, whoever asked for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from snapd.attach.port import I32, Sink
from snapd.attach.session import Session
from snapd.blocks.keys import I64, U64, Bools
from snapd.blocks.table import U32
from snapd.errors import DiskError
from snapd.repository import Catalog, Repository, RowState
from snapd.wire.codes import ReturnCode


class LoadObserver(Protocol):
    """Who counts; see `snapd.metrics.Metrics`."""

    def warmup_loaded(self, result: str, blocks: int, bytes_read: int) -> None:
        """Blocks that the background warm-up dealt with."""

    def demand_loaded(self, result: str, blocks: int, bytes_read: int) -> None:
        """Blocks that a reader waited for."""

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
    loaded_bytes: int = 0
    superseded: int = 0
    """Removed or replaced while they were read: the store kept what is newer."""
    rejected: int = 0
    """Not what their checksum says; never served."""
    no_space: int = 0
    failed: int = 0
    """The disk failed, or the block was copied and its pack deleted while it was read: still cold,
    and on disk."""
    error: DiskError | None = None


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
    leaves reserved space, which the store takes back with the writer's lock.

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
    codes: I32 = fill.codes.copy()
    error: DiskError | None = None
    if len(given):
        try:
            buffers = [fill.buffers[at] for at in given.tolist()]
            good, rows[given] = repository.read_newest(rows[given], buffers)
            codes[given[~good]] = ReturnCode.INVALID_READ
        except DiskError as caught:
            error = caught
            codes[given] = ReturnCode.TRANSFER_FAIL
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
    gone = int((fill.codes == ReturnCode.OBJECT_NOT_FOUND).sum())
    failed = int((codes[given] == ReturnCode.TRANSFER_FAIL).sum())
    return LoadResult(
        loaded=len(published),
        loaded_bytes=int(sizes[published].sum()),
        superseded=gone + len(given) - len(published) - len(damaged) - failed,
        rejected=len(damaged),
        no_space=int((fill.codes == ReturnCode.NO_AVAILABLE_HANDLE).sum()),
        failed=failed,
        error=error,
    )


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
