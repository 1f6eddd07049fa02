"""`Connection` against a real socket whose other end keeps silent, breaks off, or lies."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from snapd.errors import ProtocolError, StoreUnavailableError
from snapd.wire.codes import ReturnCode
from snapd.wire.connection import Connection, RequestFailedError
from snapd.wire.framing import FRAME_BYTES_MAX, FrameDecoder, encode_frame
from snapd.wire.messages import (
    Codes,
    Count,
    Failure,
    KeyBatch,
    Message,
    Remove,
    RemoveAll,
    decode_request,
    encode_message,
)

Peer = Callable[[socket.socket], None]


@contextmanager
def peer_at(path: Path, peer: Peer) -> Iterator[None]:
    """A listener that hands its one connection to `peer`, in a thread."""

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            peer(connection)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join(10)
        assert not thread.is_alive()


def receive(connection: socket.socket) -> tuple[int, Message]:
    decoder = FrameDecoder()
    while True:
        for frame in decoder.receive_data(connection.recv(65536)):
            return frame.request_id, decode_request(frame.payload)


def replying(*replies: Message, id_offset: int = 0) -> Peer:
    def peer(connection: socket.socket) -> None:
        for reply in replies:
            request_id, _ = receive(connection)
            connection.sendall(encode_frame(request_id + id_offset, encode_message(reply)))
        connection.recv(1)  # until the other side closes

    return peer


def wait_for_close(connection: socket.socket) -> None:
    while connection.recv(65536):
        pass


def test_requests_are_answered_in_turn(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with peer_at(path, replying(Count(3), Codes(b"\0\0\0\0"))):
        connection = Connection(str(path))
        assert connection.call(RemoveAll(), Count) == Count(3)
        assert connection.call(Remove(KeyBatch(b"k", b"\1\0")), Codes) == Codes(b"\0\0\0\0")
        assert not connection.closed
        connection.close()
        connection.close()
        assert connection.closed


def test_a_reply_that_comes_in_pieces_is_put_together(tmp_path: Path) -> None:
    def peer(connection: socket.socket) -> None:
        request_id, _ = receive(connection)
        for byte in encode_frame(request_id, encode_message(Count(70_000))):
            connection.sendall(bytes([byte]))
            time.sleep(0.001)

    with peer_at(tmp_path / "s", peer):
        connection = Connection(str(tmp_path / "s"))
        assert connection.call(RemoveAll(), Count).value == 70_000
        connection.close()


def test_a_refusal_keeps_its_code_and_the_connection(tmp_path: Path) -> None:
    refusal = Failure(ReturnCode.INVALID_PARAMS, "no such role")
    with peer_at(tmp_path / "s", replying(refusal, Count(1))):
        connection = Connection(str(tmp_path / "s"))
        with pytest.raises(RequestFailedError, match="no such role") as raised:
            connection.call(RemoveAll(), Count)
        assert raised.value.code == ReturnCode.INVALID_PARAMS
        assert connection.call(RemoveAll(), Count) == Count(1)
        connection.close()


def test_nobody_listening_is_an_unavailable_store(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailableError, match="no store answers"):
        Connection(str(tmp_path / "nothing"))
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "left"))
    with pytest.raises(StoreUnavailableError, match="no store answers"):
        Connection(str(tmp_path / "left"))


def test_a_late_reply_is_never_taken_for_another_requests(tmp_path: Path) -> None:
    with peer_at(tmp_path / "s", wait_for_close):
        connection = Connection(str(tmp_path / "s"))
        before = time.monotonic()
        with pytest.raises(StoreUnavailableError, match="away"):
            connection.call(RemoveAll(), Count, timeout_seconds=0.1)
        assert time.monotonic() - before < 5
        assert connection.closed
        with pytest.raises(StoreUnavailableError):
            connection.call(RemoveAll(), Count)


def test_a_reply_that_trickles_ends_at_the_deadline_all_the_same(tmp_path: Path) -> None:
    def trickle(connection: socket.socket) -> None:
        request_id, _ = receive(connection)
        frame = encode_frame(request_id, encode_message(Codes(bytes(400))))
        for byte in frame:
            try:
                connection.sendall(bytes([byte]))
            except BrokenPipeError:
                return
            time.sleep(0.02)

    with peer_at(tmp_path / "s", trickle):
        connection = Connection(str(tmp_path / "s"))
        before = time.monotonic()
        with pytest.raises(StoreUnavailableError):
            connection.call(RemoveAll(), Codes, timeout_seconds=0.3)
        assert time.monotonic() - before < 3


def test_a_store_that_dies_in_the_middle_of_a_reply_is_unavailable(tmp_path: Path) -> None:
    def half(connection: socket.socket) -> None:
        request_id, _ = receive(connection)
        connection.sendall(encode_frame(request_id, encode_message(Count(5)))[:-1])

    with peer_at(tmp_path / "s", half):
        connection = Connection(str(tmp_path / "s"))
        with pytest.raises(StoreUnavailableError, match="closed the connection"):
            connection.call(RemoveAll(), Count)
        assert connection.closed


@pytest.mark.parametrize(
    "peer",
    [
        pytest.param(replying(Codes(b"")), id="a reply of another type"),
        pytest.param(replying(Count(1), id_offset=1), id="a reply to another request"),
        pytest.param(replying(RemoveAll()), id="a request for a reply"),
        pytest.param(lambda c: (receive(c), c.sendall(b"HTTP/1.1 200 OK\r\n")), id="no frame"),
    ],
)
def test_a_store_that_lies_is_a_protocol_error_and_the_end(tmp_path: Path, peer: Peer) -> None:
    with peer_at(tmp_path / "s", peer):
        connection = Connection(str(tmp_path / "s"))
        with pytest.raises(ProtocolError):
            connection.call(RemoveAll(), Count)
        assert connection.closed


def test_a_request_over_the_limit_is_refused_before_it_is_sent(tmp_path: Path) -> None:
    with peer_at(tmp_path / "s", wait_for_close):
        connection = Connection(str(tmp_path / "s"))
        with pytest.raises(ProtocolError, match="fewer keys"):
            connection.call(Remove(KeyBatch(bytes(FRAME_BYTES_MAX), b"")), Codes)
        connection.close()
