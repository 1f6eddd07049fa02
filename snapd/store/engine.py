"""`StoreEngine`: the store without its socket. Requests in, replies out, time as an argument.

Each connection sends one request at a time. `handle` returns its reply, or None when the reply
comes later out of `due`: for gets of cold blocks, removals that the daemon has to make durable,
and the daemon's long polls.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from snapd.blocks.keys import I64
from snapd.config import event
from snapd.errors import ProtocolError
from snapd.formats.segment import SlotState
from snapd.store.answers import RemovalAnswers
from snapd.store.batches import codes_reply, padded_keys
from snapd.store.blocks import BlockStore
from snapd.store.cold import Cold
from snapd.store.daemon import DaemonSession
from snapd.store.events import EventQueue
from snapd.store.labels import Label, Labels
from snapd.store.listing import KeyListing
from snapd.store.loads import LoadQueue
from snapd.store.pins import Pins
from snapd.store.puts import Puts
from snapd.store.reads import Reads
from snapd.store.removals import Removals
from snapd.store.room import Room
from snapd.store.waits import Polls, Wait, Waits
from snapd.wire import messages as m
from snapd.wire.codes import ReturnCode

_LOG = logging.getLogger(__name__)

WAITING_GETS_MAX = 1024
WAIT_SECONDS_MAX = 60.0
"""Longest that any request waits for its reply."""

NAME_LENGTH_MAX = 64
DAEMON_ID_BYTES_MAX = 64
TICK_SECONDS = 1.0
ROLES = ("client", "daemon", "operator")


@dataclass(slots=True)
class Client:
    """One connection that said `Hello`."""

    writer: int
    role: str
    name: str
    label: Label
    polls: dict[str, Wait] = field(default_factory=dict)


class StoreEngine:
    """All state of a serving store; not safe for two threads at once."""

    def __init__(self, blocks: BlockStore, *, now: float, version: str) -> None:
        self._blocks = blocks
        self._version = version
        self._started = now
        self._clients: dict[int, Client] = {}
        self._waits = Waits()
        self._daemon = DaemonSession(blocks)
        self._events = EventQueue(blocks)
        self._labels = Labels(blocks)
        self._loads = LoadQueue()
        self._reads = Reads(blocks, self._daemon)
        self._listing = KeyListing(blocks, self._daemon)
        self._removals = Removals(blocks, self._daemon, self._events)
        room = Room(blocks, self._daemon)
        self._puts = Puts(blocks, room, self._daemon, self._removals)
        self._cold = Cold(blocks, room, self._daemon)
        self._answers = RemovalAnswers(self._waits, self._daemon, self._events)
        self._pins = Pins(blocks)
        self._load_polls = Polls(self._waits)
        self._event_polls = Polls(self._waits)
        self._gets_waiting = 0
        self._next_tick = now + TICK_SECONDS
        blocks.on_cold_left = self._cold_left
        room.on_slots_short = self._removals.make_room
        blocks.on_corrupt = self._events.corrupt
        self._cold.on_fill_failed = self._loads.settle
        self._loads.on_wanted = self._load_polls.wake
        self._loads.on_complete = self._waits.resolve
        self._events.on_posted = self._event_polls.wake
        self._handlers = self._table()

    # --- for the shell ------------------------------------------------------------------------

    def handle(self, connection: int, request: m.Request, now: float) -> m.Reply | None:
        """The reply to a request, or None: it comes out of `due` later.

        Raises ProtocolError when the request contradicts itself; the connection is to be closed.
        """
        if isinstance(request, m.Hello):
            return self._hello(connection, request, now)
        client = self._clients.get(connection)
        if client is None:
            raise ProtocolError("the first message of a connection must be hello")
        allowed, handler = self._handlers[type(request)]
        if client.role not in allowed:
            return m.Failure(
                ReturnCode.INVALID_PARAMS,
                f"{type(request).__name__} is not for the role {client.role!r}",
            )
        needs_attach = allowed == _DAEMON_ONLY and type(request) is not m.Attach
        if needs_attach and not self._daemon.is_attached(connection):
            return m.Failure(ReturnCode.INVALID_PARAMS, "attach first")
        reply: m.Reply | None = handler(connection, request, now)
        return reply

    def due(self, now: float) -> list[tuple[int, m.Reply]]:
        """(connection, reply) of requests that waited. Call after every `handle`,
        `connection_lost` and at `next_deadline`."""
        if now >= self._next_tick:
            self._next_tick = now + TICK_SECONDS
            self._blocks.reclaim()
            self._removals.bound_pending()
            if self._blocks.segment.heal_header():
                event(_LOG, logging.ERROR, "segment header damaged and written again")
        return self._waits.due(now)

    def next_deadline(self) -> float:
        """When to call `due` at the latest, on the engine's clock."""
        first = self._waits.next_deadline()
        return self._next_tick if first is None else min(first, self._next_tick)

    def connection_lost(self, connection: int) -> None:
        """A connection is closed: what it reserved, pinned or waited for is given up."""
        self._waits.lost(connection)
        client = self._clients.pop(connection, None)
        if client is None:
            return
        self._pins.lost(connection)
        self._labels.leave(client.label)
        if self._daemon.is_attached(connection):
            self._loads.asker_lost(connection, self._cold.forget_fills(client.writer))
            if self._daemon.detach(connection):
                event(_LOG, logging.WARNING, "daemon detached", name=client.name)
                self._loads.give_up()
                self._answers.daemon_gone()
        self._blocks.writer_lost(client.writer)

    def stats(self, now: float) -> m.StatsReply:
        """Counters and gauges."""
        blocks, state = self._blocks, self._blocks.book.state
        counters, unit = blocks.counters, 4096
        return m.StatsReply(
            blocks=int((state == SlotState.PUBLISHED).sum()),
            cold_blocks=int((state == SlotState.COLD).sum()),
            bytes_used=blocks.space.used_units * unit,
            bytes_capacity=blocks.segment.geometry.data_bytes,
            slots_used=len(state) - blocks.book.free_count,
            slots_capacity=len(state),
            hits=counters.hits,
            misses=counters.misses,
            puts=counters.puts,
            evictions=counters.evictions,
            removals=counters.removals,
            corrupt=counters.corrupt,
            loads_waiting=len(self._loads),
            writers_lingering=len(blocks.lingering.keys() | blocks.space.withheld_until_gone),
            clients=len(self._clients),
            daemon_attached=self._daemon.attached,
            epoch=blocks.segment.epoch,
            uptime_seconds=now - self._started,
            adopted_blocks=counters.adopted_blocks,
            dropped_slots=counters.dropped_slots,
            offloaded=counters.offloaded,
        )

    # --- handlers -----------------------------------------------------------------------------

    def _table(self) -> dict[type[m.Message], tuple[frozenset[str], Callable[..., m.Reply | None]]]:
        """Who may send which request, and who answers it: handler(connection, request, now)."""
        return {
            m.PutStart: (_WRITERS, self._put_start),
            m.PutEnd: (_WRITERS, self._put_end),
            m.PutRevoke: (_WRITERS, lambda c, r, _: self._puts.revoke(r, self._writer(c))),
            m.GetStart: (_WRITERS, self._get_start),
            m.Query: (_ALL, lambda _, r, __: self._reads.query(r)),
            m.ListKeys: (_WRITERS, lambda _, r, __: self._listing.page(r)),
            m.Exist: (_WRITERS, lambda _, r, now: self._reads.exist(r, now)),
            m.Remove: (_WRITERS, self._remove),
            m.RemoveAll: (_WRITERS, self._remove_all),
            m.ReportCorrupt: (_WRITERS, lambda _, r, __: self._reads.report_corrupt(r)),
            m.Stats: (_ALL, lambda _, __, now: self.stats(now)),
            m.Attach: (_DAEMON_ONLY, self._attach),
            m.RegisterCold: (_DAEMON_ONLY, lambda _, r, now: self._cold.register(r, now)),
            m.ColdReady: (_DAEMON_ONLY, self._cold_ready),
            m.MarkDurable: (_DAEMON_ONLY, lambda _, r, __: self._cold.mark_durable(r)),
            m.DropCold: (_DAEMON_ONLY, lambda _, r, __: self._cold.drop(r)),
            m.LoadWait: (_DAEMON_ONLY, self._load_wait),
            m.FillStart: (_DAEMON_ONLY, self._fill_start),
            m.FillEnd: (
                _DAEMON_ONLY,
                lambda c, r, now: self._cold.fill_end(r, self._writer(c), now),
            ),
            m.PinBlocks: (_DAEMON_ONLY, lambda c, r, _: self._pins.pin(r, c)),
            m.UnpinBlocks: (_DAEMON_ONLY, lambda c, r, _: self._pins.unpin(r, c)),
            m.LabelsOf: (_DAEMON_ONLY, lambda _, r, __: self._labels.texts(r)),
            m.EventsWait: (_DAEMON_ONLY, self._events_wait),
        }

    def _writer(self, connection: int) -> int:
        return self._clients[connection].writer

    def _hello(self, connection: int, request: m.Hello, now: float) -> m.Reply:
        if request.protocol != m.PROTOCOL_VERSION:
            return m.Failure(
                ReturnCode.INVALID_PARAMS,
                f"protocol {request.protocol} is not {m.PROTOCOL_VERSION}: use one snapd version",
            )
        if request.role not in ROLES or connection in self._clients:
            return m.Failure(ReturnCode.INVALID_PARAMS, f"hello of role {request.role!r} refused")
        label = self._labels.enter(request.fingerprint)
        if isinstance(label, m.Failure):
            return label
        segment = self._blocks.segment
        writer = segment.take_writer()
        name = request.name[:NAME_LENGTH_MAX]
        self._clients[connection] = Client(writer, request.role, name, label)
        is_client = request.role == "client"
        own, others = self._labels.count(label, name, now) if is_client else (0, 0)
        return m.HelloReply(
            segment_path=segment.path,
            segment_id=segment.geometry.segment_id,
            boot_id=segment.boot_id,
            writer=writer,
            writer_lock_base=segment.geometry.writer_lock_base,
            lease_ms=int(self._blocks.settings.lease_sec * 1000),
            version=self._version,
            label_blocks=own,
            other_blocks=others,
        )

    def _without_lock(self, connection: int) -> m.Failure | None:
        """A refusal unless the connection's writer lock is held: only it proves, later, that
        nobody writes into the space any more."""
        if not self._blocks.segment.writer_is_gone(self._writer(connection)):
            return None
        return m.Failure(ReturnCode.INVALID_WRITE, "hold the writer lock before reserving space")

    def _put_start(self, connection: int, request: m.PutStart, now: float) -> m.Reply:
        refusal = self._without_lock(connection)
        client = self._clients[connection]
        return refusal or self._puts.start(request, client.writer, now, client.label)

    def _put_end(self, connection: int, request: m.PutEnd, now: float) -> m.Reply | None:
        """A put that replaces a block waits until the old version cannot come back."""
        posted, superseded = self._events.posted, self._removals.superseded
        reply = self._puts.end(request, self._writer(connection), now)
        if self._removals.superseded == superseded:
            return reply
        failed = self._puts.not_durable(request, reply)
        return self._answers.when_durable(connection, reply, failed, posted, now)

    def _fill_start(self, connection: int, request: m.FillStart, now: float) -> m.Reply:
        refusal = self._without_lock(connection)
        return refusal or self._cold.fill_start(request, self._writer(connection), now)

    def _get_start(self, connection: int, request: m.GetStart, now: float) -> m.Reply | None:
        keys = padded_keys(request.keys)
        cold = self._reads.cold_among(keys) if self._daemon.serves_cold else _NO_ROWS
        may_wait = (
            request.wait_ms > 0
            and self._gets_waiting < WAITING_GETS_MAX
            and self._loads.has_room(len(cold))
        )
        if not len(cold) or not may_wait:
            return self._reads.get(keys, now)
        self._blocks.lease(cold, now)
        self._gets_waiting += 1

        def leave() -> None:
            self._gets_waiting -= 1
            self._loads.leave(wait)

        def finish(later: float) -> m.Reply:
            leave()
            return self._reads.get(keys, later)

        wait = Wait(connection, now + _seconds(request.wait_ms), finish, leave)
        self._waits.add(wait)
        self._loads.want(cold, wait)
        return None

    def _remove(self, connection: int, request: m.Remove, now: float) -> m.Reply | None:
        before = self._events.posted
        codes = self._removals.remove(request, now)
        # Where a key was not found in memory, it may be on disk.
        failed = np.where(codes == ReturnCode.OBJECT_HAS_LEASE, codes, ReturnCode.WRITE_FAIL)
        return self._answers.when_durable(
            connection, codes_reply(codes), codes_reply(failed), before, now
        )

    def _remove_all(self, connection: int, request: m.RemoveAll, now: float) -> m.Reply | None:
        before = self._events.posted
        reply = m.Count(self._removals.remove_all(now, force=request.force))
        failed = m.Failure(ReturnCode.WRITE_FAIL, "removed in memory, but not on disk yet")
        return self._answers.when_durable(connection, reply, failed, before, now)

    def _attach(self, connection: int, request: m.Attach, _: float) -> m.Reply:
        if not 1 <= len(request.daemon_id) <= DAEMON_ID_BYTES_MAX:
            return m.Failure(ReturnCode.INVALID_PARAMS, "a daemon id has 1 to 64 bytes")
        first = not self._daemon.attached
        if first:
            self._removals.check_pending()
        is_new = self._daemon.attach(request.daemon_id, connection)
        if is_new is None:
            return m.Failure(ReturnCode.OBJECT_ALREADY_EXISTS, "another daemon is attached")
        if first:
            self._events.restart(same_daemon=not is_new)
            event(_LOG, logging.INFO, "daemon attached", name=self._clients[connection].name)
        return m.Attached(self._blocks.segment.epoch)

    def _cold_ready(self, _: int, request: m.ColdReady, __: float) -> m.Reply:
        self._blocks.drop(self._daemon.ready(offloads=request.offload))
        return codes_reply(np.empty(0, np.int32))

    def _load_wait(self, connection: int, request: m.LoadWait, now: float) -> m.Reply | None:
        rows = self._loads.take(connection)
        if len(rows) or request.wait_ms <= 0:
            return self._wanted(rows)
        self._load_polls.add(
            connection,
            now + _seconds(request.wait_ms),
            lambda _: self._wanted(self._loads.take(connection)),
        )
        return None

    def _wanted(self, rows: I64) -> m.Wanted:
        sequences = self._blocks.book.records["sequence"][rows]
        return m.Wanted(rows.astype(np.uint32).tobytes(), sequences.tobytes())

    def _events_wait(self, connection: int, request: m.EventsWait, now: float) -> m.Reply | None:
        self._daemon.listening = True
        batch = self._events.take(request.ack)
        self._answers.acknowledged()
        if batch is not None or request.wait_ms <= 0:
            return batch or self._events.nothing()
        self._event_polls.add(
            connection,
            now + _seconds(request.wait_ms),
            lambda _: self._events.take(0) or self._events.nothing(),
        )
        return None

    def _cold_left(self, rows: I64) -> None:
        self._cold.left(rows)
        self._loads.settle(rows)


_ALL = frozenset(ROLES)
_WRITERS = frozenset(("client", "daemon"))
_DAEMON_ONLY = frozenset(("daemon",))
_NO_ROWS: I64 = np.empty(0, np.int64)


def _seconds(milliseconds: int) -> float:
    return min(milliseconds / 1000, WAIT_SECONDS_MAX)
