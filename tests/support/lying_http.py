"""A small HTTP server that answers as it is told to: late, byte by byte, cut short, or nonsense.

It is the fault itself and stands in for nothing: what a daemon meets when something else listens at
Mooncake's port, or when Mooncake is sick.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

Reply = Callable[["Exchange"], None]


@dataclass
class Exchange:
    """One request on one connection."""

    line: socket.socket
    request: bytes
    stopping: threading.Event

    def send(self, data: bytes) -> None:
        self.line.sendall(data)

    def pause(self, seconds: float) -> None:
        """Wait, but not beyond the end of the server."""
        self.stopping.wait(seconds)


@dataclass
class LyingServer:
    """Listens on a port of its own. `replies` are used up in order; the last one stays."""

    replies: list[Reply]
    requests: list[bytes] = field(default_factory=list)
    connections: int = 0

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._stopping = threading.Event()
        self._lines: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.url = f"http://{self.address}"

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        # A close alone does not wake who waits for it.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for line in self._lines:
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._stopping.is_set():
            try:
                line, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._lines.append(line)
            self._start(self._serve, line)

    def _serve(self, line: socket.socket) -> None:
        with line, contextlib.suppress(OSError):
            while request := _read_request(line):
                with self._lock:
                    self.requests.append(request)
                    reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
                reply(Exchange(line, request, self._stopping))


def _read_request(line: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        piece = line.recv(65536)
        if not piece:
            return b""
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    length = 0
    for header in head.split(b"\r\n"):
        if header.lower().startswith(b"content-length:"):
            length = int(header.partition(b":")[2])
    while len(body) < length:
        body += line.recv(65536)
    return head + b"\r\n\r\n" + body


def answer(body: bytes, status: str = "200 OK", *headers: str) -> Reply:
    """A proper answer."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    return lambda exchange: exchange.send("\r\n".join(lines).encode() + body)


def raw(data: bytes, *, close: bool = True) -> Reply:
    """Exactly these bytes, and the end."""

    def reply(exchange: Exchange) -> None:
        exchange.send(data)
        if close:
            raise OSError("closed as told")

    return reply


def late(seconds: float, then: Reply) -> Reply:
    """An answer after a while."""

    def reply(exchange: Exchange) -> None:
        exchange.pause(seconds)
        then(exchange)

    return reply


def trickle(data: bytes, seconds: float) -> Reply:
    """A byte at a time, each after `seconds`."""

    def reply(exchange: Exchange) -> None:
        for byte in data:
            if exchange.stopping.is_set():
                return
            exchange.send(bytes([byte]))
            exchange.pause(seconds)

    return reply


def reset(data: bytes = b"") -> Reply:
    """These bytes, and a connection that is reset."""

    def reply(exchange: Exchange) -> None:
        exchange.send(data)
        exchange.line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        exchange.line.close()
        raise OSError("reset as told")

    return reply
