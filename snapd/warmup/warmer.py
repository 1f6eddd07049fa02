"""`Warmer`: brings cold blocks back in the background, hottest first."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np

from snapd.attach.backoff import Backoff
from snapd.attach.port import Sink
from snapd.attach.session import Link, Session
from snapd.blocks.keys import I64, U64
from snapd.config import event
from snapd.errors import SnapdError
from snapd.plans import lift_parents, parent_rows, stretches_hottest_first, windows
from snapd.repository import Repository
from snapd.warmup.load import LoadObserver, LoadResult, load_cold
from snapd.warmup.loader import Demand

_WINDOW_BYTES = 32 * 2**20
"""Bytes read at a time: enough for the disk's full speed, short enough that a reader who comes in
the middle waits for tens of milliseconds."""

_WINDOW_BLOCKS = 8192

_STRETCH_BYTES = 2**20
"""Bytes of a pack that are read together: blocks of this size are loaded strictly by their heat."""

_LANES = 2
"""Pieces in work at a time."""

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
        self._progress = threading.Lock()
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
        slots, sizes = self._plan(session)
        self.planned, self.handled, self.state = len(slots), 0, "running"
        self._observer.warmup_progress(0.0 if len(slots) else 1.0)
        pieces = windows(slots, sizes, bytes_max=_WINDOW_BYTES, blocks_max=_WINDOW_BLOCKS)
        self.state = self._load_all(session, pieces)
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

    def _plan(self, session: Session) -> tuple[I64, U64]:
        """Cold slots, hottest first and parents before children as far as the disk likes it, and
        the sizes of their blocks."""
        catalog = self._repository.catalog
        with session.residency.lock:
            slots = session.residency.cold_slots()
            rows = session.residency.row[slots]
        heat, parent = catalog.column("heat", rows), catalog.column("parent", rows)
        if parent.any():
            heat = lift_parents(heat, parent_rows(catalog.column("key_hash", rows), parent))
        del parent  # a million rows are 8 MB a column
        order = stretches_hottest_first(
            heat,
            catalog.column("pack", rows),
            catalog.column("pack_offset", rows),
            catalog.column("stored_size", rows),
            stretch_bytes=_STRETCH_BYTES,
        )
        return slots[order], catalog.column("size", rows[order])

    def _load_all(self, session: Session, pieces: Iterator[I64]) -> str:
        """Load piece after piece, a few at a time: while one is read from the disk, another is
        verified. Returns the state that it ended in."""
        work = _Work(pieces)
        with ThreadPoolExecutor(_LANES, "warmer") as pool:
            lanes = [pool.submit(self._lane, session, work) for _ in range(_LANES)]
            states = {lane.result() for lane in lanes}
        return next(state for state in ("waiting", "full", "done") if state in states)

    def _lane(self, session: Session, work: _Work) -> str:
        try:
            with closing(session.open_sink()) as sink:
                while (piece := work.take()) is not None:
                    state = self._load(session, sink, piece)
                    if state:
                        return state
            return "done"
        finally:
            # Whatever ends one lane ends the others after the piece that they have.
            work.end()

    def _load(self, session: Session, sink: Sink, piece: I64) -> str:
        """Load one piece; the state to end in, empty to go on. Raises DiskError."""
        residency, catalog = session.residency, self._repository.catalog
        with residency.lock:
            # Readers' demand, removals and replacements went on since the plan was made.
            kept = piece[residency.cold[piece] & (residency.row[piece] >= 0)]
            rows = residency.row[kept]
            alive = catalog.is_live(rows)
            kept, rows = kept[alive], rows[alive]
            sequences = residency.sequence[kept]
        self._pace(int(catalog.column("size", rows).sum()))
        self._demand.wait_until_idle(_YIELD_SECONDS_MAX)
        if self._stopping.is_set() or session.lost.is_set():
            return "waiting"
        wanted = (kept.astype(np.uint32), sequences, rows)
        result = load_cold(session, sink, self._repository, wanted, demand=False)
        self._count(result)
        if result.error is not None:
            raise result.error
        with self._progress:
            self.handled += len(piece)
            self._observer.warmup_progress(self.handled / self.planned)
        return "full" if result.no_space else ""

    def _count(self, result: LoadResult) -> None:
        for name in ("loaded", "superseded", "rejected", "no_space", "failed"):
            blocks = getattr(result, name)
            if blocks:
                bytes_read = result.loaded_bytes if name == "loaded" else 0
                self._observer.warmup_loaded(name, blocks, bytes_read)
        self._observer.quarantined("pack", result.rejected)


class _Work:
    """Pieces for several lanes, each given out once."""

    def __init__(self, pieces: Iterator[I64]) -> None:
        self._pieces: Iterator[I64] = pieces
        self._lock = threading.Lock()

    def take(self) -> I64 | None:
        """The next piece; None when there is none left."""
        with self._lock:
            return next(self._pieces, None)

    def end(self) -> None:
        """Give out nothing more."""
        with self._lock:
            self._pieces = iter(())
