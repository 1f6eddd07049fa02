"""The control client against a real HTTP server on a Unix socket, and against what is none."""

import contextlib
import json
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from snapd.cli.control import ControlClient
from snapd.errors import (
    IntegrityError,
    NothingThereError,
    ProtocolError,
    RefusedError,
    SettingError,
    SnapdError,
)
from snapd.wire.control import CONTROL_SOCKET


class Handler(BaseHTTPRequestHandler):
    """Answers what its server was told to."""

    server: "Server"

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def answer(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        time.sleep(self.server.delay_seconds)
        with contextlib.suppress(BrokenPipeError):
            self.send_response(self.server.status)
            self.send_header("Content-Length", str(len(self.server.body)))
            self.end_headers()
            self.wfile.write(self.server.body)

    def log_message(self, *_: Any) -> None:
        """Keep quiet."""

    def address_string(self) -> str:
        return "unix"


class Server(socketserver.ThreadingUnixStreamServer):
    """One answer for every request."""

    status, body, delay_seconds = 200, b"{}", 0.0

    def __init__(self, path: str) -> None:
        self.asked: list[str] = []
        super().__init__(path, Handler)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(str(tmp_path / CONTROL_SOCKET)) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def client_of(directory: Path, timeout_seconds: float = 5.0) -> ControlClient:
    return ControlClient(str(directory), timeout_seconds)


def test_an_answer_is_the_object_it_says(server: Server, tmp_path: Path) -> None:
    server.body = json.dumps({"generation": 7}).encode()
    assert client_of(tmp_path).snapshot() == {"generation": 7}
    assert client_of(tmp_path).status() == {"generation": 7}
    assert server.asked == ["POST /snapshot", "GET /status"]


@pytest.mark.parametrize(
    ("exit_code", "kind"),
    [
        (1, SnapdError),
        (2, SettingError),
        (3, NothingThereError),
        (4, IntegrityError),
        (5, RefusedError),
        (99, SnapdError),
    ],
)
def test_the_daemons_error_keeps_its_words_and_its_exit_code(
    server: Server, tmp_path: Path, exit_code: int, kind: type[SnapdError]
) -> None:
    server.status = 500
    server.body = json.dumps({"error": "no space left", "exit_code": exit_code}).encode()
    with pytest.raises(SnapdError, match=r"^no space left$") as raised:
        client_of(tmp_path).snapshot()
    assert type(raised.value) is kind


def test_an_error_without_words_still_says_what_happened(server: Server, tmp_path: Path) -> None:
    server.status = 503
    with pytest.raises(SnapdError, match="HTTP 503"):
        client_of(tmp_path).snapshot()


@pytest.mark.parametrize("body", [b"", b"<html>", b"[1]", b"null", b'{"a": ', b"\xff\xfe"])
def test_what_is_not_a_json_object_is_a_protocol_error(
    server: Server, tmp_path: Path, body: bytes
) -> None:
    server.body = body
    with pytest.raises(ProtocolError, match=CONTROL_SOCKET):
        client_of(tmp_path).status()


def test_a_daemon_that_hangs_is_given_up_at_the_deadline(server: Server, tmp_path: Path) -> None:
    server.delay_seconds = 0.5
    with pytest.raises(SnapdError, match=r"did not answer GET /status within 0\.1 s") as raised:
        client_of(tmp_path, 0.1).status()
    assert raised.value.exit_code == 1


def test_no_socket_is_no_daemon(tmp_path: Path) -> None:
    with pytest.raises(NothingThereError, match=r"snapd\.sock.*start it with `snapd run`"):
        client_of(tmp_path).status()


def test_a_socket_left_by_a_killed_daemon_is_no_daemon(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / CONTROL_SOCKET))
    with pytest.raises(NothingThereError, match="refused"):
        client_of(tmp_path).status()


def test_a_path_too_long_for_a_socket_is_named(tmp_path: Path) -> None:
    with pytest.raises(SnapdError, match="path too long"):
        client_of(tmp_path / ("x" * 120)).status()


def answer_and_close(raw: bytes) -> Callable[[socket.socket], None]:
    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(raw)

    return serve


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"SND1\0\0\0\0", id="another protocol"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}", id="half an answer"),
        pytest.param(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000 + b"\r\n\r\n", id="endless header"),
    ],
)
def test_a_peer_that_is_no_daemon_is_an_error_and_no_traceback(tmp_path: Path, raw: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / CONTROL_SOCKET))
        listener.listen()
        thread = threading.Thread(target=answer_and_close(raw), args=(listener,))
        thread.start()
        with pytest.raises(SnapdError):
            client_of(tmp_path).status()
        thread.join()
