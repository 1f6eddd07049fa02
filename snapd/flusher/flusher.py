"""`Flusher`: the thread that brings new blocks to disk and commits snapshots over them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from snapd.attach.backoff import Backoff
from snapd.attach.port import Source
from snapd.attach.session import Link, Session
from snapd.config import Settings, event
from snapd.errors import DiskError, IntegrityError, SnapdError
from snapd.flusher.flush import Flush, FlushResult
from snapd.flusher.heat import HeatBook
from snapd.repository import Repository

_COMMIT_SHARE = 0.25
"""Share of the grace period that is kept for sealing the last pack and committing."""

_COMMITS_SHARE = 20.0
"""Snapshots out of turn take at most one part in so many of the time."""

_logger = logging.getLogger(__name__)


class FlushObserver(Protocol):
    """Who counts; see `snapd.metrics.Metrics`."""

    def flushed(self, blocks: int, bytes_written: int, seconds: float) -> None:
        """A flush ended well."""

    def left_without_slot(self, blocks: int) -> None:
        """Blocks on disk left the live set: the store has no slot for them."""

    def flush_failed(self, reason: str) -> None:
        """A flush failed and will be tried again."""

    def snapshot_done(
        self, blocks: int, bytes_written: int, seconds: float, timestamp: float
    ) -> None:
        """A manifest is durable."""

    def snapshot_failed(self, reason: str) -> None:
        """A snapshot failed."""


@dataclass(frozen=True, slots=True)
class SnapshotReport:
    """What one snapshot did."""

    generation: int
    blocks: int
    bytes_written: int
    """Packs sealed on its behalf and its manifest."""
    duration_seconds: float

    def document(self) -> Mapping[str, Any]:
        """As JSON types."""
        return {
            "generation": self.generation,
            "blocks": self.blocks,
            "bytes_written": self.bytes_written,
            "duration_seconds": self.duration_seconds,
        }


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
        pace: Callable[[int], None],
        observer: FlushObserver,
    ) -> None:
        self._repository = repository
        self._link = link
        self._settings = settings
        self._pace = pace
        self._observer = observer
        self._wake = threading.Condition()
        self._snapshot_requests: list[Future[Mapping[str, Any]]] = []
        self._flush_requests: list[Future[None]] = []
        self._stop_by: float | None = None
        self._quiesce: Callable[[], None] = _nothing
        self._source: tuple[Session, Source] | None = None
        self._heat: HeatBook | None = None
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
        self._written_bytes = 0
        self._commit_seconds = 0.0
        self.last_flush = FlushResult()
        self.last_snapshot: SnapshotReport | None = None
        self.final_error: SnapdError | None = None
        """Why the last snapshot, at the end, could not be committed; None if it was."""

    # --- called by other threads ----------------------------------------------------------------

    def lag_seconds(self) -> float:
        """Seconds since the moment up to which everything published is on disk."""
        return max(0.0, time.monotonic() - self._durable_until)

    @property
    def problems(self) -> list[str]:
        """What failed last and has not succeeded since."""
        return [error for error in (self._flushes.error, self._snapshots.error) if error]

    def request_snapshot(self) -> Future[Mapping[str, Any]]:
        """A snapshot as soon as possible. The future fails with `SnapdError`."""
        future: Future[Mapping[str, Any]] = Future()
        with self._wake:
            self._snapshot_requests.append(future)
            self._wake.notify()
        return future

    def flush_soon(self) -> Future[None]:
        """A flush as soon as possible. The future fails with `SnapdError`."""
        future: Future[None] = Future()
        with self._wake:
            self._flush_requests.append(future)
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
                snapshots, self._snapshot_requests = self._snapshot_requests, []
                flushes, self._flush_requests = self._flush_requests, []
            if stop_by is not None:
                self._finish(stop_by, snapshots, flushes)
                return
            now = time.monotonic()
            snapshot_due = bool(snapshots) or now >= self._snapshot_at
            if flushes or snapshot_due or now >= self._flush_at:
                error = self._flush(float("inf"))
                _answer(flushes, error)
                if snapshot_due:
                    self._snapshot(snapshots, error)

    def _has_work(self) -> bool:
        return bool(self._stop_by is not None or self._snapshot_requests or self._flush_requests)

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
        self._flush(writes_by)
        self._quiesce()
        error = self._flush(writes_by)
        _answer(flushes, error)
        # Even where blocks could not be written, what is in sealed packs gets its manifest.
        self._snapshot(snapshots, None)
        self.final_error = self.final_error or error

    def _flush(self, deadline: float) -> SnapdError | None:
        """One flush; the error that ended it, if one did."""
        started = time.monotonic()
        self._flush_at = started + self._settings.flush_sec
        session = self._link.session
        if session is None:
            self._flushed_until = self._durable_until = started
            return None
        flush = Flush(
            session, self._source_of(session), self._repository, self._pace, deadline, self._looks
        )
        try:
            result = flush.run()
        except SnapdError as error:
            self._observer.flush_failed(_reason(error))
            self._flush_at = time.monotonic() + max(
                self._settings.flush_sec, self._flushes.failed(error)
            )
            return error
        self._looks = flush.looks
        self._flushes.succeeded()
        self.last_flush = result
        self._written_bytes += result.written_bytes
        if result.no_slot:
            self._observer.left_without_slot(result.no_slot)
        self._note_revived(result, started)
        if result.complete:
            self._flushed_until = started
        if not self._awaits_manifest:
            self._durable_until = self._flushed_until
        self._observer.flushed(result.written, result.written_bytes, time.monotonic() - started)
        return None

    def _note_revived(self, result: FlushResult, now: float) -> None:
        """A block whose bytes an older pack has is durable only once a manifest says that it is
        live again. If the newest one does not, the next must not wait for its interval."""
        rows = np.concatenate([np.empty(0, np.int64), *result.revived])
        if not self._repository.catalog.is_committed(rows).all():
            self._awaits_manifest = True
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
            self._observer.snapshot_failed(_reason(error))
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
        self._snapshot_at = started + self._settings.snapshot_interval_sec
        for request in requests:
            request.set_result(report.document())

    def _commit(self, started: float) -> SnapshotReport:
        session = self._link.session
        source = self._source_of(session) if session is not None else None
        if self._heat is None:
            self._heat = HeatBook(self._repository.catalog)
        self._heat.update(session, source)
        settled = session is not None and session.settled.is_set() and not session.lost.is_set()
        summary = self._repository.commit(prune=settled)
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


def _reason(error: SnapdError) -> str:
    """The label of a failure; see `snapd.metrics.registry.SNAPSHOT_FAILURE_REASONS`."""
    if isinstance(error, DiskError):
        return "disk"
    return "integrity" if isinstance(error, IntegrityError) else "other"


def _answer(requests: list[Future[None]], error: SnapdError | None) -> None:
    for request in requests:
        if error is None:
            request.set_result(None)
        else:
            request.set_exception(error)


def _nothing() -> None:
    """The store is not ours to stop."""
