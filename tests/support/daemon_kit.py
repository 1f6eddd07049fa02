"""A daemon in this process, step by step: the real workers on the real engine, any disk."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from contextlib import closing
from typing import Any

import numpy as np
from store_kit import LocalStore

from snapd.attach.connect import BundledStore
from snapd.attach.labels import LabelIds
from snapd.attach.session import Link, Session
from snapd.attach.traced import TracedHeat
from snapd.blocks.keys import I64, U64
from snapd.blocks.table import U32
from snapd.daemon.events import EventsWorker
from snapd.disk import Disk
from snapd.disk.metered import MeteredDisk
from snapd.errors import StoreUnavailableError
from snapd.flusher.admission import Admission
from snapd.flusher.budget import Budget, pack_bytes_within
from snapd.flusher.commit import commit_in_room
from snapd.flusher.compactor import Compactor
from snapd.flusher.flush import Flush, FlushResult
from snapd.flusher.heat import HeatBook
from snapd.flusher.offload import Offloader
from snapd.metrics import Metrics
from snapd.repository import CompactionResult, ManifestSummary, Repository
from snapd.segment.view import SegmentView
from snapd.warmup.load import LoadResult, load_cold
from snapd.warmup.reconcile import Registrar, drop_dead
from snapd.wire import messages as m
from snapd.wire.connection import RequestFailedError


class LocalConnection:
    """`snapd.wire.connection.Connection` to an engine in this process."""

    def __init__(self, store: LocalStore) -> None:
        self._store = store
        self._engine = store.engine
        self.number, _ = store.connect()
        self.closed = False

    def call(self, request: Any, reply_type: type[Any], timeout_seconds: float = 5.0) -> Any:
        if self.closed or self._store.engine is not self._engine:
            raise StoreUnavailableError("the engine was killed")
        reply = self._store.send(self.number, request)
        if isinstance(reply, m.Failure):
            raise RequestFailedError(reply.code, reply.message)
        assert isinstance(reply, reply_type), reply
        return reply

    def close(self) -> None:
        if not self.closed and self._store.engine is self._engine:
            self._engine.connection_lost(self.number)
            self._store.collect()
        self.closed = True


class LocalDaemon:
    """Attach, flush, commit, load: each when told, on the calling thread."""

    def __init__(
        self,
        store: LocalStore,
        disk: Disk,
        *,
        bytes_max: int = 0,
        bytes_per_day_max: int = 0,
        pack_bytes_max: int = 1 << 20,
        clock: Callable[[], float] = time.monotonic,
        offloads: bool = False,
    ) -> None:
        """`bytes_max` and `bytes_per_day_max` are the budgets, 0 for none. `offloads` switches the
        SSD tier on."""
        self.store = store
        meter = MeteredDisk(disk)
        if bytes_max:
            pack_bytes_max = pack_bytes_within(pack_bytes_max, bytes_max)
        self.repository = Repository.open(meter, pack_bytes_max=pack_bytes_max)
        self.recovery = self.repository.recover()
        self.metrics = Metrics()
        self.link = Link()
        self.budget = Budget(
            self.repository,
            bytes_max=bytes_max,
            bytes_per_day_max=bytes_per_day_max,
            disk_reserve_bytes=0,
            pack_bytes_max=pack_bytes_max,
            bytes_written=lambda: meter.bytes_written,
            clock=clock,
        )
        self.budget.resume(self.recovery.write_debt_bytes)
        self.traced = TracedHeat(self.repository, clock=clock)
        self.admission = Admission(self.repository, self.budget, self.traced)
        self.compactor = Compactor(
            self.repository,
            self.link,
            self.budget,
            pace=lambda _: None,
            drop_cold=self._drop_cold,
            request_commit=self._commit_now,
            observer=self.metrics,
            stopping=threading.Event(),
            clock=clock,
        )
        self.heat = HeatBook(self.repository.catalog, self.traced)
        self.offloader = Offloader(self.repository, self.metrics)
        self._offloads = offloads
        self.events = EventsWorker(self.repository, self.link, self.metrics, threading.Event())
        self.registrar = Registrar(self.repository, self)
        self.session: Session | None = None
        self.compacts_while_attaching = False
        """Whether blocks move while they are being registered."""
        self._daemon_id = secrets.token_bytes(16)
        self._attached: BundledStore | None = None
        self._looks = 0

    def attach(self) -> None:
        """As the keeper does: journal what the store has to say, then register what is missing."""
        previous, before = self.session, self._attached
        control = LocalConnection(self.store)
        hello, epoch = self._hello(control)
        same = before is not None and before.segment_id == hello.segment_id
        view = before.view if same else SegmentView(hello.segment_path, hello.segment_id)
        if before is not None and not same:
            before.view.close()
        self._attached = attached = BundledStore(
            view=view,
            segment_id=hello.segment_id,
            boot_id=hello.boot_id,
            epoch=epoch,
            version=hello.version,
            connect=self._connect,
            control=control,  # type: ignore[arg-type]
            labels=LabelIds(lambda: self.repository.fingerprints, self.repository.fingerprint),
            offloads=self._offloads,
        )
        incarnation = self.repository.incarnation(hello.segment_id)
        self.session = Session(
            segment_id=hello.segment_id,
            boot_id=hello.boot_id,
            ordinal=incarnation.ordinal,
            epoch_base=incarnation.epoch_base,
            epoch=epoch,
            residency=attached.begin(previous.residency if same and previous else None),
            open_source=attached.source,
            open_sink=attached.sink,
            open_feed=attached.feed,
            open_offload=attached.open_offload,
        )
        self.link.publish(self.session)
        self._looks = 0
        self.feed, self.ack = attached.feed(), 0
        self.events.begin(self.session)
        self.pump()
        with closing(attached.source()) as source, closing(attached.sink()) as sink:
            self.registrar.reconcile(self.session, source, sink)

    def pump(self) -> None:
        """Journal and acknowledge whatever happened in the store."""
        assert self.session is not None
        while True:
            number = self.events.take(self.session, self.feed.changes(self.ack, 0))
            if not number:
                return
            self.ack = number

    def settle_removals(self, session: Session) -> None:
        """`RemovalBarrier`."""
        if self.compacts_while_attaching:
            self.compact()
        self.pump()

    def flush(self, *, tell: bool = True) -> FlushResult:
        """Write what is new; with `tell`, the store hears what is durable."""
        assert self.session is not None
        with closing(self.session.open_source()) as source:
            flush = Flush(
                self.session,
                source,
                self.repository,
                lambda _: None,
                self.admission,
                self.traced,
                looks=self._looks,
            )
            result = flush.run()
        self._looks = flush.looks
        if tell:
            self.offloader.tell(self.session)
        return result

    def commit(self) -> ManifestSummary:
        assert self.session is not None
        with closing(self.session.open_source()) as source:
            self.heat.update(self.session, source)
            settled = self.session.settled.is_set()
            summary = commit_in_room(self.repository, self.budget, settled=settled)
            self.admission.committed(self.session, source)
        return summary

    def compact(self, *, leave: Collection[int] = ()) -> CompactionResult:
        """Copy what lives in all packs but those at these positions."""
        packs = self.repository.packs()
        chosen = [pack.sequence for at, pack in enumerate(packs) if at not in leave]
        return self.repository.compact(chosen, adopting=self.link.adopting)

    def plan(self, blocks_max: int = 1 << 30) -> tuple[U32, U64, I64]:
        """So many cold blocks to load: slots, sequences and catalog rows as of now."""
        assert self.session is not None
        residency = self.session.residency
        slots = residency.cold_slots()[:blocks_max]
        return slots.astype(np.uint32), residency.sequence[slots], residency.row[slots]

    def warm(
        self, blocks_max: int = 1 << 30, wanted: tuple[U32, U64, I64] | None = None
    ) -> LoadResult:
        """Load so many cold blocks, or those of an older plan."""
        assert self.session is not None
        wanted = self.plan(blocks_max) if wanted is None else wanted
        with closing(self.session.open_sink()) as sink:
            return load_cold(self.session, sink, self.repository, wanted, demand=True)

    def close(self) -> None:
        """As a kill leaves it: connections gone, nothing written."""
        if self._attached is not None:
            self.feed.close()
            self.offloader.close()
            self._attached.control.close()
            self._attached.view.close()
            self._attached = None
        self.repository.close()

    def _drop_cold(self, session: Session, resident: I64) -> None:
        with closing(session.open_sink()) as sink:
            drop_dead(session, sink, self.repository)
            if len(resident) and session.open_offload is not None:
                slots = resident.astype(np.uint32)
                sink.drop_cold(slots, session.residency.sequence[resident])

    def _commit_now(self) -> Future[Mapping[str, Any]]:
        future: Future[Mapping[str, Any]] = Future()
        future.set_result({"generation": self.commit().generation})
        return future

    def _hello(self, connection: LocalConnection) -> tuple[m.HelloReply, int]:
        hello = connection.call(m.Hello(m.PROTOCOL_VERSION, "daemon", "test"), m.HelloReply)
        return hello, connection.call(m.Attach(self._daemon_id), m.Attached).epoch

    def _connect(self) -> Any:
        connection = LocalConnection(self.store)
        hello, _ = self._hello(connection)
        return connection, hello.writer
