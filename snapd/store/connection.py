"""`ClientConnection`: one client of the store's socket, as asyncio sees it."""

from __future__ import annotations

import asyncio
from typing import Protocol

from snapd.errors import ProtocolError
from snapd.wire import messages as m
from snapd.wire.codes import ReturnCode
from snapd.wire.framing import Frame, FrameDecoder, encode_frame

FRAME_SECONDS_MAX = 5.0
"""A frame that has begun must be complete after this long, and the first one must have come."""

UNREAD_BYTES_MAX = 32 * 2**20
"""Replies that a client does not read; beyond this its connection is closed."""

REQUESTS_AHEAD_MAX = 4
"""Requests that may lie unanswered behind one that waits."""


class ConnectionOwner(Protocol):
    """What a connection asks of its server."""

    @property
    def receive_buffer(self) -> bytearray:
        """Where received bytes go, until `buffer_updated` returns: one for all connections."""

    def connected(self, connection: ClientConnection, transport: asyncio.Transport) -> int:
        """The number of a new connection, 0 if it is not to be served: see `refusal`."""

    def disconnected(self, connection: ClientConnection, number: int) -> None:
        """A connection is gone."""

    def serve(self, number: int, request: m.Request) -> m.Reply | None:
        """Carry a request out. Raises ProtocolError."""

    def after_requests(self) -> None:
        """Send what has become due."""

    def holds(self, number: int, count: int) -> None:
        """So many bytes are kept for this connection: half a frame, requests, unread replies."""

    def complain(self, message: str, **fields: object) -> None:
        """Log what a client does wrong."""


class ClientConnection(asyncio.BufferedProtocol):
    """Frames in, frames out, one request at a time."""

    def __init__(self, server: ConnectionOwner) -> None:
        self._server = server
        self._decoder = FrameDecoder()
        self._frames: list[Frame] = []
        self._waiting: int | None = None
        self._number = 0
        self._late: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None
        self.refusal: m.Failure | None = None
        """The answer to its first request, before it is closed."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client connected."""
        if not isinstance(transport, asyncio.Transport):
            raise TypeError("a stream transport was expected")
        self._transport = transport
        self._number = self._server.connected(self, transport)
        if self._number or self.refusal:
            self._expect_frame(expected=True)
        else:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._expect_frame(expected=False)
        self._transport = None
        self._server.disconnected(self, self._number)

    def get_buffer(self, sizehint: int) -> bytearray:
        """Where to put received bytes."""
        return self._server.receive_buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes arrived."""
        received = bytes(memoryview(self._server.receive_buffer)[:nbytes])
        try:
            frames = self._decoder.receive_data(received)
        except ProtocolError as error:
            self._refuse(0, error)
            return
        if frames:
            self._expect_frame(expected=False)
            self._frames += frames
        if self._decoder.buffered:
            self._expect_frame(expected=True)
        self._work()
        if len(self._frames) > REQUESTS_AHEAD_MAX:
            self._refuse(0, ProtocolError("too many requests sent ahead of their replies"))
        self._account()

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

    def abort(self, why: str) -> None:
        """Close at once."""
        self._server.complain(why, connection=self._number)
        if self._transport is not None:
            self._transport.abort()

    def _work(self) -> None:
        """Carry out the requests that have come, up to one that waits."""
        while self._frames and self._waiting is None and self._transport is not None:
            frame = self._frames.pop(0)
            if self.refusal is not None:
                self._frames.clear()
                self._send(frame.request_id, self.refusal)
                self.close()
                return
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
            self.abort("client reads no replies")
        self._account()

    def _refuse(self, request_id: int, error: ProtocolError) -> None:
        self._server.complain("bad message", connection=self._number, why=str(error))
        self._frames.clear()
        self._send(request_id, m.Failure(ReturnCode.INVALID_PARAMS, str(error)))
        self.close()

    def _account(self) -> None:
        """Tell the server how much memory this connection takes."""
        count = self._decoder.buffered + sum(len(frame.payload) for frame in self._frames)
        if self._transport is not None:
            count += self._transport.get_write_buffer_size()
        self._server.holds(self._number, count)

    def _expect_frame(self, *, expected: bool) -> None:
        """A client may be silent for ever between frames, but not inside one."""
        if expected and self._late is None:
            loop = asyncio.get_running_loop()
            self._late = loop.call_later(FRAME_SECONDS_MAX, self._frame_is_late)
        elif not expected and self._late is not None:
            self._late.cancel()
            self._late = None

    def _frame_is_late(self) -> None:
        self.abort("half a message, or none")
