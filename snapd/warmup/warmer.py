"""`Warmer`: brings cold blocks back in the background, hottest first."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import closing

import numpy as np

from snapd.attach.backoff import Backoff
from snapd.attach.port import Sink
from snapd.attach.session import Link, Session
from snapd.blocks.keys import I64
from snapd.config import event
from snapd.errors import SnapdError
from snapd.plans import chains_hottest_first, windows
from snapd.repository import Repository
from snapd.warmup.load import LoadObserver, LoadResult, load_cold
from snapd.warmup.loader import Demand

_WINDOW_BYTES = 32 * 2**20
"""Bytes read at a time: enough for the disk's full speed, short enough that a reader who comes in
the middle waits for tens of milliseconds."""

_WINDOW_BLOCKS = 8192
_YIELD_SECONDS_MAX = 0.25
_logger = logging.getLogger(__name__)


class Warmer:
    """A thread's work: plan an order once a session, then load window after window."""

    def __init__(
        self,
        repository: Repository,
        link: Link,
        demand: Demand,
        *,
        pace: Callable[[int], None],
        observer: LoadObserver,
        stopping: threading.Event,
    ) -> None:
        self._repository = repository
        self._link = link
        self._demand = demand
        self._pace = pace
        self._observer = observer
        self._stopping = stopping
        self._backoff = Backoff(_logger, "warm up")
        self.state = "waiting"
        """"waiting", "running", "full" (stopped below the watermark) or "done"."""
        self.planned = 0
        self.handled = 0

    def run(self) -> None:
        """Warm up once in each session."""
        while not self._stopping.is_set():
            session = self._link.wait(0.5)
            if session is None or not session.served.wait(0.5):
                continue
            try:
                self._warm(session)
            except SnapdError as error:
                self.state = "waiting"
                self._stopping.wait(self._backoff.failed(error))
                continue
            while not self._stopping.is_set() and not session.lost.wait(0.5):
                pass

    def _warm(self, session: Session) -> None:
        started = time.monotonic()
        slots = self._plan(session)
        self.planned, self.handled, self.state = len(slots), 0, "running"
        self._observer.warmup_progress(0.0 if len(slots) else 1.0)
        with closing(session.open_sink()) as sink:
            self.state = self._load_all(session, sink, slots)
        if self.state == "waiting":
            return
        seconds = time.monotonic() - started
        self._backoff.succeeded()
        self._observer.warmup_done(seconds)
        self._observer.warmup_progress(1.0)
        event(
            _logger,
            logging.INFO,
            "warm-up ended",
            state=self.state,
            blocks=self.handled,
            planned=self.planned,
            seconds=seconds,
        )

    def _plan(self, session: Session) -> I64:
        """Cold slots, hottest first and parents before children."""
        table = self._repository.catalog.table
        with session.residency.lock:
            slots = session.residency.cold_slots()
            rows = session.residency.row[slots]
        order = chains_hottest_first(
            table.heat[rows], table.sequence[rows], table.key_hash[rows], table.parent[rows]
        )
        return slots[order]

    def _load_all(self, session: Session, sink: Sink, slots: I64) -> str:
        """Load slots in this order; the state that it ended in."""
        residency, table = session.residency, self._repository.catalog.table
        sizes = np.zeros(len(residency.sequence), np.uint64)
        sizes[slots] = table.size[residency.row[slots]]
        for piece in windows(slots, sizes, bytes_max=_WINDOW_BYTES, blocks_max=_WINDOW_BLOCKS):
            self._pace(int(sizes[piece].sum()))
            self._demand.wait_until_idle(_YIELD_SECONDS_MAX)
            if self._stopping.is_set() or session.lost.is_set():
                return "waiting"
            with residency.lock:
                # Readers' demand, removals and replacements went on since the plan was made.
                kept = piece[residency.cold[piece] & (residency.row[piece] >= 0)]
                kept = kept[self._repository.catalog.live[residency.row[kept]]]
                wanted = (
                    kept.astype(np.uint32),
                    residency.sequence[kept].copy(),
                    residency.row[kept].copy(),
                )
            result = load_cold(session, sink, self._repository, wanted, demand=False)
            self._count(result)
            if result.no_space:
                return "full"
            if result.error is not None:
                raise result.error
            self.handled += len(piece)
            self._observer.warmup_progress(self.handled / len(slots))
        return "done"

    def _count(self, result: LoadResult) -> None:
        for name in ("loaded", "superseded", "rejected", "no_space", "failed"):
            blocks = getattr(result, name)
            if blocks:
                bytes_read = result.loaded_bytes if name == "loaded" else 0
                self._observer.warmup_loaded(name, blocks, bytes_read)
        self._observer.quarantined("pack", result.rejected)
