"""The store process and its socket: bad input, bad places, orderly ends."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from store_kit import StoreProcess, content, key_batch, shared_memory_path

from snapd.errors import ProtocolError, SnapdError, StoreUnavailableError
from snapd.wire import messages as m
from snapd.wire.connection import Connection
from snapd.wire.framing import FRAME_MAGIC, encode_frame

SEED = 31337


@pytest.fixture
def store(tmp_path: Path) -> Iterator[StoreProcess]:
    with shared_memory_path() as path:
        process = StoreProcess(path, tmp_path)
        yield process
        process.kill()


def raw_socket(store: StoreProcess) -> socket.socket:
    raw = socket.socket(socket.AF_UNIX)
    raw.settimeout(15)
    raw.connect(store.socket)
    return raw


def closed_by_peer(raw: socket.socket) -> bool:
    with contextlib.suppress(ConnectionResetError):
        while raw.recv(65_536):
            pass
    return True


def test_sigterm_ends_it_politely_and_the_segment_stays(store: StoreProcess) -> None:
    store.start()
    client = store.client()
    client.put({b"a": b"value"})
    client.close()
    code, errors = store.terminate()
    assert code == 0, errors
    assert not os.path.exists(store.socket)
    store.start()
    client = store.client()
    assert client.get([b"a"]) == [b"value"]
    client.close()


def test_socket_and_segment_are_private(store: StoreProcess) -> None:
    store.start()
    assert stat.S_IMODE(os.stat(store.socket).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(store.path).st_mode) == 0o600


def test_garbage_closes_its_connection_and_no_other(store: StoreProcess) -> None:
    store.start()
    client = store.client()
    client.put({b"a": b"value"})
    generator = np.random.default_rng(SEED)
    hello = m.encode_message(m.Hello(m.PROTOCOL_VERSION, "client", "x"))
    bad = [
        b"GET / HTTP/1.1\r\n\r\n",
        generator.bytes(5000),
        encode_frame(1, b""),
        encode_frame(1, generator.bytes(100)),
        encode_frame(1, msgspec.msgpack.encode(["put_start", 1, 2])),
        encode_frame(1, b"\x91" * 100_000),
        encode_frame(1, m.encode_message(m.Exist(key_batch([b"a"])))),  # before hello
        encode_frame(1, hello)
        + encode_frame(2, m.encode_message(m.PutEnd(b"\x01", b"\x02", b"\x03"))),
        encode_frame(1, hello)
        + encode_frame(2, m.encode_message(m.Exist(m.KeyBatch(b"abc", b"\x09\x00")))),
        FRAME_MAGIC.to_bytes(4, "little") + b"\0" * 4 + (2**40).to_bytes(8, "little"),
    ]
    for data in bad:
        with raw_socket(store) as raw:
            raw.sendall(data)
            assert closed_by_peer(raw), data[:40]
    assert client.get([b"a"]) == [b"value"]
    client.close()


def test_every_request_survives_nonsense_in_its_fields(store: StoreProcess) -> None:
    store.start()
    healthy = store.client()
    generator = np.random.default_rng(SEED)
    for number in range(300):
        request = nonsense(generator)
        connection = store.connect()
        role = "daemon" if number % 2 else "client"
        connection.call(m.Hello(m.PROTOCOL_VERSION, role, "x"), m.HelloReply)
        with contextlib.suppress(SnapdError):
            connection.call(m.Attach(b"d"), m.Attached)
        with contextlib.suppress(SnapdError):
            connection.call(request, m.Codes)
        connection.close()
    assert healthy.put({b"a": b"value"}) == {b"a": 0}
    assert healthy.get([b"a"]) == [b"value"]
    healthy.close()
    assert store.exit_code() is None


def nonsense(generator: np.random.Generator) -> m.Request:
    """A request of right types and arbitrary content."""
    kinds = [m.PutStart, m.PutEnd, m.PutRevoke, m.GetStart, m.Query, m.Exist, m.Remove]
    kinds += [m.ReportCorrupt, m.RegisterCold, m.DropCold, m.FillStart, m.FillEnd]
    kinds += [m.PinBlocks, m.UnpinBlocks, m.EventsWait]
    kind = kinds[generator.integers(len(kinds))]
    count = int(generator.integers(0, 5))
    fields: dict[str, object] = {}
    for field in msgspec.structs.fields(kind):
        if field.name == "keys":
            lengths = generator.integers(1, 40, count).astype(np.uint16)
            fields["keys"] = m.KeyBatch(generator.bytes(int(lengths.sum())), lengths.tobytes())
        elif field.type is bytes:
            width = {"slots": 4, "cold_slots": 4, "fingerprints": 2, "groups": 4, "pins": 1}
            width |= {"heats": 4, "codes": 4}
            wrong = count + int(generator.random() < 0.2)
            small = np.zeros(wrong * width.get(field.name, 8), np.uint8)
            fields[field.name] = (
                small.tobytes() if generator.random() < 0.5 else generator.bytes(len(small))
            )
        elif field.type is int:
            fields[field.name] = int(generator.choice([0, 1, -1, 2**40, -(2**40)]))
            if field.name == "wait_ms":
                fields[field.name] = 1
        else:
            fields[field.name] = bool(generator.integers(2))
    return kind(**fields)


def test_half_a_message_is_given_up(store: StoreProcess) -> None:
    store.start()
    frame = encode_frame(1, m.encode_message(m.Hello(m.PROTOCOL_VERSION, "client", "x")))
    with raw_socket(store) as idle, raw_socket(store) as half:
        idle.sendall(frame)
        assert idle.recv(65_536)
        half.sendall(frame[: len(frame) // 2])
        began = time.monotonic()
        assert closed_by_peer(half)
        assert time.monotonic() - began < 14
        idle.sendall(frame)
        assert idle.recv(65_536), "a connection without half a message may be silent"


def test_a_message_in_single_bytes_is_a_message(store: StoreProcess) -> None:
    store.start()
    frame = encode_frame(7, m.encode_message(m.Hello(m.PROTOCOL_VERSION, "client", "x")))
    with raw_socket(store) as raw:
        for byte in frame:
            raw.sendall(bytes([byte]))
        assert raw.recv(65_536)[4:8] == (7).to_bytes(4, "little")


def test_another_protocol_version_is_refused_in_words(store: StoreProcess) -> None:
    store.start()
    connection = store.connect()
    with pytest.raises(SnapdError, match="protocol 99"):
        connection.call(m.Hello(99, "client", "x"), m.HelloReply)
    connection.close()


def test_requests_ahead_of_a_reply_that_waits_are_bounded(store: StoreProcess) -> None:
    store.start()
    with raw_socket(store) as raw:
        hello = m.encode_message(m.Hello(m.PROTOCOL_VERSION, "daemon", "x"))
        raw.sendall(encode_frame(1, hello) + encode_frame(2, m.encode_message(m.Attach(b"d"))))
        for number in range(3, 60):
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                raw.sendall(encode_frame(number, m.encode_message(m.LoadWait(30_000))))
        assert closed_by_peer(raw)


def test_a_client_that_reads_no_replies_is_dropped_and_others_are_served(
    store: StoreProcess,
) -> None:
    store.start()
    client = store.client()
    client.put({b"a": b"value"})
    hello = encode_frame(1, m.encode_message(m.Hello(m.PROTOCOL_VERSION, "client", "x")))
    query = encode_frame(2, m.encode_message(m.Query(key_batch([b"a"] * 20_000))))
    with raw_socket(store) as raw:
        raw.sendall(hello)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(80):
                raw.sendall(query)
        assert client.get([b"a"]) == [b"value"]
    client.close()


def test_a_second_store_on_the_segment_is_refused(store: StoreProcess, tmp_path: Path) -> None:
    store.start()
    other_dir = tmp_path / "other"
    other_dir.mkdir()
    other = StoreProcess(store.path, other_dir)
    other.start(wait=False)
    code, errors = other.wait()
    assert code == 5
    assert "another store holds" in errors


def test_a_second_store_on_the_socket_is_refused(store: StoreProcess, tmp_path: Path) -> None:
    store.start()
    with shared_memory_path() as path:
        other = StoreProcess(path, tmp_path)
        other.start(wait=False)
        code, errors = other.wait()
    assert code == 5
    assert "another store answers" in errors
    client = store.client()
    assert client.stats().clients == 1
    client.close()


def test_a_socket_left_by_a_kill_is_replaced_and_a_file_is_not(store: StoreProcess) -> None:
    store.start()
    store.kill()
    assert os.path.exists(store.socket)
    store.start()
    store.terminate()
    Path(store.socket).write_text("somebody's file")
    store.start(wait=False)
    code, errors = store.wait()
    assert code == 5
    assert "no socket" in errors
    assert Path(store.socket).read_text() == "somebody's file"


def test_too_little_shared_memory_is_an_error_with_a_way_out(
    store: StoreProcess,
) -> None:
    status = os.statvfs("/dev/shm")
    store.environment["MOONCAKE_GLOBAL_SEGMENT_SIZE"] = str(
        status.f_bavail * status.f_frsize + (1 << 30)
    )
    store.start(wait=False)
    code, errors = store.wait()
    assert code == 1
    for word in ("/dev/shm", "bytes free", "needs", "MOONCAKE_GLOBAL_SEGMENT_SIZE"):
        assert word in errors
    assert not os.path.exists(store.path)


@pytest.mark.parametrize(
    ("variable", "value", "code"),
    [
        ("SNAPD_SEGMENT_PATH", "/dev/shm/no/such/directory", 1),
        ("SNAPD_RUNTIME_DIR", "/dev/null/x", 2),
        ("SNAPD_SEGMENT_BLOCKS_MAX", "many", 2),
        ("MOONCAKE_GLOBAL_SEGMENT_SIZE", "0", 2),
    ],
)
def test_settings_that_cannot_be_used(
    store: StoreProcess, variable: str, value: str, code: int
) -> None:
    store.environment[variable] = value
    store.start(wait=False)
    given, errors = store.wait()
    assert given == code
    assert "Traceback" not in errors


def test_a_store_is_away_between_kill_and_start(store: StoreProcess) -> None:
    store.start()
    connection = store.connect()
    connection.call(m.Hello(m.PROTOCOL_VERSION, "client", "x"), m.HelloReply)
    store.kill()
    with pytest.raises((StoreUnavailableError, ProtocolError)):
        connection.call(m.Stats(), m.StatsReply)
    with pytest.raises(StoreUnavailableError):
        Connection(store.socket)


def test_a_block_of_64_mib_and_more(store: StoreProcess) -> None:
    store.environment["MOONCAKE_GLOBAL_SEGMENT_SIZE"] = "256mb"
    store.start()
    client = store.client()
    for number, size in enumerate((64 << 20, (100 << 20) + 1)):
        value = content(number, size)
        assert client.put({b"big": value}, upsert=True) == {b"big": 0}
        assert client.get([b"big"]) == [value]
    client.close()


def test_a_new_segment_serves_before_all_its_memory_is_there(store: StoreProcess) -> None:
    store.environment["MOONCAKE_GLOBAL_SEGMENT_SIZE"] = "1gb"
    began = time.monotonic()
    store.start()
    client = store.client()
    assert client.put({b"a": b"value"}) == {b"a": 0}
    ready = time.monotonic() - began
    assert ready < 5
    deadline = time.monotonic() + 20
    while os.stat(store.path).st_blocks * 512 < 1 << 30 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert os.stat(store.path).st_blocks * 512 >= 1 << 30
    client.close()
