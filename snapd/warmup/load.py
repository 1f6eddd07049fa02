"""`load_cold`: bring cold blocks into the store's memory, verified, whoever asked for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from snapd.attach.port import I32, Sink
from snapd.attach.session import Session
from snapd.blocks.keys import I64, U64
from snapd.blocks.table import U32
from snapd.errors import DiskError
from snapd.repository import Repository
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
    """The disk failed: still cold, and on disk as before."""
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

    Raises StoreUnavailableError when the store does not answer.
    """
    slots, sequences, rows = wanted
    fill = sink.reserve(slots, sequences, repository.catalog.column("size", rows), demand=demand)
    given = np.flatnonzero(fill.codes == ReturnCode.OK)
    codes: I32 = fill.codes.copy()
    error: DiskError | None = None
    if len(given):
        try:
            good = repository.read(rows[given], [fill.buffers[at] for at in given.tolist()])
            codes[given[~good]] = ReturnCode.INVALID_READ
        except DiskError as caught:
            error = caught
            codes[given] = ReturnCode.TRANSFER_FAIL
    residency = session.residency
    with residency.lock:
        result = sink.publish(fill, codes)
        published = given[(result[given] == ReturnCode.OK) & (codes[given] == ReturnCode.OK)]
        bad = given[codes[given] == ReturnCode.INVALID_READ]
        # What was superseded stays on the books: the next scan finds it gone, and its row dies.
        residency.forget(slots[np.concatenate([published, bad])].astype(np.int64))
        residency.settle(
            fill.slots[published], fill.sequences[published], rows[published], cold=False
        )
    if len(bad):
        repository.reject(rows[bad])
    gone = int((fill.codes == ReturnCode.OBJECT_NOT_FOUND).sum())
    return LoadResult(
        loaded=len(published),
        loaded_bytes=int(repository.catalog.column("size", rows[published]).sum()),
        superseded=gone + (len(given) - len(published) - len(bad) if error is None else 0),
        rejected=len(bad),
        no_space=int((fill.codes == ReturnCode.NO_AVAILABLE_HANDLE).sum()),
        failed=len(given) if error is not None else 0,
        error=error,
    )
