"""The putter's socket, with a stand-in for the native client that can fail in every way."""

import contextlib
import ctypes
import fcntl
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fault_ledger import FaultClass, case

from snapd.attach.mooncake.putting import Putter, StagingMemory, padded
from snapd.blocks import KeyColumn
from snapd.errors import ProtocolError, StoreUnavailableError
from snapd.putter.native import NativeStore
from snapd.putter.server import CONNECTIONS_MAX, PutServer
from snapd.wire.codes import ReturnCode
from snapd.wire.connection import Connection, RequestFailedError
from snapd.wire.framing import encode_frame
from snapd.wire.messages import Codes, encode_keys, encode_message
from snapd.wire.puts import (
    PUT_PROTOCOL_VERSION,
    PutBlocks,
    PutHello,
    PutReady,
    RemoveBlocks,
    decode_put_reply,
)

STAGING_BYTES = 1 << 20


class Configuration:
    replica_num = 0
    preferred_segment = ""


class NativeDouble:
    """Keeps what is put; `answer` replaces the answer of a put."""

    def __init__(self) -> None:
        self.blocks: dict[bytes, bytes] = {}
        self.segments: list[str] = []
        self.calls: list[int] = []
        self.registered: set[int] = set()
        self.register_code = 0
        self.answer: Any = None

    def register_buffer(self, address: int, size: int) -> int:
        if self.register_code == 0:
            self.registered.add(address)
        return self.register_code

    def unregister_buffer(self, address: int) -> int:
        self.registered.remove(address)
        return 0

    def batch_put_from(
        self, keys: list[bytes], addresses: list[int], sizes: list[int], config: Configuration
    ) -> Any:
        self.calls.append(len(keys))
        if isinstance(self.answer, Exception):
            raise self.answer
        if self.answer is not None:
            return self.answer
        assert config.replica_num == 1
        self.segments.append(config.preferred_segment)
        for key, address, size in zip(keys, addresses, sizes, strict=True):
            self.blocks.setdefault(key, ctypes.string_at(address, size))
        return [0] * len(keys)

    def batch_remove(self, keys: list[bytes], *, force: bool) -> list[int]:
        assert not force
        gone = [self.blocks.pop(key, None) for key in keys]
        return [ReturnCode.OBJECT_NOT_FOUND if each is None else 0 for each in gone]


@pytest.fixture
def native() -> NativeDouble:
    return NativeDouble()


@pytest.fixture
def path(native: NativeDouble, tmp_path: Path) -> Iterator[Path]:
    server = PutServer(NativeStore(native, Configuration), tmp_path / "put.sock", inside=True)
    server.start()
    yield tmp_path / "put.sock"
    server.stop()
    assert not (tmp_path / "put.sock").exists()
    assert native.registered == set()


@pytest.fixture
def staging() -> Iterator[StagingMemory]:
    memory = StagingMemory(STAGING_BYTES)
    yield memory
    memory.close()


def fill(staging: StagingMemory, sizes: list[int]) -> tuple[np.ndarray[Any, Any], list[bytes]]:
    offsets, views = staging.pieces(np.array(sizes, np.uint64))
    contents = [os.urandom(size) for size in sizes]
    for view, content in zip(views, contents, strict=True):
        view[: len(content)] = content
    return offsets, contents


def keys_of(count: int) -> KeyColumn:
    return KeyColumn.from_list([f"key-{n}".encode() for n in range(count)])


def test_blocks_are_put_from_the_staging_memory(
    native: NativeDouble, path: Path, staging: StagingMemory
) -> None:
    sizes = [1, 4096, 5000, 70_000]
    offsets, contents = fill(staging, sizes)
    assert (offsets % 4096 == 0).all()
    putter = Putter(str(path), staging)
    assert putter.inside
    codes = putter.put(keys_of(4), offsets, np.array(sizes, np.uint64), "host:1")
    assert codes.tolist() == [0, 0, 0, 0]
    assert list(native.blocks.values()) == contents
    assert set(native.segments) == {"host:1"}
    assert putter.remove(KeyColumn.from_list([b"key-1", b"other"])).tolist() == [0, -704]
    assert b"key-1" not in native.blocks
    putter.close()


def test_large_batches_go_in_several_native_calls(
    native: NativeDouble, path: Path, staging: StagingMemory
) -> None:
    count = 1200
    offsets = np.zeros(count, np.uint64)
    putter = Putter(str(path), staging)
    putter.put(keys_of(count), offsets, np.full(count, 8, np.uint64), "")
    assert native.calls == [512, 512, 176]
    native.calls.clear()
    offsets = np.zeros(20, np.uint64)
    putter.put(keys_of(20), offsets, np.full(20, STAGING_BYTES, np.uint64), "")
    assert native.calls == [8, 8, 4]
    putter.close()


@pytest.mark.parametrize(
    "answer",
    [RuntimeError("native"), MemoryError(), [0], "nonsense", [2**40, 1], [[0], [0]], 0],
    ids=repr,
)
def test_native_failures_are_codes(
    native: NativeDouble, path: Path, staging: StagingMemory, answer: Any
) -> None:
    with case(FaultClass.NEIGHBOUR, f"Mooncake's client answers a put: {answer!r}"):
        native.answer = answer
        offsets, _ = fill(staging, [10, 10])
        putter = Putter(str(path), staging)
        codes = putter.put(keys_of(2), offsets, np.array([10, 10], np.uint64), "")
        assert codes.tolist() == [ReturnCode.INTERNAL_ERROR] * 2
        native.answer = None
        assert putter.put(keys_of(2), offsets, np.array([10, 10], np.uint64), "").tolist() == [0, 0]
        putter.close()


def test_memory_that_mooncake_refuses_is_an_error(
    native: NativeDouble, path: Path, staging: StagingMemory
) -> None:
    native.register_code = -600
    with pytest.raises(RequestFailedError, match="refuses to register") as caught:
        Putter(str(path), staging)
    assert caught.value.code == -600


@pytest.mark.parametrize(
    ("offset", "size"),
    [
        (0, STAGING_BYTES + 1),
        (STAGING_BYTES, 1),
        (STAGING_BYTES - 1, 2),
        (2**64 - 1, 2),
        (2**64 - 4096, 4096),
        (1, 2**64 - 1),
        (0, 0),
    ],
)
def test_blocks_outside_the_memory_are_refused(
    native: NativeDouble, path: Path, staging: StagingMemory, offset: int, size: int
) -> None:
    with case(FaultClass.NEIGHBOUR, f"put of a block at {offset} of {size} bytes"):
        putter = Putter(str(path), staging)
        with pytest.raises(RequestFailedError, match="outside the staging memory"):
            putter.put(keys_of(1), np.array([offset], np.uint64), np.array([size], np.uint64), "")
        putter.close()
        assert native.calls == []


def unsealed() -> int:
    descriptor = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, STAGING_BYTES)
    return descriptor


def short() -> int:
    descriptor = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    return descriptor


def plain_file() -> int:
    return os.open("/proc/self/exe", os.O_RDONLY)


def pipe() -> int:
    first, second = os.pipe()
    os.close(second)
    return first


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (unsealed, "not sealed"),
        (short, "has 0 bytes"),
        (plain_file, "cannot be sealed"),
        (pipe, "not a regular file"),
        (None, "0 descriptors came"),
    ],
)
def test_memory_that_could_shrink_is_refused(path: Path, make: Any, words: str) -> None:
    with case(FaultClass.NEIGHBOUR, f"staging memory of a putter: {words}"):
        connection = Connection(str(path), peer="putter", decode=decode_put_reply)
        hello = PutHello(PUT_PROTOCOL_VERSION, "test", STAGING_BYTES)
        descriptors = [make()] if make else []
        with pytest.raises(RequestFailedError, match=words):
            connection.call(hello, PutReady, descriptors=descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        connection.close()


@pytest.mark.parametrize("size", [0, -1, 2**40, 2**70])
def test_sizes_of_memory_are_bounded(path: Path, staging: StagingMemory, size: int) -> None:
    connection = Connection(str(path), peer="putter", decode=decode_put_reply)
    hello = PutHello(PUT_PROTOCOL_VERSION, "test", size if size < 2**64 else -5)
    with pytest.raises(RequestFailedError, match="staging memory of"):
        connection.call(hello, PutReady, descriptors=[staging.descriptor])
    connection.close()


def test_messages_out_of_order_are_refused(path: Path, staging: StagingMemory) -> None:
    requests = [
        (PutHello(99, "test", 1), "protocol 99"),
        (RemoveBlocks(encode_keys(keys_of(1))), "first message"),
        (PutBlocks(encode_keys(keys_of(1)), b"", b"", ""), "first message"),
        (Codes(b""), "not a request"),
    ]
    for request, words in requests:
        connection = Connection(str(path), peer="putter", decode=decode_put_reply)
        with pytest.raises(RequestFailedError, match=words):
            connection.call(request, Codes, descriptors=[staging.descriptor])
        with pytest.raises(StoreUnavailableError):  # it is closed after that
            connection.call(request, Codes)
        connection.close()


def test_columns_of_other_lengths_are_refused(path: Path, staging: StagingMemory) -> None:
    connection = Connection(str(path), peer="putter", decode=decode_put_reply)
    hello = PutHello(PUT_PROTOCOL_VERSION, "test", STAGING_BYTES)
    connection.call(hello, PutReady, descriptors=[staging.descriptor])
    with pytest.raises(RequestFailedError, match="column of 8 bytes"):
        connection.call(PutBlocks(encode_keys(keys_of(2)), bytes(8), bytes(16), ""), Codes)
    connection.close()


def test_nonsense_and_silence_leave_the_others_served(
    native: NativeDouble, path: Path, staging: StagingMemory
) -> None:
    peers = []
    for data in (b"GET / HTTP/1.1\r\n\r\n", encode_frame(1, b"\xc1"), b"SND1", b""):
        peer = socket.socket(socket.AF_UNIX)
        peer.connect(str(path))
        peer.sendall(data)
        peers.append(peer)
    putter = Putter(str(path), staging)
    offsets, _ = fill(staging, [10])
    assert putter.put(keys_of(1), offsets, np.array([10], np.uint64), "").tolist() == [0]
    putter.close()
    for peer in peers:
        peer.close()


def test_descriptors_do_not_pile_up(path: Path, staging: StagingMemory) -> None:
    before = len(os.listdir("/proc/self/fd"))
    peer = socket.socket(socket.AF_UNIX)
    peer.connect(str(path))
    frame = encode_frame(1, encode_message(PutHello(PUT_PROTOCOL_VERSION, "test", 1)))
    with contextlib.suppress(OSError):
        for at in range(5):
            socket.send_fds(peer, [frame[at : at + 1]], [staging.descriptor] * 3)
        while peer.recv(1):
            pass
    peer.close()
    deadline = time.monotonic() + 5
    while len(os.listdir("/proc/self/fd")) > before:
        assert time.monotonic() < deadline, "descriptors are left open"
        time.sleep(0.01)


def test_connections_are_bounded(path: Path, staging: StagingMemory) -> None:
    putters = [Putter(str(path), staging) for _ in range(CONNECTIONS_MAX)]
    with pytest.raises((StoreUnavailableError, ProtocolError)):
        Putter(str(path), staging)
    for putter in putters:
        putter.close()


def test_nothing_more_is_put_for_a_daemon_that_died(tmp_path: Path, staging: StagingMemory) -> None:
    """What waits there may have been removed since, and nobody takes it out again."""
    peer = socket.socket(socket.AF_UNIX)

    class Deadly(NativeDouble):
        def batch_put_from(self, *arguments: Any) -> Any:
            peer.close()
            return super().batch_put_from(*arguments)

    native, count = Deadly(), 1200
    server = PutServer(NativeStore(native, Configuration), tmp_path / "put.sock", inside=True)
    server.start()
    peer.connect(str(tmp_path / "put.sock"))
    hello = encode_message(PutHello(PUT_PROTOCOL_VERSION, "test", STAGING_BYTES))
    socket.send_fds(peer, [encode_frame(1, hello)], [staging.descriptor])
    assert peer.recv(1 << 16)
    sizes = np.full(count, 8, np.uint64).tobytes()
    blocks = PutBlocks(encode_keys(keys_of(count)), bytes(8 * count), sizes, "")
    peer.sendall(encode_frame(2, encode_message(blocks)))
    deadline = time.monotonic() + 10
    while native.registered or not native.calls:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    server.stop()
    assert native.calls == [512]


def test_stop_waits_for_the_put_under_way(tmp_path: Path, staging: StagingMemory) -> None:
    entered, go_on = threading.Event(), threading.Event()

    class Slow(NativeDouble):
        def batch_put_from(self, *arguments: Any) -> Any:
            entered.set()
            assert go_on.wait(10)
            return super().batch_put_from(*arguments)

    native = Slow()
    server = PutServer(NativeStore(native, Configuration), tmp_path / "put.sock", inside=True)
    server.start()
    putter = Putter(str(tmp_path / "put.sock"), staging)
    offsets, contents = fill(staging, [10])
    failures: list[StoreUnavailableError] = []

    def put() -> None:
        try:
            putter.put(keys_of(1), offsets, np.array([10], np.uint64), "")
        except StoreUnavailableError as error:
            failures.append(error)

    caller = threading.Thread(target=put)
    caller.start()
    assert entered.wait(10)
    stopper = threading.Thread(target=server.stop)
    stopper.start()
    stopper.join(0.2)
    assert stopper.is_alive()
    go_on.set()
    stopper.join(10)
    caller.join(10)
    assert not stopper.is_alive()
    assert list(native.blocks.values()) == contents
    assert failures, "who asked learns that the answer did not come"
    putter.close()


def test_a_second_putter_at_the_same_place_is_refused(path: Path, native: NativeDouble) -> None:
    with pytest.raises(FileExistsError, match="another putter"):
        PutServer(NativeStore(native, Configuration), path, inside=True)


def test_sizes_are_padded_to_the_alignment() -> None:
    sizes = np.array([1, 4095, 4096, 4097], np.uint64)
    assert padded(sizes).tolist() == [4096, 4096, 4096, 8192]
