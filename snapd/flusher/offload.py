"""`Offloader`: keeps the store told of which resident blocks are on disk: the SSD tier.

A block that the store has been told of becomes cold when it is evicted, in the same slot and under
the same sequence: to the residency nothing has left, and a load finds the row that it always had.
So all that is needed here is to bring the store's idea of what is durable up to date, and to take
back what is not any more.

Crash argument: what the store was told is worth as much as the daemon's catalog, and both last as
long as this process. The next daemon begins with nothing told, and registers what it finds on disk;
cold slots that it does not register are dropped. So a block is never served on the word of a daemon
whose packs were lost.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from snapd.attach.port import Offload
from snapd.attach.session import Session
from snapd.blocks.keys import I64, U64
from snapd.errors import SnapdError
from snapd.repository import Repository


class OffloadObserver(Protocol):
    """Who counts; see `snapd.metrics.Metrics`."""

    def offloaded(self, blocks: int, bytes_on_disk: int) -> None:
        """So many blocks are served from disk only."""


class Offloader:
    """For one thread, which looks at one session after another."""

    def __init__(self, repository: Repository, observer: OffloadObserver) -> None:
        self._repository = repository
        self._observer = observer
        self._session: Session | None = None
        self._offload: Offload | None = None
        self._told: U64 = np.zeros(0, np.uint64)
        """By slot: the version that the store was told of; 0 is none."""
        self._told_row: I64 = np.zeros(0, np.int64)
        """By slot: the catalog row that made it durable then. In another row it is told again,
        since the store forgets what it was told of a row that died in between."""
        self.offloaded = (0, 0)
        """Blocks that are served from disk only, and their bytes."""

    def tell(self, session: Session) -> None:
        """Bring the store up to date; without effect where there is no SSD tier. A store that does
        not answer is told again at the next call."""
        if session.open_offload is None or session.lost.is_set() or not session.served.is_set():
            return
        if self._session is not session:
            self.close()
            self._session = session
            self._told = np.zeros(len(session.residency.sequence), np.uint64)
            self._told_row = np.zeros(len(self._told), np.int64)
        try:
            if self._offload is None:
                self._offload = session.open_offload()
            self._tell(session, self._offload)
        except SnapdError:
            # Whoever watches the store notices by himself that it is away.
            self.close()

    def close(self) -> None:
        """End the connection; idempotent."""
        if self._offload is not None:
            self._offload.close()
            self._offload = None

    def _tell(self, session: Session, offload: Offload) -> None:
        residency, catalog = session.residency, self._repository.catalog
        with residency.lock:
            # First the epoch, then what is live: a remove-all that comes in between is refused.
            epoch = self._repository.epoch - session.epoch_base
            slots = np.flatnonzero(residency.sequence)
            sequences, rows = residency.sequence[slots], residency.row[slots]
            cold = residency.cold[slots]
            live = (rows >= 0) & catalog.is_live(rows)
            awaiting = self._await_manifest(session)
            durable = live & ~np.isin(rows, awaiting) if len(awaiting) else live
            told = self._told[slots] == sequences
            fresh = np.flatnonzero(durable & ~cold & ~(told & (self._told_row[slots] == rows)))
            if len(fresh):
                agreed = fresh[offload.keep(slots[fresh], sequences[fresh], epoch)]
                self._told[slots[agreed]] = sequences[agreed]
                self._told_row[slots[agreed]] = rows[agreed]
            # What the store has or may have cold and cannot be loaded: it was dropped, or is bad.
            over = np.flatnonzero(~live & (cold | told))
            if len(over):
                offload.drop(slots[over], sequences[over])
                self._told[slots[over]] = 0
                residency.forget(slots[over[cold[over]]])
            on_disk = rows[live & cold]
            self.offloaded = len(on_disk), int(catalog.column("size", on_disk).sum())
        self._observer.offloaded(*self.offloaded)

    def _await_manifest(self, session: Session) -> I64:
        """Rows that the newest manifest does not know to be live again, int64: after a crash they
        would be dead. The caller holds the residency's lock."""
        rows = np.concatenate([np.empty(0, np.int64), *session.revived])
        if len(rows):
            # The store was told of their death, by whoever dropped them.
            self._told[np.isin(session.residency.row, rows)] = 0
            rows = rows[~self._repository.catalog.is_committed(rows)]
        session.revived[:] = [rows]
        return rows
