"""`Flusher`: the thread that brings new blocks to disk and commits snapshots over them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, TypeVar

import numpy as np

from snapd.attach.backoff import Backoff
from snapd.attach.port import PINNED_BYTES_MAX, Source
from snapd.attach.session import Link, Session
from snapd.attach.traced import TracedHeat
from snapd.config import Settings, event
from snapd.errors import RefusedError, SnapdError
from snapd.flusher.admission import Admission
from snapd.flusher.budget import Budget
from snapd.flusher.commit import commit_in_room
from snapd.flusher.flush import Flush, FlushResult
from snapd.flusher.heat import HeatBook
from snapd.flusher.offload import Offloader
from snapd.flusher.reasons import failure_reason
from snapd.flusher.report import FlushObserver, SnapshotReport
from snapd.repository import Repository

_COMMIT_SHARE = 0.25
"""Share of the grace period that is kept for sealing the last pack and committing."""

_COMMITS_SHARE = 20.0
"""Snapshots out of turn take at most one part in so many of the time."""

LAST_PIECE_BYTES = 8 * 2**20
"""Bytes written at a time when the daemon ends: on a slow disk the deadline must be met."""

_logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")
"""What a request is answered with."""


class Flusher:
    """A thread's work: flush every `flush_sec`, commit every `snapshot_interval_sec`, and once more
    at the end.

    Failures of the disk are counted, logged once, and tried again later on new files; meanwhile the
    store goes on serving.
    """

    def __init__(
        self,
        repository: Repository,
        link: Link,
        settings: Settings,
        *,
        pace: Callable[[int], None],
        observer: FlushObserver,
        budget: Budget,
        traced: TracedHeat | None = None,
        piece_bytes_max: int = PINNED_BYTES_MAX,
        last_piece_bytes_max: int = LAST_PIECE_BYTES,
    ) -> None:
        """Bytes that are written between two looks at the deadline: `piece_bytes_max` as a rule,
        `last_piece_bytes_max` when the daemon ends."""
        self._piece_bytes_max = piece_bytes_max
        self._last_piece_bytes_max = last_piece_bytes_max
        self._repository = repository
        self._budget = budget
        self._traced = traced or TracedHeat(repository)
        self._admission = Admission(repository, budget, self._traced)
        self._link = link
        self._settings = settings
        self._pace = pace
        self._observer = observer
        self._wake = threading.Condition()
        self._snapshot_requests: list[Future[Mapping[str, Any]]] = []
        self._flush_requests: list[Future[None]] = []
        self._commit_requests: list[Future[Mapping[str, Any]]] = []
        self._stop_by: float | None = None
        self._has_ended = False
        self._quiesce: Callable[[], None] = _nothing
        self._source: tuple[Session, Source] | None = None
        self._heat: HeatBook | None = None
        self._offloader = Offloader(repository, observer)
        self._looks = 0
        """Complete looks at the session since everything is served."""
        self._flushes = Backoff(_logger, "flush", most_seconds=30.0)
        self._snapshots = Backoff(_logger, "commit a snapshot", most_seconds=30.0)
        now = time.monotonic()
        self._flushed_until = now
        self._durable_until = now
        self._awaits_manifest = False
        """Blocks that an older pack has are live again, and no manifest says so yet."""
        self._flush_at = now
        self._snapshot_at = now + settings.snapshot_interval_sec
        self._interrupt_at = now
        """When the flush that runs makes way for a snapshot."""
        self._written_bytes = 0
        self._commit_seconds = 0.0
        self.last_flush = FlushResult()
        self.last_snapshot: SnapshotReport | None = None
        self.final_error: SnapdError | None = None
        """Why the last snapshot, at the end, could not be committed; None if it was."""

    # --- called by other threads ----------------------------------------------------------------

    def configure(self, settings: Settings) -> None:
        """Flush and take snapshots by the intervals of these settings from now on."""
        with self._wake:
            now = time.monotonic()
            self._settings = settings
            self._flush_at = min(self._flush_at, now + settings.flush_sec)
            self._snapshot_at = min(self._snapshot_at, now + settings.snapshot_interval_sec)
            self._wake.notify_all()

    def lag_seconds(self) -> float:
        """Seconds since the moment up to which everything published is on disk."""
        return max(0.0, time.monotonic() - self._durable_until)

    @property
    def lag_reason(self) -> str:
        """Why the lag grows although nothing fails: `write_budget`, `no_space`, `colder`, or empty.

        What is left out because it is colder counts only where the disk is what is too small. A
        budget that somebody set is meant to leave blocks out.
        """
        waiting = self._admission.left_out
        reasons = ["write_budget", "no_space"]
        if self._admission.bound != "budget":
            reasons.append("colder")
        return next((one for one in reasons if waiting[one]), "")

    @property
    def offloaded(self) -> tuple[int, int]:
        """Blocks that are served from disk only, and their bytes; of the last flush."""
        return self._offloader.offloaded

    @property
    def left_out(self) -> Mapping[str, int]:
        """Blocks of the store that are not on disk now, by reason."""
        return self._admission.left_out

    @property
    def problems(self) -> list[str]:
        """What failed last and has not succeeded since."""
        return [error for error in (self._flushes.error, self._snapshots.error) if error]

    def request_snapshot(self) -> Future[Mapping[str, Any]]:
        """A snapshot as soon as possible. The future fails with `SnapdError`."""
        return self._request(self._snapshot_requests)

    def request_commit(self) -> Future[Mapping[str, Any]]:
        """A snapshot of what is in sealed packs, at once and without a flush: so that space which
        nothing needs any more comes back. The future fails with `SnapdError`."""
        return self._request(self._commit_requests)

    def flush_soon(self) -> Future[None]:
        """A flush as soon as possible. The future fails with `SnapdError`."""
        return self._request(self._flush_requests)

    def _request(self, queue: list[Future[Answer]]) -> Future[Answer]:
        future: Future[Answer] = Future()
        with self._wake:
            if self._has_ended:
                future.set_exception(_stopped())
                return future
            queue.append(future)
            self._wake.notify()
        return future

    def stop(self, deadline: float, quiesce: Callable[[], None]) -> None:
        """End the thread's work with a snapshot by `deadline`, on the monotonic clock.

        `quiesce` is called after the bulk has been written and before the last look: it stops the
        store, if the daemon owns it, so that nothing can come behind that look.
        """
        with self._wake:
            self._stop_by = deadline
            self._quiesce = quiesce
            self._wake.notify()

    # --- the thread -------------------------------------------------------------------------------

    def run(self) -> None:
        """Until `stop`."""
        while True:
            with self._wake:
                self._wake.wait_for(self._has_work, self._idle_seconds())
                stop_by = self._stop_by
                snapshots = _taken(self._snapshot_requests)
                flushes = _taken(self._flush_requests)
                commits = _taken(self._commit_requests)
            if stop_by is not None:
                self._finish(stop_by, [*snapshots, *commits], flushes)
                return
            if commits:
                self._snapshot(commits, None)
            now = time.monotonic()
            self._interrupt_at = self._snapshot_at
            if now >= self._snapshot_at:
                self._interrupt_at = now + self._settings.snapshot_interval_sec
            asked = bool(snapshots or flushes)
            if asked or now >= min(self._snapshot_at, self._flush_at):
                # A first flush may take longer than many intervals: each gets its snapshot of what
                # is in sealed packs by then, and the flush goes on after it.
                error = self._flush(
                    self._until_stopped if asked else self._until_interrupted, refresh=asked
                )
                _answer(flushes, error)
                if snapshots or time.monotonic() >= self._snapshot_at:
                    self._snapshot(snapshots, error)

    def _has_work(self) -> bool:
        return bool(
            self._stop_by is not None
            or self._snapshot_requests
            or self._flush_requests
            or self._commit_requests
        )

    def _until_stopped(self) -> float:
        """The deadline of a flush that somebody waits for: none, until the daemon stops."""
        return float("inf") if self._stop_by is None else 0.0

    def _until_interrupted(self) -> float:
        """The deadline of a flush in its turn: the next snapshot, whoever wants it."""
        if self._stop_by is not None or self._commit_requests:
            return 0.0
        return self._interrupt_at

    def _idle_seconds(self) -> float:
        return max(0.0, min(self._flush_at, self._snapshot_at) - time.monotonic())

    def _finish(
        self,
        stop_by: float,
        snapshots: list[Future[Mapping[str, Any]]],
        flushes: list[Future[None]],
    ) -> None:
        """The last flush: hottest first, in time for a manifest, whatever is left out."""
        remaining = max(0.0, stop_by - time.monotonic())
        writes_by = stop_by - _COMMIT_SHARE * remaining
        self._flush(lambda: writes_by, self._last_piece_bytes_max, refresh=True)
        self._quiesce()
        with self._wake:
            flushes = [*flushes, *_taken(self._flush_requests)]
        error = self._flush(lambda: writes_by, self._last_piece_bytes_max, refresh=True)
        _answer(flushes, error)
        # Even where blocks could not be written, what is in sealed packs gets its manifest.
        self._snapshot(snapshots, None)
        self.final_error = self.final_error or error
        self._refuse_late()

    def _refuse_late(self) -> None:
        """Answer those who asked after the last flush began: a store service that is about to end
        waits for this answer, and need not wait longer."""
        with self._wake:
            self._has_ended = True
            late: list[Future[Any]] = [
                *_taken(self._snapshot_requests),
                *_taken(self._commit_requests),
                *_taken(self._flush_requests),
            ]
        for request in late:
            request.set_exception(_stopped())

    def _flush(
        self,
        deadline: Callable[[], float],
        piece_bytes_max: int | None = None,
        *,
        refresh: bool = False,
    ) -> SnapdError | None:
        """One flush; the error that ended it, if one did. With `refresh` it has everything that
        was put before it began, however the source learns of it."""
        started = time.monotonic()
        self._flush_at = started + self._settings.flush_sec
        session = self._link.session
        if session is None:
            self._flushed_until = self._durable_until = started
            return None
        source = self._source_of(session)
        if refresh and not session.lost.is_set():
            source.refresh()
        flush = Flush(
            session,
            source,
            self._repository,
            self._pace,
            self._admission,
            self._traced,
            deadline,
            piece_bytes_max or self._piece_bytes_max,
            self._looks,
            settled=lambda: self._offloader.tell(session),
        )
        if not self._looks:
            # A store that was started again knows of nothing; what follows may take long.
            self._offloader.tell(session)
        try:
            result = flush.run()
        except SnapdError as error:
            self._budget.refused(error)
            self._observer.flush_failed(failure_reason(error))
            self._flush_at = time.monotonic() + max(
                self._settings.flush_sec, self._flushes.failed(error)
            )
            return error
        self._looks = flush.looks
        self._offloader.tell(session)
        self.last_flush = result
        self._written_bytes += result.written_bytes
        if result.no_slot:
            self._observer.left_without_slot(result.no_slot)
        self._hasten_snapshot(result, started)
        self._note_left_out(session, result)
        if not result.complete:
            self._flush_at = started  # go on at once
        elif not self.lag_reason:
            self._flushed_until = started
        if self._proves_that_it_works(result):
            self._flushes.succeeded()
        if not self._awaits_manifest:
            self._durable_until = self._flushed_until
        self._observer.flushed(result.written, result.written_bytes, time.monotonic() - started)
        return None

    def _proves_that_it_works(self, result: FlushResult) -> bool:
        """Not a flush that made way before it wrote anything, nor one that left everything out
        while the disk refuses: a run of failures goes on through them."""
        if not (result.written or result.complete):
            return False
        return not (self.lag_reason and self._budget.is_refused)

    def _note_left_out(self, session: Session, result: FlushResult) -> None:
        for reason, blocks in result.left_out.items():
            self._observer.left_out(reason, blocks)
        before = self.lag_reason
        self._admission.count_waiting(session)
        self._observer.waiting(self._admission.left_out)
        if self.lag_reason and not before:
            event(
                _logger,
                logging.WARNING,
                "blocks wait to be written",
                reason=self.lag_reason,
                limit=self._admission.bound,
                blocks=sum(self._admission.left_out.values()),
            )
        elif before and not self.lag_reason:
            event(_logger, logging.INFO, "no block waits to be written any more")

    def _hasten_snapshot(self, result: FlushResult, now: float) -> None:
        """A block whose bytes an older pack has is durable only once a manifest says that it is
        live again. If the newest one does not, the next must not wait for its interval; nor must it
        where many removals have made the journal long."""
        rows = np.concatenate([np.empty(0, np.int64), *result.revived])
        if not self._repository.catalog.is_committed(rows).all():
            self._awaits_manifest = True
        if self._awaits_manifest or self._repository.commit_is_due:
            soon = now + max(self._settings.flush_sec, _COMMITS_SHARE * self._commit_seconds)
            self._snapshot_at = min(self._snapshot_at, soon)

    def _snapshot(
        self, requests: list[Future[Mapping[str, Any]]], flush_error: SnapdError | None
    ) -> None:
        """Commit a manifest over what is in sealed packs, and answer those who asked."""
        started = time.monotonic()
        try:
            if flush_error is not None:
                raise flush_error
            report = self._commit(started)
        except SnapdError as error:
            self._budget.refused(error)
            self._observer.snapshot_failed(failure_reason(error))
            wait_seconds = self._snapshots.failed(error)
            self._snapshot_at = time.monotonic() + min(
                self._settings.snapshot_interval_sec, max(1.0, wait_seconds)
            )
            self.final_error = error
            for request in requests:
                request.set_exception(error)
            return
        self.final_error = None
        self._snapshots.succeeded()
        # A commit that takes longer than the interval does not follow on itself: flushes get as
        # much time as commits do.
        ended = time.monotonic()
        self._snapshot_at = max(
            started + self._settings.snapshot_interval_sec, ended + (ended - started)
        )
        for request in requests:
            request.set_result(report.document())

    def _commit(self, started: float) -> SnapshotReport:
        session = self._link.session
        source = self._source_of(session) if session is not None else None
        if self._heat is None:
            self._heat = HeatBook(self._repository.catalog, self._traced)
        self._heat.update(session, source)
        settled = session is not None and session.settled.is_set() and not session.lost.is_set()
        summary = commit_in_room(self._repository, self._budget, settled=settled)
        self._admission.committed(session, source)
        self._awaits_manifest = False
        self._durable_until = self._flushed_until
        seconds = time.monotonic() - started
        written, self._written_bytes = self._written_bytes + summary.file_bytes, 0
        self._commit_seconds = seconds
        report = SnapshotReport(summary.generation, summary.blocks, written, seconds)
        self.last_snapshot = report
        self._observer.snapshot_done(summary.blocks, written, seconds, time.time())
        event(
            _logger,
            logging.INFO,
            "committed a snapshot",
            generation=summary.generation,
            blocks=summary.blocks,
            bytes=written,
            seconds=seconds,
            **({"not_pruned": summary.pruned.blocked} if summary.pruned.blocked else {}),
        )
        return report

    def _source_of(self, session: Session) -> Source:
        """One source a session, kept after the session is lost."""
        if self._source is None or self._source[0] is not session:
            if self._source is not None:
                self._source[1].close()
            self._source = (session, session.open_source())
            self._looks = 0
        return self._source[1]


def _answer(requests: list[Future[None]], error: SnapdError | None) -> None:
    for request in requests:
        if error is None:
            request.set_result(None)
        else:
            request.set_exception(error)


def _taken(queue: list[Future[Answer]]) -> list[Future[Answer]]:
    requests = queue[:]
    queue.clear()
    return requests


def _stopped() -> RefusedError:
    return RefusedError("the daemon is stopping, and has written what it will write")


def _nothing() -> None:
    """The store is not ours to stop."""
