"""`StoreServer`: the store's socket around `StoreEngine`. Moves bytes and time, decides nothing."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
import stat
import time
from collections.abc import Callable
from pathlib import Path

from snapd.config import event
from snapd.errors import ProtocolError, SnapdError
from snapd.store.engine import StoreEngine
from snapd.wire import messages as m
from snapd.wire.codes import ReturnCode
from snapd.wire.framing import Frame, FrameDecoder, encode_frame

_LOG = logging.getLogger(__name__)

SOCKET_NAME = "store.sock"
CLIENTS_MAX = 1024
FRAME_SECONDS_MAX = 5.0
"""A frame that has begun must be complete after this long."""

UNREAD_BYTES_MAX = 32 * 2**20
"""Replies that a client does not read; beyond this its connection is closed."""

REQUESTS_AHEAD_MAX = 4
"""Requests that may lie unanswered behind one that waits."""

RECEIVE_BUFFER_BYTES = 1 << 18


class StoreServer:
    """Serves one engine on a Unix socket until SIGTERM or SIGINT, or until `fail`."""

    def __init__(
        self, engine: StoreEngine, socket_path: Path, on_ready: Callable[[], None]
    ) -> None:
        """`on_ready` is called once, when clients can connect."""
        self._engine = engine
        self._on_ready = on_ready
        self._path = socket_path
        self._connections: dict[int, _Connection] = {}
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
        listener = bind_socket(self._path)
        server = await loop.create_unix_server(
            lambda: _Connection(self), sock=listener, backlog=128
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

    def connected(self, connection: _Connection) -> int:
        """The number of a new connection, 0 if there are too many."""
        if len(self._connections) >= CLIENTS_MAX:
            event(_LOG, logging.WARNING, "too many connections", connections_max=CLIENTS_MAX)
            return 0
        number = self._next_connection
        self._next_connection += 1
        self._connections[number] = connection
        return number

    def disconnected(self, number: int) -> None:
        """A connection is gone."""
        if self._connections.pop(number, None) is not None:
            self._engine.connection_lost(number)
            self._send_due()

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


class _Connection(asyncio.BufferedProtocol):
    """One client: frames in, frames out, one request at a time."""

    def __init__(self, server: StoreServer) -> None:
        self._server = server
        self._decoder = FrameDecoder()
        self._buffer = bytearray(RECEIVE_BUFFER_BYTES)
        self._frames: list[Frame] = []
        self._waiting: int | None = None
        self._number = 0
        self._unfinished: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client connected."""
        if not isinstance(transport, asyncio.Transport):
            raise TypeError("a stream transport was expected")
        self._transport = transport
        self._number = self._server.connected(self)
        if not self._number:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._set_frame_timer(running=False)
        self._transport = None
        self._server.disconnected(self._number)

    def get_buffer(self, sizehint: int) -> bytearray:
        """Where to put received bytes."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes arrived."""
        try:
            self._frames += self._decoder.receive_data(bytes(memoryview(self._buffer)[:nbytes]))
        except ProtocolError as error:
            self._refuse(0, error)
            return
        self._set_frame_timer(running=self._decoder.incomplete)
        self._work()
        if len(self._frames) > REQUESTS_AHEAD_MAX:
            self._refuse(0, ProtocolError("too many requests sent ahead of their replies"))

    def eof_received(self) -> bool:
        """The client will send no more: close."""
        return False

    def answer_waiting(self, reply: m.Reply) -> None:
        """The late reply to the request that this connection waits for."""
        if self._waiting is not None:
            request_id, self._waiting = self._waiting, None
            self._send(request_id, reply)
            self._work()

    def close(self) -> None:
        """Close after what was sent has been read."""
        if self._transport is not None:
            self._transport.close()

    def _work(self) -> None:
        """Carry out the requests that have come, up to one that waits."""
        while self._frames and self._waiting is None and self._transport is not None:
            frame = self._frames.pop(0)
            try:
                reply = self._server.serve(self._number, m.decode_request(frame.payload))
            except ProtocolError as error:
                self._refuse(frame.request_id, error)
                return
            if reply is None:
                # Reading goes on, because only a reader learns that its peer is gone.
                self._waiting = frame.request_id
            else:
                self._send(frame.request_id, reply)
            self._server.after_requests()

    def _send(self, request_id: int, reply: m.Reply) -> None:
        if self._transport is None:
            return
        self._transport.write(encode_frame(request_id, m.encode_message(reply)))
        if self._transport.get_write_buffer_size() > UNREAD_BYTES_MAX:
            event(_LOG, logging.WARNING, "client reads no replies", connection=self._number)
            self._transport.abort()

    def _refuse(self, request_id: int, error: ProtocolError) -> None:
        event(_LOG, logging.WARNING, "bad message", connection=self._number, why=str(error))
        self._frames.clear()
        self._send(request_id, m.Failure(ReturnCode.INVALID_PARAMS, str(error)))
        self.close()

    def _set_frame_timer(self, *, running: bool) -> None:
        """A client may be silent for ever between frames, but not inside one."""
        if running and self._unfinished is None:
            loop = asyncio.get_running_loop()
            self._unfinished = loop.call_later(FRAME_SECONDS_MAX, self._frame_is_late)
        elif not running and self._unfinished is not None:
            self._unfinished.cancel()
            self._unfinished = None

    def _frame_is_late(self) -> None:
        event(_LOG, logging.WARNING, "half a message", connection=self._number)
        if self._transport is not None:
            self._transport.abort()


def bind_socket(path: Path) -> socket.socket:
    """A listening socket at `path`, mode 0600, in a directory that only we can enter.

    The caller holds the segment's lock, so a socket file that nobody answers is a leftover.
    Raises OSError, or FileExistsError when somebody answers.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except FileExistsError as error:  # not to be taken for a store that answers
        raise NotADirectoryError(errno.ENOTDIR, "Not a directory", str(path.parent)) from error
    with (
        socket.socket(socket.AF_UNIX) as probe,
        contextlib.suppress(ConnectionRefusedError, FileNotFoundError),
    ):
        probe.settimeout(1.0)
        probe.connect(str(path))
        raise FileExistsError(f"another store answers at {path}")
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(f"{path} is no socket")
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        mask = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(mask)
        listener.listen(128)
    except BaseException:
        listener.close()
        raise
    return listener
