"""`Keeper`: keeps the daemon attached to whichever store there is, life after life."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import closing
from typing import Protocol

from snapd.attach.backoff import Backoff
from snapd.attach.port import AttachedStore, Connector
from snapd.attach.session import Link, Session
from snapd.config import event
from snapd.errors import SnapdError, StoreUnavailableError
from snapd.repository import Repository
from snapd.warmup.reconcile import Registrar
from snapd.wire.messages import StatsReply

_STATS_SECONDS = 1.0
_LAST_FLUSH_SECONDS = 10.0
_logger = logging.getLogger(__name__)


class KeeperObserver(Protocol):
    """Who counts; see `snapd.metrics.Metrics`."""

    def store_up(self, up: bool) -> None:
        """Whether the store answers."""

    def store_stats(self, now: StatsReply, before: StatsReply | None) -> None:
        """The store's counters."""


class Keeper:
    """A thread's work: attach, reconcile, watch, and begin again when the store is lost."""

    def __init__(
        self,
        repository: Repository,
        link: Link,
        connector: Connector,
        registrar: Registrar,
        observer: KeeperObserver,
        *,
        flush_soon: Callable[[], Future[None]],
        on_served: Callable[[], None],
        ended: threading.Event,
    ) -> None:
        """`flush_soon` has the flusher look at the session it has; `on_served` is called each time
        that every block is served."""
        self._repository = repository
        self._link = link
        self._connector = connector
        self._registrar = registrar
        self._observer = observer
        self._flush_soon = flush_soon
        self._on_served = on_served
        self._ended = ended
        self._store: AttachedStore | None = None
        self._backoff = Backoff(
            _logger, "attach to the store", first_seconds=0.02, most_seconds=0.25
        )
        self.stats: StatsReply | None = None
        """The store's last answer."""

    @property
    def problem(self) -> str:
        """Why the store cannot be attached to; empty if it can."""
        return self._backoff.error

    @property
    def store_version(self) -> str:
        """Of the store that is or was attached."""
        return self._store.version if self._store is not None else ""

    def run(self) -> None:
        """Until the daemon ends."""
        while not self._ended.is_set():
            try:
                session, store = self._attach()
                self._serve(session, store)
            except SnapdError as error:
                self._observer.store_up(up=False)
                self._ended.wait(self._backoff.failed(error))

    def _attach(self) -> tuple[Session, AttachedStore]:
        previous = self._link.session
        store = self._connector.attach(self._store)
        try:
            same_segment = previous is not None and previous.segment_id == store.segment_id
            if previous is not None and not same_segment:
                self._leave()
            incarnation = self._repository.incarnation(store.segment_id)
            known = previous.residency if previous is not None and same_segment else None
            residency = store.begin(known)
        except SnapdError:
            store.close()
            raise
        session = Session(
            segment_id=store.segment_id,
            boot_id=store.boot_id,
            ordinal=incarnation.ordinal,
            epoch_base=incarnation.epoch_base,
            epoch=store.epoch,
            residency=residency,
            open_source=store.source,
            open_sink=store.sink,
            open_feed=store.feed,
            open_remover=store.open_remover,
            open_offload=store.open_offload,
            serves_cold=store.serves_cold,
        )
        return session, store

    def _leave(self) -> None:
        """The segment is another one. What the old one still holds and no pack does is written
        first: the old file is mapped as long as we hold it, even if its name is gone. It must be
        now, because once the new store answers requests, an old block may be one that it removed.
        """
        try:
            self._flush_soon().result(_LAST_FLUSH_SECONDS)
        except (SnapdError, TimeoutError) as error:
            event(_logger, logging.WARNING, "left blocks in an abandoned segment", error=error)

    def _serve(self, session: Session, store: AttachedStore) -> None:
        retired = self._store or store
        self._store = store
        self._link.publish(session)
        event(
            _logger,
            logging.INFO,
            "attached to the store",
            segment=session.segment_id.hex(),
            boot=session.boot_id.hex(),
            incarnation=session.ordinal,
            store_version=store.version,
        )
        try:
            self._reconcile(session, store)
            self._backoff.succeeded()
            self._watch(session, store, retired)
        finally:
            session.lost.set()
            store.close()
            self._observer.store_up(up=False)
            # What was published and not yet written is safe only as long as the segment is.
            self._flush_soon()

    def _reconcile(self, session: Session, store: AttachedStore) -> None:
        while not session.drained.wait(0.1):
            if self._ended.is_set() or session.lost.is_set():
                raise StoreUnavailableError("the store was lost before its removals were read")
            self._look(store)
        with closing(store.source()) as source, closing(store.sink()) as sink:
            self._registrar.reconcile(session, source, sink)
        self._on_served()
        # The next look settles every slot; until then nothing that leaves is let go.
        self._flush_soon()

    def _watch(self, session: Session, store: AttachedStore, before: AttachedStore) -> None:
        retired: AttachedStore | None = before
        while not self._ended.is_set() and not session.lost.is_set():
            self._look(store)
            # Once the flusher has gone over to the new segment, what is put back from the old one
            # is back, and no lane writes into it any more, its memory can go.
            if retired is not None and _is_whole(session) and retired.leave(store):
                retired = None
            session.lost.wait(_STATS_SECONDS)

    def _look(self, store: AttachedStore) -> None:
        """Ask for the counters, which is the health check as well."""
        before, self.stats = self.stats, store.stats()
        if before is not None and before.uptime_seconds > self.stats.uptime_seconds:
            before = None
        self._observer.store_stats(self.stats, before)
        self._observer.store_up(up=True)


def _is_whole(session: Session) -> bool:
    """Whether nothing is needed any more of what the session before had: every slot is matched, and
    blocks that a store does not serve from disk are back."""
    return session.settled.is_set() and (session.serves_cold or session.warmed.is_set())
