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
from snapd.attach.traced import TracedHeat
from snapd.blocks.keys import I64, U64, Bools
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
_AGAIN = "again"
"""How a pass ends when the store cannot take some blocks yet."""

_AGAIN_SECONDS = 0.25
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
        fingerprint: Callable[[], int] | None = None,
        traced: TracedHeat | None = None,
    ) -> None:
        """`fingerprint` names the blocks that readers expect now: others are left on the disk until
        it names theirs. None: all are brought back."""
        self._repository = repository
        self._link = link
        self._demand = demand
        self._pace = pace
        self._observer = observer
        self._stopping = stopping
        self._traced = traced or TracedHeat(repository)
        self._fingerprint = fingerprint
        self._expected: int | None = None
        """The fingerprint of the plan."""
        self._backoff = Backoff(_logger, "warm up")
        self._progress = threading.Lock()
        self.state = "waiting"
        """"waiting", "running", "full" (stopped below the watermark) or "done"."""
        self.planned = 0
        self.handled = 0
        self.withheld = 0
        """Blocks of other fingerprints, which are left cold."""

    def run(self) -> None:
        """Warm up once in each session, and again when other blocks are expected."""
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
            while not (self._stopping.is_set() or self._is_outdated() or session.lost.wait(0.5)):
                pass

    def _warm(self, session: Session) -> None:
        started = time.monotonic()
        slots, sizes = self._plan(session)
        work = _Work(slots, sizes)
        self.planned, self.handled, self.state = len(slots), 0, "running"
        self._observer.warmup_progress(0.0 if len(slots) else 1.0)
        state = self._load_all(session, work)
        while state == _AGAIN and not self._stopping.wait(_AGAIN_SECONDS):
            work.begin_again()
            state = self._load_all(session, work)
        self.state = "waiting" if state == _AGAIN else state
        if self.state == "waiting":
            return
        seconds = time.monotonic() - started
        session.warmed.set()
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
        self._traced.update_catalog()
        with session.residency.lock:
            slots = session.residency.cold_slots()
            rows = session.residency.row[slots]
        expected = self._expect(rows)
        slots, rows = slots[expected], rows[expected]
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

    def _expect(self, rows: I64) -> Bools:
        """Which of these rows readers expect, bool [n]; the others are counted, and said once.

        The keys of blocks of another model, dtype or layout may be the same: a reader that found
        one would take its bytes for what it asked for.
        """
        self._expected = self._fingerprint() if self._fingerprint is not None else None
        if self._expected is None:
            return np.ones(len(rows), np.bool_)
        known: Bools = self._repository.catalog.column("fingerprint", rows) == self._expected
        before, self.withheld = self.withheld, len(rows) - int(known.sum())
        if self.withheld:
            self._observer.warmup_loaded("other_fingerprint", self.withheld, 0)
        if self.withheld != before:
            labels = self._repository.fingerprints
            event(
                _logger,
                logging.INFO,
                "left blocks of other fingerprints on the disk",
                blocks=self.withheld,
                expected=labels.get(self._expected, "none"),
            )
        return known

    def _is_outdated(self) -> bool:
        """Whether other blocks are expected than when the plan was made."""
        return self._fingerprint is not None and self._fingerprint() != self._expected

    def _load_all(self, session: Session, work: _Work) -> str:
        """Load piece after piece, a few at a time: while one is read from the disk, another is
        verified. Returns the state that it ended in, or `_AGAIN`."""
        with ThreadPoolExecutor(_LANES, "warmer") as pool:
            lanes = [pool.submit(self._lane, session, work) for _ in range(_LANES)]
            states = {lane.result() for lane in lanes}
        return next(state for state in ("waiting", "full", _AGAIN, "done") if state in states)

    def _lane(self, session: Session, work: _Work) -> str:
        try:
            with closing(session.open_sink()) as sink:
                while (piece := work.take()) is not None:
                    state = self._load(session, sink, work, piece)
                    if state:
                        return state
            return "done"
        finally:
            # Whatever ends one lane ends the others after the piece that they have.
            work.end()

    def _load(self, session: Session, sink: Sink, work: _Work, piece: I64) -> str:
        """Load one piece; the state to end in, empty to go on. Raises DiskError."""
        residency, catalog = session.residency, self._repository.catalog
        slots = work.slots[piece]
        with residency.lock:
            # Readers' demand, removals and replacements went on since the plan was made.
            kept = piece[residency.cold[slots] & (residency.row[slots] >= 0)]
            rows = residency.row[work.slots[kept]]
            alive = catalog.is_live(rows)
            kept, rows = kept[alive], rows[alive]
            slots = work.slots[kept]
            sequences = residency.sequence[slots]
        self._pace(int(catalog.column("size", rows[work.first_time(kept)]).sum()))
        self._demand.wait_until_idle(_YIELD_SECONDS_MAX)
        if self._stopping.is_set() or session.lost.is_set() or self._is_outdated():
            return "waiting"
        wanted = (slots.astype(np.uint32), sequences, rows)
        result = load_cold(session, sink, self._repository, wanted, demand=False)
        self._count(result)
        if result.error is not None:
            raise result.error
        with self._progress:
            self.handled += work.handled(piece, but=kept[result.waiting])
            self._observer.warmup_progress(self.handled / self.planned)
        if result.no_space:
            return "full"
        return _AGAIN if len(result.waiting) else ""

    def _count(self, result: LoadResult) -> None:
        for name, blocks, bytes_moved in result.counts():
            self._observer.warmup_loaded(name, blocks, bytes_moved)
        self._observer.quarantined("pack", result.rejected)


class _Work:
    """A plan for several lanes: each of its positions is given out once in a pass, and again in the
    next pass where the store could not take its block yet."""

    def __init__(self, slots: I64, sizes: U64) -> None:
        self.slots = slots
        self._sizes = sizes
        self._is_handled: Bools = np.zeros(len(slots), np.bool_)
        self._was_tried: Bools = np.zeros(len(slots), np.bool_)
        self._lock = threading.Lock()
        self._pieces: Iterator[I64] = iter(())
        self.begin_again()

    def begin_again(self) -> None:
        """A new pass, over what has not been handled."""
        left = np.flatnonzero(~self._is_handled)
        with self._lock:
            self._pieces = windows(
                left, self._sizes[left], bytes_max=_WINDOW_BYTES, blocks_max=_WINDOW_BLOCKS
            )

    def take(self) -> I64 | None:
        """The positions of the next piece, int64; None when there is none left in this pass."""
        with self._lock:
            return next(self._pieces, None)

    def first_time(self, piece: I64) -> Bools:
        """Which of these positions are tried for the first time, bool [n]; from now on they were
        tried."""
        first = ~self._was_tried[piece]
        self._was_tried[piece] = True
        return first

    def handled(self, piece: I64, *, but: I64) -> int:
        """These positions are done with, but for some of them; how many."""
        self._is_handled[piece] = True
        self._is_handled[but] = False
        return len(piece) - len(but)

    def end(self) -> None:
        """Give out nothing more in this pass."""
        with self._lock:
            self._pieces = iter(())
