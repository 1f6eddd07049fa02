"""`Connection`: a blocking client of a Unix socket, one request at a time."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from snapd.errors import ProtocolError, SnapdError, StoreUnavailableError
from snapd.wire.framing import FrameDecoder, encode_frame
from snapd.wire.messages import Failure, Message, decode_reply, encode_message

ReplyType = TypeVar("ReplyType", bound=Message)

_RECEIVE_BYTES = 1 << 18


class RequestFailedError(SnapdError):
    """The store answered `Failure`; `code` is a `ReturnCode`."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class UnansweredError(StoreUnavailableError):
    """The request was sent whole and the connection ended before its reply: it may have been
    carried out, or not. Where sending failed, it has not been."""


class Connection:
    """Not safe for use by two threads at once: give each thread its own.

    After any `StoreUnavailableError` or `ProtocolError` it is closed for good, because a late reply
    could otherwise be taken for another request's.
    """

    def __init__(
        self,
        path: str,
        timeout_seconds: float = 5.0,
        *,
        peer: str = "store",
        decode: Callable[[bytes], Message] = decode_reply,
    ) -> None:
        """Connect. `peer` names the other end in errors, `decode` reads its replies.

        Raises StoreUnavailableError when nobody listens at `path`.
        """
        self._path = path
        self._peer = peer
        self._decode = decode
        self._decoder = FrameDecoder()
        self._request_id = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        # A connect that does not block fails at once while the store's backlog is full.
        seconds, rest = divmod(timeout_seconds, 1)
        until = struct.pack("@ll", int(seconds), max(1, int(rest * 1_000_000)))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, until)
        try:
            self._socket.connect(path)
        except OSError as error:
            self._socket.close()
            raise StoreUnavailableError(f"no {peer} answers at {path}: {error}") from error

    @property
    def closed(self) -> bool:
        """Whether the connection can no longer be used."""
        return self._socket.fileno() < 0

    def call(
        self,
        request: Message,
        reply_type: type[ReplyType],
        timeout_seconds: float = 5.0,
        *,
        descriptors: Sequence[int] = (),
    ) -> ReplyType:
        """Send a request, with copies of these descriptors, and wait for its reply.

        Raises StoreUnavailableError when the connection breaks, `UnansweredError` among them when
        the request was sent, or at the deadline; ProtocolError on a reply of another type,
        RequestFailedError when the store refuses.
        """
        self._request_id = (self._request_id + 1) & 0xFFFFFFFF
        deadline = time.monotonic() + timeout_seconds
        failure = StoreUnavailableError
        try:
            self._socket.settimeout(timeout_seconds)
            frame = encode_frame(self._request_id, encode_message(request))
            if descriptors:
                frame = frame[socket.send_fds(self._socket, [frame], descriptors) :]
            if frame:  # a peer that has answered may be gone, and sending nothing fails then too
                self._socket.sendall(frame)
            failure = UnansweredError
            reply = self._receive(deadline)
        except (OSError, ProtocolError) as error:
            self.close()
            if isinstance(error, ProtocolError):
                raise
            raise failure(f"the {self._peer} at {self._path} is away: {error}") from error
        if isinstance(reply, Failure):
            raise RequestFailedError(reply.code, reply.message)
        if not isinstance(reply, reply_type):
            self.close()
            raise ProtocolError(f"expected {reply_type.__name__}, got {type(reply).__name__}")
        return reply

    def close(self) -> None:
        """Close; idempotent."""
        with contextlib.suppress(OSError):
            self._socket.close()

    def _receive(self, deadline: float) -> Message:
        while True:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise TimeoutError("no answer within the deadline")
            self._socket.settimeout(remaining)
            data = self._socket.recv(_RECEIVE_BYTES)
            if not data:
                raise ConnectionResetError(f"the {self._peer} closed the connection")
            for frame in self._decoder.receive_data(data):
                if frame.request_id != self._request_id:
                    raise ProtocolError(f"reply to request {frame.request_id} was not asked for")
                return self._decode(frame.payload)
