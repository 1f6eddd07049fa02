"""`EventsWorker`: makes removals durable before anybody is told that they happened."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import closing
from typing import Protocol

import numpy as np

from snapd.attach.backoff import Backoff
from snapd.attach.port import Changes, Sink
from snapd.attach.session import Link, Session
from snapd.blocks.keys import I64, Bools
from snapd.config import event
from snapd.errors import DiskError, SnapdError, StoreUnavailableError
from snapd.formats.removals import Removals
from snapd.repository import Repository
from snapd.warmup.reconcile import drop_dead, register_rows
from snapd.wire.messages import EventKind

_WAIT_MS = 500
_WAIT_MS_BEFORE_SERVED = 10
"""While a reconciliation runs it waits for a round of this worker, so rounds are short."""

_logger = logging.getLogger(__name__)


class EventsObserver(Protocol):
    """Who counts; see `snapd.metrics.Metrics`."""

    def removals_journaled(self, removals: int) -> None:
        """Removals are durable."""

    def quarantined(self, reason: str, blocks: int) -> None:
        """Blocks failed verification."""


class EventsWorker:
    """A thread's work: long poll, journal, acknowledge.

    Crash argument: a batch is acknowledged only after its removals are synced, so a death before
    that has the store give it again, and journaling a removal twice changes nothing. The reader who
    removed is answered by the acknowledgement, so what he was told is durable.
    """

    def __init__(
        self,
        repository: Repository,
        link: Link,
        observer: EventsObserver,
        ended: threading.Event,
    ) -> None:
        """`ended` stops it: later than the other workers, because removals go on until the end."""
        self._repository = repository
        self._link = link
        self._observer = observer
        self._ended = ended
        self._round_done = threading.Condition()
        self._started = 0
        self._finished = 0
        # Somebody waits for each removal, so a disk that works again is found out soon.
        self.backoff = Backoff(_logger, "journal removals", most_seconds=1.0)
        self.asking = Backoff(_logger, "ask the store for removals", most_seconds=1.0)

    def run(self) -> None:
        """Serve session after session."""
        while not self._ended.is_set():
            session = self._link.wait(0.2)
            if session is None:
                continue
            try:
                self._serve(session)
            except StoreUnavailableError as error:
                # A long poll notices at once when the store's process ends: tell everybody.
                session.lost.set()
                self._ended.wait(self.asking.failed(error))
            except DiskError as error:
                self._ended.wait(self.backoff.failed(error))
            except SnapdError as error:
                self._ended.wait(self.asking.failed(error))

    def settle_removals(self, session: Session) -> None:
        """Return when every removal from before this call is durable; see `RemovalBarrier`."""
        with self._round_done:
            needed = self._started + 1
            while self._finished < needed:
                if session.lost.is_set() or self._ended.is_set():
                    raise StoreUnavailableError("the store was lost while removals were settled")
                self._round_done.wait(0.1)

    def _serve(self, session: Session) -> None:
        ack = 0
        with closing(session.open_feed()) as feed:
            self.begin(session)
            while not self._ended.is_set() and not session.lost.is_set():
                self._started += 1
                served = session.served.is_set()
                wait_ms = _WAIT_MS if served else _WAIT_MS_BEFORE_SERVED
                batch = feed.changes(ack, wait_ms)
                self.asking.succeeded()
                ack = self.take(session, batch) or ack
                self.backoff.succeeded()
                with self._round_done:
                    self._finished = self._started
                    self._round_done.notify_all()

    def begin(self, session: Session) -> None:
        """Before the first batch of a session: a remove-all without a daemon left nothing but a
        higher epoch in the segment. Raises DiskError."""
        self._begin_epoch(session, session.epoch)

    def take(self, session: Session, batch: Changes) -> int:
        """Make a batch durable; the number to acknowledge, 0 if there was nothing. Raises
        DiskError; then it must not be acknowledged."""
        if not len(batch):
            session.drained.set()
            return 0
        self._journal(session, batch)
        return batch.number

    def _journal(self, session: Session, batch: Changes) -> None:
        removed = np.flatnonzero(batch.kinds == EventKind.REMOVED)
        if len(removed):
            self._repository.journal(_removals(session, batch, removed))
        for at in np.flatnonzero(batch.kinds == EventKind.REMOVE_ALL).tolist():
            self._begin_epoch(session, int(batch.epochs[at]))
        corrupt = batch.kinds == EventKind.CORRUPT
        if corrupt.any():
            self._put_back(session, batch, corrupt)
        self._observer.removals_journaled(len(batch) - int(corrupt.sum()))
        if not session.served.is_set():
            self._drop_dead(session)

    def _begin_epoch(self, session: Session, epoch: int) -> None:
        ours = session.epoch_base + epoch
        if ours > self._repository.epoch:
            self._repository.journal(epoch=ours)

    def _put_back(self, session: Session, batch: Changes, corrupt: Bools) -> None:
        """A block's bytes in memory went bad: its copy on disk, if it is that version, serves."""
        at = np.flatnonzero(corrupt)
        self._observer.quarantined("segment", len(at))
        with session.residency.lock:
            rows = self._durable(session, batch, at)
            catalog = self._repository.catalog
            restorable = np.unique(rows[rows >= 0])
            catalog.set_live(restorable, live=True)
            restorable = restorable[catalog.is_live(restorable)]
            if len(restorable):
                self._with_sink(
                    session,
                    lambda sink: register_rows(session, sink, restorable, catalog.take(restorable)),
                )
        event(
            _logger,
            logging.WARNING,
            "blocks in memory were bad and were dropped",
            blocks=len(at),
            put_back_from_disk=len(restorable),
        )

    def _durable(self, session: Session, batch: Changes, at: I64) -> I64:
        """Catalog rows with the very versions that were dropped, -1 where there is none."""
        slots, sequences = batch.slots[at], batch.sequences[at]
        rows = session.residency.rows_of(slots, sequences)
        session.residency.forget(slots[rows >= 0].astype(np.int64))
        unknown = np.flatnonzero(rows < 0)
        keys = batch.keys.take(at[unknown])
        found = self._repository.catalog.find(keys, keys.hashes())
        column = self._repository.catalog.column
        known = np.flatnonzero(found >= 0)
        same = (column("incarnation", found[known]) == session.ordinal) & (
            column("sequence", found[known]) == sequences[unknown[known]]
        )
        rows[unknown[known[same]]] = found[known[same]]
        return rows

    def _drop_dead(self, session: Session) -> None:
        """Cold registrations may be on their way for rows that this batch has killed."""
        with session.residency.lock:
            self._with_sink(session, lambda sink: drop_dead(session, sink, self._repository))

    def _with_sink(self, session: Session, work: Callable[[Sink], object]) -> None:
        with closing(session.open_sink()) as sink:
            work(sink)


def _removals(session: Session, batch: Changes, at: I64) -> Removals:
    """What the repository is to forget: a removal ends the versions *before* its sequence, which
    the next version of the key may carry itself."""
    keys = batch.keys.take(at)
    return Removals(
        keys,
        keys.hashes(),
        (batch.epochs[at].astype(np.int64) + session.epoch_base).astype(np.uint32),
        np.full(len(at), session.ordinal, np.uint32),
        batch.sequences[at] - np.uint64(1),
    )
