"""`HttpPeer`: asks one of Mooncake's processes over HTTP, and trusts nothing about the answer.

`http.client` bounds each single receive; a peer that sends a byte a second would keep it for ever.
Here the deadline is for the whole call, and a body has a limit and must have come whole: a listing
that was cut short must never be taken for one of few keys.
"""

from __future__ import annotations

import http.client
import socket
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from snapd.errors import ProtocolError, SettingError, StoreUnavailableError

OLDEST_MOONCAKE = "0.3.12"
"""The first release that has all that is asked here."""
_PIECE_BYTES = 1 << 20
_EXCERPT_CHARACTERS = 160
_STALE = (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError)
"""How a connection ends that the peer gave up while nobody used it."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer."""

    status: int
    body: bytearray

    def excerpt(self) -> str:
        """Its beginning, for a message."""
        return one_line(bytes(self.body[: 4 * _EXCERPT_CHARACTERS]).decode("utf-8", "replace"))


def one_line(text: str) -> str:
    """What a peer said, as part of a message: on one line, printable, and not long."""
    line = " ".join(text[: 4 * _EXCERPT_CHARACTERS].split())[:_EXCERPT_CHARACTERS]
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in line)


class HttpPeer:
    """One peer, one connection that is kept. Not safe for use by two threads at once."""

    def __init__(self, name: str, url: str, way_out: str) -> None:
        """`name` says who it is ("Mooncake's master"), `way_out` what to do when it is away.

        Raises SettingError if `url` is not http://host:port.
        """
        try:
            parts = urlsplit(url)
            self._host, self._port = parts.hostname or "", parts.port or 80
        except ValueError as error:
            raise SettingError(f"{url!r} is not the address of {name}: {error}") from error
        self.label = f"{name} at {url}"
        self._way_out = way_out
        self._connection: tuple[http.client.HTTPConnection, _DeadlineSocket] | None = None

    def ask(
        self,
        method: str,
        target: str,
        *,
        question: str,
        timeout_seconds: float,
        body_bytes_max: int,
        body: bytes | None = None,
    ) -> Answer:
        """Send a request and take the whole answer, whatever its status.

        `question` is for messages. A GET is sent again once where the connection had gone stale; a
        POST has effects, so it goes over a connection of its own and is never sent twice.

        Raises StoreUnavailableError when the peer is away or too slow, ProtocolError when what it
        says is not HTTP, over the limit, or cut short.
        """
        deadline = time.monotonic() + timeout_seconds
        if method != "GET":
            self.close()
        while True:
            kept = self._connection is not None
            try:
                return self._exchange(method, target, body, body_bytes_max, deadline)
            except _STALE as error:
                self.close()
                if not kept:
                    raise self._away(question, f"it closed the connection ({error})") from error
            except TimeoutError as error:
                self.close()
                raise self._away(question, f"no answer within {timeout_seconds:g} s") from error
            except OSError as error:
                self.close()
                raise self._away(question, error.strerror or str(error)) from error
            except (http.client.HTTPException, _UnusableError, ValueError) as error:
                self.close()
                raise self.nonsense(
                    question, one_line(str(error)) or type(error).__name__
                ) from error

    def nonsense(self, question: str, what: str) -> ProtocolError:
        """The error that says that this peer answered `question` with something unusable."""
        return ProtocolError(
            f"{self.label} gave no usable answer to {question}: {what}; check that it is what "
            f"listens there, and of a version that docs/mooncake.md names"
        )

    def outdated(self, question: str) -> ProtocolError:
        """The error that says that this peer does not know what it was asked."""
        return ProtocolError(
            f"{self.label} does not know {question} (HTTP 404): check that it is what listens "
            f"there, and that it is of Mooncake {OLDEST_MOONCAKE} or newer"
        )

    def refused(self, question: str, answer: Answer) -> StoreUnavailableError:
        """The error that says that this peer cannot answer now."""
        return self._away(question, f"HTTP {answer.status} {answer.excerpt()}")

    def close(self) -> None:
        """Close the connection; idempotent."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection[0].close()

    def _away(self, question: str, why: str) -> StoreUnavailableError:
        return StoreUnavailableError(
            f"{self.label} did not answer {question}: {why}; {self._way_out}"
        )

    def _exchange(
        self, method: str, target: str, body: bytes | None, body_bytes_max: int, deadline: float
    ) -> Answer:
        if self._connection is None:
            self._connection = _connect(self._host, self._port, deadline)
        connection, line = self._connection
        line.deadline = deadline
        line.settimeout(_left(deadline))
        headers = {} if body is None else {"Content-Type": "application/json"}
        connection.request(method, target, body, headers)
        response = connection.getresponse()
        try:
            answer = Answer(response.status, _read_whole(response, body_bytes_max))
        except BaseException:
            # A response that was not read to its end keeps the connection open by itself.
            response.close()
            raise
        if response.will_close or method != "GET":
            self.close()
        return answer


class _UnusableError(Exception):
    """An answer that is HTTP, but over a limit or cut short."""


class _DeadlineSocket(socket.socket):
    """A socket whose receives end at one deadline together. `socket.makefile` reads by this."""

    deadline = 0.0

    def recv_into(self, *arguments: Any, **options: Any) -> int:
        self.settimeout(_left(self.deadline))
        return super().recv_into(*arguments, **options)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _connect(
    host: str, port: int, deadline: float
) -> tuple[http.client.HTTPConnection, _DeadlineSocket]:
    """A connection to the first address that accepts one. Raises OSError."""
    failure: OSError = OSError(f"no address for {host}")
    for family, kind, protocol, _, address in socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM
    ):
        line = _DeadlineSocket(family, kind | socket.SOCK_CLOEXEC, protocol)
        try:
            line.settimeout(_left(deadline))
            line.connect(address)
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            line.close()
            failure = error
        else:
            connection = http.client.HTTPConnection(host, port)
            connection.sock = line
            return connection, line
    raise failure


def _read_whole(response: http.client.HTTPResponse, body_bytes_max: int) -> bytearray:
    """The body, read piece by piece into one buffer that grows with what really comes."""
    if response.length is None:
        # Mooncake's servers always say it; without it, an end is no proof of wholeness.
        raise _UnusableError("a body whose length is not said")
    if response.length > body_bytes_max:
        raise _UnusableError(f"{response.length} bytes, where {body_bytes_max} are the limit")
    body = bytearray()
    while piece := response.read(_PIECE_BYTES):
        body += piece
    if response.length:
        raise _UnusableError(f"cut short, {response.length} bytes are missing")
    return body
