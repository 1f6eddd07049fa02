"""The client when something else dies, hangs or scribbles: real store, real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import client_stalled
import numpy as np
import pytest
from client_store import StoreProcess

from snapd.blocks.keys import U64
from snapd.client import MooncakeDistributedStore, link, pool
from snapd.client.link import LinkOptions
from snapd.client.mapped import MappedSegment
from snapd.client.requests import PutOptions
from snapd.client.session import ClientSession
from snapd.client.transfer import BytesDestinations, PointerSources
from snapd.errors import ProtocolError
from snapd.formats.segment import HEADER_BYTES, decode_header
from snapd.segment.locks import first_held
from snapd.wire.connection import Connection
from snapd.wire.messages import (
    PROTOCOL_VERSION,
    Codes,
    Count,
    GetStart,
    Hello,
    HelloReply,
    KeyBatch,
    Located,
    decode_column,
)

SEED = 20260131
BLOCK = 100_000


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreProcess]:
    with StoreProcess(tmp_path_factory.mktemp("client-faults")) as process:
        yield process


@pytest.fixture
def store(site: StoreProcess) -> StoreProcess:
    """A store that runs and is empty, whatever the test before did to it."""
    site.ensure()
    client = site.client()
    client.remove_all(force=True)
    client.close()
    return site


@pytest.fixture
def client(store: StoreProcess) -> Iterator[MooncakeDistributedStore]:
    made = store.client()
    yield made
    made.close()


def content(key: str, size: int = BLOCK) -> bytes:
    """Bytes that follow from the key."""
    seed = [SEED, *key.encode()]
    return np.random.default_rng(seed).bytes(size)


def session_of(store: StoreProcess) -> ClientSession:
    return ClientSession(LinkOptions(store.socket_path, "", 0.0))


def offset_of(store: StoreProcess, key: str) -> int:
    """Where a block's first byte is in the segment file."""
    connection = Connection(store.socket_path)
    connection.call(Hello(PROTOCOL_VERSION, "client", "test"), HelloReply)
    name = key.encode()
    batch = KeyBatch(name, len(name).to_bytes(2, "little"))
    located = connection.call(GetStart(batch, 0), Located)
    connection.close()
    assert decode_column(located.codes, np.int32, 1)[0] == 0
    return int(decode_column(located.offsets, np.uint64, 1)[0])


def scribble(store: StoreProcess, key: str, at: int = 0) -> None:
    """Flip one bit of a published block behind the store's back."""
    offset = offset_of(store, key) + at
    with open(store.segment_path, "r+b", buffering=0) as segment:
        segment.seek(offset)
        byte = segment.read(1)[0]
        segment.seek(offset)
        segment.write(bytes([byte ^ 0x10]))


class Stalled:
    """A client process in the middle of a put."""

    def __init__(self, store: StoreProcess, key: str, size: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, client_stalled.__file__, store.address, key, str(size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        if self.read_line() != b"copying\n":
            self.end()
            raise AssertionError("the client never came to copy")

    def read_line(self) -> bytes:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def finish(self) -> int:
        """Let it end its put; returns the code."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()
        return int(self.read_line())

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def stalled(store: StoreProcess) -> Iterator[Stalled]:
    made = Stalled(store, "stalled", 8 << 20)
    yield made
    made.end()


def wait_until(condition: Callable[[], bool], seconds_max: float = 10.0) -> None:
    deadline = time.monotonic() + seconds_max
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# --- a client dies or sleeps ----------------------------------------------------------------------


def test_a_client_killed_in_the_middle_of_a_put_has_published_nothing(
    store: StoreProcess, client: MooncakeDistributedStore, stalled: Stalled
) -> None:
    assert store.stats().bytes_used >= 8 << 20
    stalled.end()
    assert client.is_exist("stalled") == 0
    wait_until(lambda: store.stats().bytes_used < 8 << 20)
    assert client.put("stalled", b"another") == 0
    assert client.get("stalled") == b"another"


def test_a_writer_that_wakes_up_after_a_restart_of_the_store_hurts_no_other_block(
    store: StoreProcess, client: MooncakeDistributedStore, stalled: Stalled
) -> None:
    stalled.process.send_signal(signal.SIGSTOP)
    store.restart()
    keys = [f"k{row}" for row in range(200)]
    for key in keys:
        assert client.put(key, content(key)) in (0, -200)
    there = [key for key in keys if client.is_exist(key) == 1]
    assert len(there) > 100
    stalled.process.send_signal(signal.SIGCONT)
    assert stalled.finish() == 0  # put again after its connection broke
    assert all(client.get(key) in (content(key), b"") for key in keys)
    assert sum(client.get(key) == content(key) for key in there) == len(there)
    assert client.get("stalled") == bytes([client_stalled.FILL]) * (8 << 20)


# --- the store dies, hangs, or is not there -------------------------------------------------------


def test_the_first_call_after_a_restart_works_and_adopted_bytes_verify(
    store: StoreProcess, client: MooncakeDistributedStore
) -> None:
    keys = [f"k{row}" for row in range(50)]
    assert client.put_batch(keys, [content(key) for key in keys]) == 0
    store.restart()
    assert client.get(keys[0]) == content(keys[0])
    assert client.get_batch(keys) == [content(key) for key in keys]
    store.restart()
    assert client.put("after", b"restart") == 0
    store.restart()
    assert client.is_exist("after") == 1
    store.restart()
    assert client.remove("after", force=True) == 0


def test_calls_during_a_short_outage_wait_for_the_store(
    store: StoreProcess, client: MooncakeDistributedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "RECONNECT_SECONDS_MAX", 10.0)
    client.put("k", b"value")
    store.kill()
    starter = threading.Timer(0.2, store.start)
    starter.start()
    assert client.get("k") == b"value"
    starter.join()


def test_without_a_store_every_method_says_so_and_soon(
    store: StoreProcess, client: MooncakeDistributedStore
) -> None:
    memory = np.zeros(16, np.uint8)
    address = memory.ctypes.data
    client.put("k", b"value")
    store.kill()
    began = time.monotonic()
    assert client.put("k", b"x") == -900
    assert time.monotonic() - began < pool.RECONNECT_SECONDS_MAX + 1
    began = time.monotonic()
    assert client.put_batch(["k"], [b"x"]) == -900
    assert client.upsert("k", b"x") == -900
    assert client.get("k") == b""
    assert client.get_batch(["k", "j"]) == [b"", b""]
    assert client.get_size("k") == -900
    assert client.is_exist("k") == -900
    assert client.batch_is_exist(["k", "j"]) == [-900, -900]
    assert client.put_from("k", address, 16) == -900
    assert client.get_into("k", address, 16) == -900
    assert client.batch_put_from(["k"], [address], [16]) == [-900]
    assert client.batch_get_into(["k"], [address], [16]) == [-900]
    assert client.remove("k") == -900
    assert client.batch_remove(["k", "j"]) == [-900, -900]
    assert client.remove_all() == -900
    assert client.health_check() == -900
    assert client.get_hostname() == "test"
    assert client.register_buffer(address, 16) == 0
    assert time.monotonic() - began < 1
    store.start()
    assert client.get("k") == b"value"


def test_setup_without_a_store_fails_and_leaves_no_session(tmp_path: Path) -> None:
    client = MooncakeDistributedStore()
    address = f"unix:{tmp_path}"
    assert client.setup("test", "", 0, 0, "tcp", "", address) == -900
    assert client.health_check() == 1


def test_a_hung_store_costs_its_deadline_and_no_more(
    store: StoreProcess, client: MooncakeDistributedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "REQUEST_SECONDS_MAX", 0.3)
    monkeypatch.setattr(pool, "REQUEST_SECONDS_MAX", 0.3)
    client.put("k", b"value")
    store.signal(signal.SIGSTOP)
    began = time.monotonic()
    assert client.is_exist("k") == -900
    assert time.monotonic() - began < 0.6
    assert client.get("k") == b""
    store.signal(signal.SIGCONT)
    assert client.get("k") == b"value"


def test_a_store_with_a_new_segment_is_mapped_anew_and_the_old_one_let_go(
    store: StoreProcess, client: MooncakeDistributedStore
) -> None:
    together = threading.Barrier(3)

    def put(thread: int) -> None:
        together.wait()
        client.put_batch(["k"], [b"old"])
        client.put(f"large{thread}", bytes(8 << 20))

    threads = [threading.Thread(target=put, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store.kill()
    os.unlink(store.segment_path)
    store.start()
    assert client.is_exist("k") == 0
    assert client.put("k", b"new") == 0
    assert client.get("k") == b"new"
    assert f"{store.segment_path} (deleted)" not in Path("/proc/self/maps").read_text()


def test_a_connection_that_broke_gives_its_lock_up(
    store: StoreProcess, client: MooncakeDistributedStore
) -> None:
    for number in range(3):
        assert client.put(f"k{number}", b"x") == 0
        assert held_writer_bytes(store) == 1
        store.restart()


# --- bytes change under the reader ----------------------------------------------------------------


@pytest.mark.parametrize("at", [0, BLOCK // 2, BLOCK - 1])
def test_a_scribbled_block_is_reported_and_never_returned(
    store: StoreProcess, client: MooncakeDistributedStore, at: int
) -> None:
    before = store.stats().corrupt
    client.put_batch(["bad", "good"], [content("bad"), content("good")])
    scribble(store, "bad", at)
    assert client.get_batch(["bad", "good"]) == [b"", content("good")]
    assert client.is_exist("bad") == 0
    assert store.stats().corrupt == before + 1
    assert client.put("bad", content("bad")) == 0
    assert client.get("bad") == content("bad")


def test_a_scribbled_block_is_an_error_code_of_get_into(
    store: StoreProcess, client: MooncakeDistributedStore
) -> None:
    client.put("bad", content("bad"))
    scribble(store, "bad")
    memory = np.zeros(BLOCK, np.uint8)
    assert client.get_into("bad", memory.ctypes.data, BLOCK) < 0
    assert client.get_into("bad", memory.ctypes.data, BLOCK) == -704


def test_reads_that_were_not_believed_are_counted(store: StoreProcess) -> None:
    session = session_of(store)
    block = np.frombuffer(content("k"), np.uint8)
    assert session.put([b"k"], PointerSources.of_arrays([block]), PutOptions()).tolist() == [0]
    scribble(store, "k")
    assert session.get([b"k"], BytesDestinations(1))[0] < 0
    assert (session.counters.corrupt, session.counters.moved) == (1, 0)
    session.close()


class Disturbed(BytesDestinations):
    """Does something to the store before its first copies are made."""

    def __init__(self, count: int, disturbances: list[Callable[[], object]]) -> None:
        super().__init__(count)
        self._disturbances = disturbances

    def deliver(self, rows: Sequence[int], sources: Sequence[int], sizes: Sequence[int]) -> U64:
        if self._disturbances:
            self._disturbances.pop(0)()
        return super().deliver(rows, sources, sizes)


def test_a_block_replaced_during_the_copy_is_read_again(
    store: StoreProcess, client: MooncakeDistributedStore
) -> None:
    client.put("k", content("old"))
    session = session_of(store)
    destinations = Disturbed(1, [lambda: client.upsert("k", content("new"))])
    assert session.get([b"k"], destinations).tolist() == [BLOCK]
    assert destinations.values == [content("new")]
    assert (session.counters.corrupt, session.counters.moved) == (0, 1)
    session.close()


def test_a_block_that_moves_again_and_again_is_a_miss_without_bytes(
    store: StoreProcess, client: MooncakeDistributedStore
) -> None:
    client.put("k", content("old"))
    session = session_of(store)
    replace = [lambda n=n: client.upsert("k", content(f"new{n}")) for n in range(2)]
    destinations = Disturbed(1, replace)
    assert session.get([b"k"], destinations).tolist() == [-707]
    assert destinations.values == [b""]
    session.close()


def test_a_block_removed_and_its_space_reused_during_the_copy_is_a_miss(
    store: StoreProcess, client: MooncakeDistributedStore
) -> None:
    client.put("k", content("k"))

    def reuse() -> None:
        client.remove_all(force=True)
        for row in range(20):
            client.put(f"other{row}", content(f"other{row}"))

    session = session_of(store)
    destinations = Disturbed(1, [reuse])
    assert session.get([b"k"], destinations).tolist() == [-704]
    assert destinations.values == [b""]
    session.close()


def test_a_store_that_names_memory_elsewhere_is_not_believed(store: StoreProcess) -> None:
    connection = Connection(store.socket_path)
    hello = connection.call(Hello(PROTOCOL_VERSION, "client", "test"), HelloReply)
    connection.close()
    segment = MappedSegment(hello.segment_path, hello.segment_id)
    end = os.stat(hello.segment_path).st_size
    for offset, size in ((0, 1), (end, 1), (end - 4096, 4097), (end - 4095, 1), (2**63, 1)):
        with pytest.raises(ProtocolError):
            segment.addresses(np.array([offset], np.uint64), np.array([size], np.uint64))
    with pytest.raises(ProtocolError):
        segment.addresses(np.array([end - 4096], np.uint64), np.array([2**64 - 1], np.uint64))
    with pytest.raises(ProtocolError):
        segment.holds(np.array([2**31]), np.array([1], np.uint64))
    segment.release()


def test_a_damaged_slot_costs_one_more_round_trip_and_is_written_again(
    store: StoreProcess, client: MooncakeDistributedStore
) -> None:
    """Nobody but the store can write a slot, so who cannot read one says so."""
    keys = [f"k{row}" for row in range(20)]
    assert client.put_batch(keys, [content(key) for key in keys]) == 0
    with open(store.segment_path, "r+b", buffering=0) as segment:
        geometry = decode_header(segment.read(HEADER_BYTES))
        segment.seek(geometry.slots_offset)
        segment.write(bytes(64 * geometry.slot_count))
    assert client.get_batch(keys) == [content(key) for key in keys]
    assert store.stats().corrupt >= len(keys)
    assert client.get_batch(keys) == [content(key) for key in keys]


# --- requests whose answer is lost ----------------------------------------------------------------


def lose_an_answer(monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[], object]) -> None:
    """The store dies after it has carried a request out, and before its answer comes."""
    receive, left = Connection._receive, [meanwhile]

    def lose_one(connection: Connection, deadline: float) -> object:
        reply = receive(connection, deadline)
        if left and isinstance(reply, Codes | Count):
            left.pop()()
            raise ConnectionResetError("the store died")
        return reply

    monkeypatch.setattr(Connection, "_receive", lose_one)


@pytest.mark.parametrize("everything", [False, True])
def test_a_removal_whose_answer_was_lost_does_not_take_what_was_put_since(
    store: StoreProcess,
    client: MooncakeDistributedStore,
    monkeypatch: pytest.MonkeyPatch,
    everything: bool,
) -> None:
    other = store.client()
    assert other.put("k", b"old") == 0
    lose_an_answer(monkeypatch, lambda: other.put("k", b"new"))
    code = client.remove_all(force=True) if everything else client.remove("k", force=True)
    assert code == -900, "it may have happened, and the caller decides"
    assert other.get("k") == b"new"
    assert client.get("k") == b"new", "the next call connects again"
    other.close()


def test_a_removal_that_could_not_be_sent_is_sent_again(
    store: StoreProcess, client: MooncakeDistributedStore
) -> None:
    assert client.put("k", b"value") == 0
    store.restart()
    assert client.remove("k", force=True) == 0
    assert client.is_exist("k") == 0


# --- many at once, and fork -----------------------------------------------------------------------


def test_threads_and_processes_share_a_store_while_it_is_restarted(store: StoreProcess) -> None:
    script = f"""
import sys, threading
sys.path[:0] = {sys.path!r}
from test_client_faults import hammer
hammer({store.address!r}, sys.argv[1])
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", script, str(number)]) for number in range(2)
    ]
    try:
        for _ in range(3):
            time.sleep(0.3)
            store.restart()
        for process in processes:
            process.wait(60)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [process.returncode for process in processes] == [0, 0]


def hammer(address: str, name: str) -> None:
    """Three threads that put and get, and compare every byte, until enough came back."""
    client = MooncakeDistributedStore()
    wait_until(lambda: client.setup("test", "", 0, 0, "tcp", "", address) == 0)
    errors: list[str] = []
    deadline = time.monotonic() + 40

    def work(thread: int) -> None:
        generator = np.random.default_rng([SEED, int(name), thread])
        hits = 0
        while hits < 300:
            if time.monotonic() > deadline:
                errors.append("too slow")
                return
            keys = [f"k{row}" for row in generator.integers(0, 300, 8)]
            sizes = [1 + 997 * int(key[1:]) for key in keys]
            pairs = list(zip(keys, sizes, strict=True))
            client.put_batch(keys, [content(key, size) for key, size in pairs])
            for (key, size), value in zip(pairs, client.get_batch(keys), strict=True):
                if value not in (b"", content(key, size)):
                    errors.append(key)
                hits += value != b""

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    client.close()
    assert not errors


def held_writer_bytes(store: StoreProcess) -> int:
    """How many writers' locks are held on the segment, of the first million."""
    descriptor = os.open(store.segment_path, os.O_RDWR)
    try:
        base = decode_header(os.pread(descriptor, HEADER_BYTES, 0)).writer_lock_base
        start, count = base, 0
        while held := first_held(descriptor, start, base + (1 << 20) - start):
            start = held[0] + held[1]
            count += held[1]
        return count
    finally:
        os.close(descriptor)


def test_a_forked_child_works_and_leaves_the_parents_connection_and_lock_alone(
    store: StoreProcess, client: MooncakeDistributedStore
) -> None:
    assert client.put("parent", b"before") == 0
    assert held_writer_bytes(store)
    child = os.fork()
    if child == 0:
        good = client.get("parent") == b"before" and client.put("child", b"hello") == 0
        client.close()
        os._exit(0 if good else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert held_writer_bytes(store)
    connections = store.stats().clients
    assert client.get_batch(["parent", "child"]) == [b"before", b"hello"]
    assert client.put("parent2", b"after") == 0
    assert store.stats().clients == connections


def test_a_closed_client_holds_no_lock(
    store: StoreProcess, client: MooncakeDistributedStore
) -> None:
    assert not held_writer_bytes(store)
    client.put("k", b"x")
    assert held_writer_bytes(store)
    client.close()
    assert not held_writer_bytes(store)


def test_a_client_that_is_dropped_without_close_leaves_nothing_behind(store: StoreProcess) -> None:
    before = store.stats().clients
    client = store.client()
    client.put("k", b"x")
    descriptors = len(os.listdir("/proc/self/fd"))
    del client
    assert not held_writer_bytes(store)
    assert len(os.listdir("/proc/self/fd")) < descriptors
    wait_until(lambda: store.stats().clients == before)


def test_closing_while_other_threads_work_ends_their_calls_with_a_code(
    store: StoreProcess, client: MooncakeDistributedStore
) -> None:
    results: list[int] = []

    def work(thread: int) -> None:
        for number in range(10_000):
            code = client.put(f"{thread}-{number}", b"x")
            if code != 0:
                results.append(code)
                return

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    client.close()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert set(results) <= {-600, -900}
    assert not held_writer_bytes(store)


# --- sizes ----------------------------------------------------------------------------------------


def test_values_from_one_byte_to_more_than_64_mib(tmp_path: Path) -> None:
    with StoreProcess(tmp_path, global_segment_size="192mb") as store:
        client = store.client()
        for size in (1, 4095, 4096, 4097, 1 << 20, (64 << 20) + 1):
            key = f"s{size}"
            value = content(key, size)
            assert client.put(key, value) == 0
            assert client.get_size(key) == size
            assert client.get(key) == value
        client.close()


def test_the_rest_of_the_last_page_is_zero(
    store: StoreProcess, client: MooncakeDistributedStore
) -> None:
    client.put("full", b"\xff" * 4096)
    offset = offset_of(store, "full")
    client.remove("full", force=True)
    client.put("short", b"abc")
    assert offset_of(store, "short") == offset
    with open(store.segment_path, "rb") as segment:
        segment.seek(offset)
        assert segment.read(4096) == b"abc".ljust(4096, b"\0")


def test_a_batch_of_more_keys_than_a_message_holds(
    store: StoreProcess, client: MooncakeDistributedStore
) -> None:
    keys = [f"k{row}" for row in range(70_000)]
    client.put("k69999", b"x")
    assert client.batch_is_exist(keys) == [0] * 69_999 + [1]
    long_keys = [f"{row:08}".ljust(1024, "l") for row in range(20_000)]
    client.put(long_keys[-1], b"x")
    assert client.batch_is_exist(long_keys) == [0] * 19_999 + [1]
