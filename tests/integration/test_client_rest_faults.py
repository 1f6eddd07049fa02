"""The calls on several places, ranges, buffers and patterns when something dies or scribbles."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from client_store import StoreProcess
from daemon_site import DaemonSite
from fault_ledger import FaultClass, case

from snapd.blocks.keys import U64
from snapd.client import MooncakeDistributedStore, ReplicateConfig
from snapd.client.link import LinkOptions
from snapd.client.options import PutOptions
from snapd.client.parts import Parts, PartSources
from snapd.client.session import ClientSession
from snapd.formats.segment import HEADER_BYTES, decode_header
from snapd.wire.connection import Connection
from snapd.wire.messages import (
    PROTOCOL_VERSION,
    Attach,
    Attached,
    Codes,
    ColdReady,
    GetStart,
    Hello,
    HelloReply,
    KeyBatch,
    Located,
    decode_column,
)

BLOCK = 60_000
CUT = 25_000


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreProcess]:
    with StoreProcess(tmp_path_factory.mktemp("client-rest")) as process:
        yield process


@pytest.fixture
def store(site: StoreProcess) -> StoreProcess:
    """A store that runs and is empty."""
    site.ensure()
    with closing(site.client()) as client:
        client.remove_all(force=True)
    return site


@pytest.fixture
def client(store: StoreProcess) -> Iterator[MooncakeDistributedStore]:
    with closing(store.client()) as made:
        yield made


def content(name: str, size: int = BLOCK) -> bytes:
    return np.random.default_rng([*name.encode()]).bytes(size)


class Places:
    """Memory for one block in two parts, with a gap between them."""

    def __init__(self, client: MooncakeDistributedStore) -> None:
        self.memory = np.zeros(BLOCK + 100, np.uint8)
        self.base = self.memory.ctypes.data
        self.addresses = [self.base, self.base + CUT + 100]
        self.sizes = [CUT, BLOCK - CUT]
        assert client.register_buffer(self.base, len(self.memory)) == 0

    def value(self) -> bytes:
        return self.memory[:CUT].tobytes() + self.memory[CUT + 100 :].tobytes()

    def fill(self, value: bytes) -> None:
        bytes_ = np.frombuffer(value, np.uint8)
        self.memory[:CUT], self.memory[CUT + 100 :] = bytes_[:CUT], bytes_[CUT:]


def scribble(store: StoreProcess, key: str, at: int) -> None:
    """Flip one bit of a published block behind the store's back."""
    connection = Connection(store.socket_path)
    connection.call(Hello(PROTOCOL_VERSION, "client", "test"), HelloReply)
    name = key.encode()
    located = connection.call(GetStart(KeyBatch(name, len(name).to_bytes(2, "little")), 0), Located)
    connection.close()
    offset = int(decode_column(located.offsets, np.uint64, 1)[0]) + at
    with open(store.segment_path, "r+b", buffering=0) as segment:
        segment.seek(offset)
        byte = segment.read(1)[0]
        segment.seek(offset)
        segment.write(bytes([byte ^ 0x10]))


READS: dict[str, Callable[[MooncakeDistributedStore, Places, str], object]] = {
    "into several places": lambda client, places, key: client.batch_get_into_multi_buffers(
        [key], [places.addresses], [places.sizes]
    )[0],
    "a range": lambda client, places, key: client.get_into_ranges(
        [places.base], [[key]], [[[0]]], [[[BLOCK - 10]]], [[[10]]]
    )[0][0][0],
    "a buffer": lambda client, places, key: client.get_buffer(key),
}


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("at", [0, CUT, BLOCK - 1])
def test_no_read_gives_bytes_of_a_scribbled_block(
    store: StoreProcess, client: MooncakeDistributedStore, read: str, at: int
) -> None:
    """Also not a range that the flipped bit is outside of: the checksum is of the whole block."""
    with case(FaultClass.NEIGHBOUR, f"a published block scribbled at {at}: read {read}"):
        places = Places(client)
        before = store.stats().corrupt
        assert client.put("bad", content("bad")) == 0
        scribble(store, "bad", at)
        code = READS[read](client, places, "bad")
        assert code is None if read == "a buffer" else code in (-701, -704)
        assert store.stats().corrupt == before + 1
        assert client.is_exist("bad") == 0
        client.put("bad", content("good"))
        assert READS[read](client, places, "bad") not in (None, -701, -704)


class ChangingSources(PartSources):
    """Sources that somebody writes into between hash and copy."""

    def copy_to(self, targets: object) -> U64:
        checksums = super().copy_to(targets)  # type: ignore[arg-type]
        self.change()
        super().copy_to(targets)  # type: ignore[arg-type]
        return checksums

    def take(self, rows: object) -> PartSources:
        return self

    change: Callable[[], None]


@pytest.mark.parametrize("at", [0, CUT + 100, BLOCK + 99])
def test_a_part_that_changes_under_its_put_is_a_miss(
    store: StoreProcess, client: MooncakeDistributedStore, at: int
) -> None:
    with case(FaultClass.NEIGHBOUR, f"a source in parts that changes at {at} under its put"):
        places = Places(client)
        places.fill(content("k"))
        session = ClientSession(LinkOptions(store.socket_path, "", 0.0))
        sources = ChangingSources(Parts([places.addresses], [places.sizes]), [0])

        def change() -> None:
            places.memory[at] ^= 1

        sources.change = change
        assert session.put([b"k"], sources, PutOptions()).tolist() == [0]
        session.close()
        assert client.get("k") == b""
        assert client.get_buffer("k") is None


@pytest.mark.parametrize("read", READS)
def test_reads_find_their_store_again(
    store: StoreProcess, client: MooncakeDistributedStore, read: str
) -> None:
    with case(FaultClass.KILL, f"the store, between put and read {read}"):
        places = Places(client)
        places.fill(content("k"))
        codes = client.batch_put_from_multi_buffers(["k"], [places.addresses], [places.sizes])
        assert codes == [0]
        places.fill(bytes(BLOCK))
        store.restart()
        code = READS[read](client, places, "k")
        assert code not in (None, -704)
        if read == "into several places":
            assert (code, places.value()) == (BLOCK, content("k"))


@pytest.mark.parametrize("call", ["batch_put_from_multi_buffers", "batch_upsert_from"])
def test_a_client_killed_in_the_middle_of_its_batches_leaves_whole_blocks_only(
    store: StoreProcess, client: MooncakeDistributedStore, call: str
) -> None:
    script = f"""
import sys, numpy as np
from snapd.client import MooncakeDistributedStore
store = MooncakeDistributedStore()
store.setup("test", "", 0, 0, "tcp", "", {store.address!r})
memory = np.empty((8, {BLOCK}), np.uint8)
rows = [int(row.ctypes.data) for row in memory]
print("ready", flush=True)
for version in range(1, 1 << 30):
    memory[:] = version % 251
    keys = [f"k{{version % 3}}-{{row}}" for row in range(8)]
    if {call!r} == "batch_upsert_from":
        store.batch_upsert_from(keys, rows, [{BLOCK}] * 8)
    else:
        store.batch_put_from_multi_buffers(
            keys, [[r, r + {CUT}] for r in rows], [[{CUT}, {BLOCK - CUT}]] * 8
        )
        store.batch_remove(keys, True)
"""
    with case(FaultClass.KILL, f"a client in the middle of {call}"):
        for _ in range(3):
            process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            time.sleep(0.2)
            process.kill()
            process.wait()
            process.stdout.close()
            keys = [f"k{version}-{row}" for version in range(3) for row in range(8)]
            for value in client.get_batch(keys):
                assert value == b"" or (len(value) == BLOCK and len(set(value)) == 1)
        assert store.stats().corrupt == 0
        assert client.put("after", b"x") == 0


def test_batches_of_several_requests_keep_parts_and_groups_with_their_keys(
    client: MooncakeDistributedStore,
) -> None:
    """A put is cut where it would take too much of the store at once."""
    count, size, cut = 40, 500_000, 123_457
    memory = np.random.default_rng(1).integers(0, 256, (count, size), np.uint8)
    before = memory.copy()
    keys = [f"k{row}" for row in range(count)]
    addresses = [[int(row.ctypes.data), int(row.ctypes.data) + cut] for row in memory]
    sizes = [[cut, size - cut]] * count
    config = ReplicateConfig()
    config.group_ids = [f"group{row // 2}" if row % 5 else "" for row in range(count)]
    codes = client.batch_put_from_multi_buffers(keys, addresses, sizes, config)
    assert codes == [0] * count
    memory[:] = 0
    codes = client.batch_get_into_multi_buffers(keys, addresses, sizes)
    assert codes == [size] * count
    assert (memory == before).all()
    rows = [row[0] for row in addresses]
    assert client.batch_upsert_from(keys, rows, [10] * count, config) == [0] * count
    config.group_ids = [f"group{row // 2}" for row in range(count)]
    codes = client.batch_upsert_from(keys, rows, [10] * count, config)
    assert codes == [0 if row % 5 else -600 for row in range(count)]


# --- removing by a pattern ------------------------------------------------------------------------


def test_a_pattern_finds_keys_whose_slots_somebody_damaged(
    store: StoreProcess, client: MooncakeDistributedStore
) -> None:
    """What shared memory says of keys is not believed: the store knows them."""
    with case(FaultClass.NEIGHBOUR, "the slot table wiped: keys removed by a pattern"):
        keys = [f"k{row}" for row in range(20)]
        assert client.put_batch(keys, [b"x"] * 20) == 0
        with open(store.segment_path, "r+b", buffering=0) as segment:
            geometry = decode_header(segment.read(HEADER_BYTES))
            segment.seek(geometry.slots_offset)
            segment.write(bytes(64 * geometry.slot_count))
        assert client.remove_by_regex("^k1") == 11
        assert client.batch_is_exist(keys) == [int(not key.startswith("k1")) for key in keys]


def test_a_pattern_that_never_ends_holds_up_nobody_else(
    store: StoreProcess, client: MooncakeDistributedStore
) -> None:
    script = f"""
from snapd.client import MooncakeDistributedStore
store = MooncakeDistributedStore()
store.setup("test", "", 0, 0, "tcp", "", {store.address!r})
print("begins", flush=True)
store.remove_by_regex("(a+)+$")
"""
    with case(FaultClass.NEIGHBOUR, "a pattern that matches for ever"):
        client.put("a" * 60 + "b", b"x")
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"begins\n"
            time.sleep(0.3)
            began = time.monotonic()
            assert client.put("other", b"y") == 0
            assert client.get("other") == b"y"
            assert time.monotonic() - began < 0.5
            assert process.poll() is None, "the pattern was meant to take for ever"
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def test_a_pattern_looks_at_the_keys_of_its_own_label_only(store: StoreProcess) -> None:
    def labelled(label: str) -> MooncakeDistributedStore:
        made = MooncakeDistributedStore()
        address = {
            "local_hostname": "t",
            "metadata_server": "",
            "master_server_addr": store.address,
        }
        assert made.setup({**address, "fingerprint": label}) == 0
        return made

    with closing(labelled("a")) as a, closing(labelled("b")) as b, closing(labelled("")) as plain:
        for one in (a, b, plain):
            assert one.put_batch(["k1", "k2", "j"], [b"x"] * 3) == 0
        assert a.remove_by_regex("^k\\d$") == 2
        assert a.batch_is_exist(["k1", "k2", "j"]) == [0, 0, 1]
        for one in (b, plain):
            assert one.batch_is_exist(["k1", "k2", "j"]) == [1, 1, 1]
        assert plain.remove_by_regex(".", True) == 3
        assert b.remove_by_regex("[0-9a-f]{16}$") == 0, "no pattern sees a tag"
        assert b.batch_is_exist(["k1", "k2", "j"]) == [1, 1, 1]


def test_while_more_may_turn_up_on_disk_a_pattern_says_so(
    store: StoreProcess, client: MooncakeDistributedStore
) -> None:
    client.put_batch(["k1", "k2"], [b"x"] * 2)
    daemon = Connection(store.socket_path)
    daemon.call(Hello(PROTOCOL_VERSION, "daemon", "test"), HelloReply)
    daemon.call(Attach(b"daemon"), Attached)
    assert client.remove_by_regex("k1") == -500
    assert client.batch_is_exist(["k1", "k2"]) == [0, 1]
    daemon.call(ColdReady(), Codes)
    assert client.remove_by_regex("k2", True) == 1
    daemon.close()


def test_threads_that_remove_by_patterns_share_the_keys(
    store: StoreProcess, client: MooncakeDistributedStore
) -> None:
    keys = [f"key{number}" for number in range(2000)]
    client.put_batch(keys, [b"x"] * len(keys))
    counts: list[int] = []

    def remove() -> None:
        with closing(store.client()) as mine:
            counts.append(mine.remove_by_regex("^key"))

    threads = [threading.Thread(target=remove) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(counts) == len(keys)
    assert min(counts) >= 0


def test_what_a_pattern_removed_stays_removed(tmp_path: Path) -> None:
    """From disk and from memory, whatever dies afterwards."""
    keys = [f"{kind}-{number}" for kind in ("old", "new") for number in range(8)]
    with DaemonSite(tmp_path) as site:
        site.start()
        client = site.client()
        assert client.put_batch(keys, [content(key, 5000) for key in keys]) == 0
        site.flushed()
        site.snapshot()
        _lose_node(site)
        assert client.get("old-0") == content("old-0", 5000)
        with case(FaultClass.POWER_CUT, "keys removed by a pattern: node lost after the answer"):
            assert client.remove_by_regex("^old-", True) == 8
            _lose_node(site)
            assert client.batch_is_exist(keys) == [0] * 8 + [1] * 8
        assert [client.get(key) for key in keys[8:]] == [content(key, 5000) for key in keys[8:]]


def _lose_node(site: DaemonSite) -> None:
    site.kill_store()
    site.kill_daemon()
    site.wipe_segment()
    site.start()
