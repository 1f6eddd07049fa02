"""`Compactor`: the thread that keeps the repository inside its budget.

It looks every few seconds and does what `plan_space` says, in this order: delete what is obsolete,
let older generations go, let the coldest blocks go, clean packs. The flusher goes on meanwhile;
what copies will take is kept from it beforehand.

Crash argument: nothing here is a step of its own on disk. What is dropped is only left out of the
next manifest, so after a crash it is there again and is dropped again; copies are packs like all
others, and their sources are deleted by the pruner after a manifest without them has been read
back.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, Protocol

import numpy as np

from snapd.attach.backoff import Backoff
from snapd.attach.session import Link, Session
from snapd.blocks.keys import I64
from snapd.config import event
from snapd.errors import SnapdError
from snapd.flusher.budget import Budget, SpaceState
from snapd.flusher.reasons import failure_reason
from snapd.plans.residency import COLDER
from snapd.plans.space import SpacePlan, plan_space
from snapd.repository import Repository
from snapd.repository.space import SpaceColumns

_LOOK_SECONDS = 2.0
_PAUSE_SECONDS_MAX = 60.0
"""Longest wait after relief that brought nothing: a reader's pin, say, keeps everything, and each
commit would only add a manifest."""
_logger = logging.getLogger(__name__)


class CompactionObserver(Protocol):
    """Who counts; see `snapd.metrics.Metrics`."""

    def dropped(self, reason: str, blocks: int) -> None:
        """Blocks left the disk because there is no room for them."""

    def compacted(self, packs: int, blocks: int, bytes_written: int) -> None:
        """Packs were gone through; so many blocks were copied."""

    def compaction_failed(self, reason: str) -> None:
        """A look, or what it led to, failed and will be tried again."""

    def quarantined(self, reason: str, blocks: int) -> None:
        """Blocks failed verification."""


class Compactor:
    """A thread's work: look, relieve, look again."""

    def __init__(
        self,
        repository: Repository,
        link: Link,
        budget: Budget,
        *,
        pace: Callable[[int], None],
        drop_cold: Callable[[Session, I64], None],
        request_commit: Callable[[], Future[Mapping[str, Any]]],
        observer: CompactionObserver,
        stopping: threading.Event,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`drop_cold` takes back cold registrations of rows that are not live, and that resident
        blocks, in the slots that it is given, are on disk. It is called with the residency's lock
        held and raises `SnapdError` where the store does not answer."""
        self._repository = repository
        self._link = link
        self._budget = budget
        self._pace = pace
        self._drop_cold = drop_cold
        self._request_commit = request_commit
        self._observer = observer
        self._stopping = stopping
        self._commit: Future[Mapping[str, Any]] | None = None
        self._clock = clock
        self._used_before = 0
        """Usage when the last commit was asked for; 0 when that has been looked at."""
        self._pause_seconds = 0.0
        self._paused_until = 0.0
        self._planned = -1
        """Generation after which the last plan was made."""
        self.backoff = Backoff(_logger, "relieve the disk", first_seconds=1.0, most_seconds=30.0)
        self.state: SpaceState | None = None
        """The last look; None before the first."""
        self.dropped = 0
        """Blocks dropped so far."""
        self.copied_bytes = 0
        """Bytes written by cleaning so far."""

    def run(self) -> None:
        """Until the daemon stops."""
        while not self._stopping.wait(_LOOK_SECONDS):
            try:
                self.look()
                self.backoff.succeeded()
            except SnapdError as error:
                self._budget.refused(error)
                self._observer.compaction_failed(failure_reason(error))
                self._stopping.wait(self.backoff.failed(error))

    def look(self) -> SpacePlan | None:
        """One look and what it takes; the plan that was carried out. Raises DiskError."""
        if self._commit is not None and not self._commit.done():
            return None
        self._commit = None
        self.state = state = self._budget.look()
        if self._helped_little(state.use.total):
            return None
        session = self._link.session
        if session is None or session.lost.is_set() or not session.settled.is_set():
            # Until a store has got back what it lost, nothing leaves the disk.
            return None
        over = state.use.total > state.limits.start
        if not over and self._planned == self._repository.generation:
            return None
        self._planned = self._repository.generation
        columns, plan = self._plan(state)
        self._budget.pressed = plan.pressed and plan.shrink_retention
        if plan.shrink_retention:
            # Before anything is given up: what only older generations hold. It needs no manifest,
            # so it works on a disk that is really full.
            pruned = self._repository.prune(retain=1)
            if pruned.packs or pruned.manifests:
                self.state = state = self._budget.look()
                columns, plan = self._plan(state)
        if len(plan.drop):
            self._drop(session, columns.row[plan.drop])
        if len(plan.compact):
            self._compact(columns.sequence[plan.compact], plan)
        if plan.commit and not self._stopping.is_set():
            self._used_before = state.use.total
            self._commit = self._request_commit()
        return plan

    def _helped_little(self, used: int) -> bool:
        """Whether to wait, because the last commit did not bring back what it should."""
        now = self._clock()
        if self._used_before:
            helped = used < self._used_before
            self._pause_seconds = 0.0 if helped else max(_LOOK_SECONDS, 2 * self._pause_seconds)
            self._pause_seconds = min(self._pause_seconds, _PAUSE_SECONDS_MAX)
            self._paused_until = now + self._pause_seconds
            self._used_before = 0
        return now < self._paused_until

    def _plan(self, state: SpaceState) -> tuple[SpaceColumns, SpacePlan]:
        columns = self._repository.space_columns(self._repository.retain - 1)
        packs = int(columns.packs.file_bytes.sum())
        plan = plan_space(
            columns.packs,
            columns.rows,
            state.limits,
            other_bytes=state.use.total - packs,
            pack_bytes_max=state.pack_bytes_max,
            copy_bytes_max=self._budget.write_room(),
            own=state.own,
        )
        return columns, plan

    def _drop(self, session: Session, rows: I64) -> None:
        """Let blocks go. Those that the store still has in memory are left out from now on; those
        that it could only serve from disk it forgets."""
        catalog, residency = self._repository.catalog, session.residency
        bound = self._budget.own_bound
        with residency.lock:
            rows = rows[catalog.is_live(rows)]
            catalog.set_live(rows, live=False)
            held = np.flatnonzero(
                (residency.sequence != 0) & ~residency.cold & np.isin(residency.row, rows)
            )
            residency.row[held] = COLDER
            self.dropped += len(rows)
            self._observer.dropped(bound, len(rows))
            # If the store does not answer, it serves them until it is asked for the next time.
            self._drop_cold(session, held)
        event(
            _logger,
            logging.INFO,
            "dropped the coldest blocks",
            blocks=len(rows),
            in_memory=len(held),
            limit=bound,
        )

    def _compact(self, packs: I64, plan: SpacePlan) -> None:
        with self._budget.reserving(plan.copy_bytes):
            done = self._repository.compact(
                packs.tolist(),
                pace=self._pace,
                adopting=self._link.adopting,
                stop=self._stopping.is_set,
            )
        self.copied_bytes += done.written_bytes
        self._observer.compacted(done.packs, done.copied, done.written_bytes)
        self._observer.quarantined("pack", done.rejected)
        event(
            _logger,
            logging.INFO,
            "compacted packs",
            packs=done.packs,
            blocks=done.copied,
            bytes=done.written_bytes,
            pressed=plan.pressed,
        )
