"""`StoreServer`: the store's socket around `StoreEngine`. Moves bytes and time, decides nothing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from snapd.config import event
from snapd.errors import SnapdError
from snapd.store.complaints import Complaints
from snapd.store.connection import ClientConnection
from snapd.store.engine import StoreEngine
from snapd.wire import messages as m
from snapd.wire.codes import ReturnCode
from snapd.wire.listen import BACKLOG, allow_descriptors, bind_socket
from snapd.wire.peers import peer_of, refusal_of_peer

_LOG = logging.getLogger(__name__)

SOCKET_NAME = "store.sock"
CLIENTS_MAX = 1024
CLIENTS_PER_PROCESS_MAX = 256
"""So that a process that forgets its connections does not shut everybody else out."""

REFUSED_MAX = 64
"""Connections beyond those that stay until they have been told why they are refused."""

HELD_BYTES_MAX = 256 * 2**20
"""Half frames, requests and unread replies of all connections together."""

RECEIVE_BUFFER_BYTES = 1 << 18
_LIGHT_BYTES = 1 << 16
"""Connections that hold less are not counted."""


class StoreServer:
    """Serves one engine on a Unix socket until SIGTERM or SIGINT, or until `fail`."""

    def __init__(
        self,
        engine: StoreEngine,
        socket_path: Path,
        on_ready: Callable[[], None],
        *,
        group_shared: bool = False,
    ) -> None:
        """`on_ready` is called once, when clients can connect; with `group_shared`, processes of
        our group are clients, too."""
        self._engine = engine
        self._on_ready = on_ready
        self._path = socket_path
        self._group_shared = group_shared
        self._connections: dict[int, ClientConnection] = {}
        self._processes: dict[int, int] = {}
        self._refused = 0
        self._held: dict[int, int] = {}
        self._complaints = Complaints()
        self.receive_buffer = bytearray(RECEIVE_BUFFER_BYTES)
        """One for all: what was received is copied out before anybody else receives."""
        self._next_connection = 1
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopped: asyncio.Future[None] | None = None
        self._failure: SnapdError | None = None

    async def run(self) -> None:
        """Bind the socket and serve. Raises OSError (see `bind_socket`), or what `fail` was given.

        Whoever can connect can rely on SIGTERM ending the store politely.
        """
        loop = asyncio.get_running_loop()
        self._loop, self._stopped = loop, loop.create_future()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, None)
        loop.set_exception_handler(self._loop_failed)
        allow_descriptors(2 * CLIENTS_MAX)
        listener = bind_socket(self._path, group_shared=self._group_shared)
        server = await loop.create_unix_server(
            lambda: ClientConnection(self), sock=listener, backlog=BACKLOG
        )
        self._schedule()
        self._on_ready()
        if self._failure is not None:
            self._stop(self._failure)
        try:
            await self._stopped
        finally:
            server.close()
            for connection in list(self._connections.values()):
                connection.close()
            if self._timer is not None:
                self._timer.cancel()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)

    def fail(self, error: SnapdError) -> None:
        """End `run` with an error, or its next call; may be called from another thread."""
        self._failure = error
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._stop, error)

    def _stop(self, error: SnapdError | None) -> None:
        if self._stopped is not None and not self._stopped.done():
            if error is None:
                self._stopped.set_result(None)
            else:
                self._stopped.set_exception(error)

    # --- connections --------------------------------------------------------------------------

    def connected(self, connection: ClientConnection, transport: asyncio.Transport) -> int:
        """The number of a new connection; 0 if it is not to be served."""
        refusal = self._refusal_of(transport.get_extra_info("socket"))
        if refusal is not None:
            self.complain("connection refused", why=refusal.message)
            if self._refused < REFUSED_MAX:
                self._refused += 1
                connection.refusal = refusal
            return 0
        number = self._next_connection
        self._next_connection += 1
        self._connections[number] = connection
        self._processes[number] = peer_of(transport.get_extra_info("socket")).process
        return number

    def _refusal_of(self, connected: socket.socket) -> m.Failure | None:
        stranger = refusal_of_peer(connected, group_shared=self._group_shared)
        if stranger is not None:
            return m.Failure(ReturnCode.INVALID_PARAMS, stranger)
        process = peer_of(connected).process
        if len(self._connections) >= CLIENTS_MAX:
            return m.Failure(ReturnCode.RPC_FAIL, f"the store has {CLIENTS_MAX} connections")
        theirs = Counter(self._processes.values())[process] if process else 0
        if theirs >= CLIENTS_PER_PROCESS_MAX:
            return m.Failure(ReturnCode.RPC_FAIL, f"process {process} has {theirs} connections")
        return None

    def disconnected(self, connection: ClientConnection, number: int) -> None:
        """A connection is gone."""
        if connection.refusal is not None:
            self._refused -= 1
        self._held.pop(number, None)
        self._processes.pop(number, None)
        if self._connections.pop(number, None) is not None:
            self._engine.connection_lost(number)
            self._send_due()

    def holds(self, number: int, count: int) -> None:
        """Note the memory that a connection takes; whoever takes most goes when it is too much."""
        if count < _LIGHT_BYTES:
            self._held.pop(number, None)
            return
        self._held[number] = count
        if sum(self._held.values()) > HELD_BYTES_MAX:
            heaviest = max(self._held, key=self._held.__getitem__)
            del self._held[heaviest]
            connection = self._connections.get(heaviest)
            if connection is not None:
                connection.abort("clients hold too much memory")

    def complain(self, message: str, **fields: object) -> None:
        """Log what a client does wrong, not more often than is useful."""
        self._complaints.log(message, **fields)

    def _loop_failed(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Errors of asyncio. Out of descriptors it stops accepting for a second by itself."""
        error = context.get("exception")
        if isinstance(error, OSError):
            self.complain("cannot accept connections", why=error.strerror)
        else:
            event(_LOG, logging.ERROR, "event loop", why=context["message"], error=error)

    def serve(self, number: int, request: m.Request) -> m.Reply | None:
        """Carry a request out. Raises ProtocolError."""
        return self._engine.handle(number, request, time.monotonic())

    def after_requests(self) -> None:
        """Send what has become due."""
        self._send_due()

    def _send_due(self) -> None:
        for number, reply in self._engine.due(time.monotonic()):
            connection = self._connections.get(number)
            if connection is not None:
                connection.answer_waiting(reply)
        self._schedule()

    def _schedule(self) -> None:
        if self._loop is None or (self._stopped is not None and self._stopped.done()):
            return
        if self._timer is not None:
            self._timer.cancel()
        delay = max(0.0, self._engine.next_deadline() - time.monotonic())
        self._timer = self._loop.call_later(delay, self._send_due)
