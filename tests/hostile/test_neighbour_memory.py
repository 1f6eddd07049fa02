"""A process that writes where it must not, in memory that all may write: a real store and daemon.

Whatever it hits, nobody is given a wrong byte, nothing wrong reaches the disk as good, and neither
process falls. What is lost is a block, and counted.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from daemon_site import DaemonSite, block
from fault_ledger import FaultClass, case
from neighbour_kit import Witness, until

from snapd.client import MooncakeDistributedStore
from snapd.formats.segment import (
    HEADER_BYTES,
    HEAT_DTYPE,
    SLOT_DTYPE,
    Geometry,
    decode_header,
)

SEED = int(os.environ.get("SNAPD_TEST_SEED", "20261124"))
KEYS = [f"key-{number}" for number in range(60)]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[DaemonSite]:
    with DaemonSite(tmp_path / "site", global_segment_size="16mb", segment_blocks_max=1024) as made:
        made.start()
        yield made


class Scribbler:
    """A process's mapping of the whole segment, and where things are in it."""

    def __init__(self, path: str) -> None:
        with open(path, "r+b") as file:
            self.memory = mmap.mmap(file.fileno(), 0)
        self.geometry: Geometry = decode_header(self.memory[:HEADER_BYTES])

    def __enter__(self) -> Scribbler:
        return self

    def __exit__(self, *_: object) -> None:
        self.memory.close()

    def regions(self) -> dict[str, tuple[int, int]]:
        """(start, length) of what holds something worth hitting."""
        places = self.geometry
        slots = places.slot_count
        return {
            "header page": (0, HEADER_BYTES),
            "slot table": (places.slots_offset, slots * SLOT_DTYPE.itemsize),
            "heat table": (places.heat_offset, slots * HEAT_DTYPE.itemsize),
            "old key index": (places.index_offset, 68 * places.index_buckets),
            "key heap": (places.key_heap_offset, 4096 + 32 * 4 * 200),
            "data": (places.data_offset, 4 << 20),
        }

    def hit(self, region: str, chance: random.Random, how: str) -> None:
        """Flip one bit, overwrite a run, or fill all of it."""
        start, length = self.regions()[region]
        if how == "bit":
            at = start + chance.randrange(length)
            self.memory[at] ^= 1 << chance.randrange(8)
        elif how == "run":
            count = min(length, chance.choice([8, 64, 700]))
            at = start + chance.randrange(length - count + 1)
            self.memory[at : at + count] = chance.randbytes(count)
        elif region == "heat table":
            self._lie_about_heat()
        else:
            self.memory[start : start + length] = bytes([chance.choice([0, 255])]) * length

    def _lie_about_heat(self) -> None:
        """Reads that no number counts, and a last one in the far future."""
        places = self.geometry
        heat = np.frombuffer(self.memory, HEAT_DTYPE, places.slot_count, places.heat_offset)
        odd = np.array([np.nan, np.inf, -np.inf, 3e38, -1.0], np.float32)
        heat["access_count"] = np.resize(odd, len(heat))
        heat["last_access"] = 2**32 - 1


def values() -> dict[str, bytes]:
    return {key: block(key, 1, 20_000) for key in KEYS}


def wrong_values(client: MooncakeDistributedStore) -> list[str]:
    """Keys that are given with other bytes than they have; a miss is not wrong."""
    right = values()
    return [key for key in KEYS if client.get(key) not in (b"", right[key])]


def processes(site: DaemonSite) -> tuple[int, int]:
    assert site.store is not None
    assert site.daemon is not None
    assert site.store.poll() is None, "the store fell"
    assert site.daemon.poll() is None, "the daemon fell"
    return site.store.pid, site.daemon.pid


REGIONS = ["header page", "slot table", "heat table", "old key index", "key heap", "data"]


@pytest.mark.parametrize("rounds", [1, pytest.param(12, marks=pytest.mark.long)])
def test_writing_anywhere_gives_nobody_a_wrong_byte_now_or_after_any_restart(
    site: DaemonSite, rounds: int
) -> None:
    """Scribble while blocks are put, read and flushed; then kill the store, wipe its memory, and
    see what the disk gives back: every key has its bytes or is a miss."""
    chance = random.Random(SEED)
    for number in range(rounds):
        client = site.client()
        for key, value in values().items():
            assert client.put(key, value) == 0
        before = processes(site)
        with (
            Witness(f"unix:{site.runtime}", SEED + number, keys=20),
            Scribbler(site.segment_path) as scribbler,
        ):
            for region in REGIONS:
                for how in ("bit", "run", "all"):
                    name = f"scribble: {how} in {region}, round {number}"
                    with case(FaultClass.NEIGHBOUR, name):
                        for _ in range(3 if how != "all" else 1):
                            scribbler.hit(region, chance, how)
                        assert wrong_values(client) == [], (SEED, name)
                        assert processes(site) == before
                        for key in chance.sample(KEYS, 5):
                            assert client.upsert(key, values()[key]) in (0, -500), (SEED, name)
        assert client.put("after", b"value") == 0
        until("the header is whole", lambda: header_is_whole(site), 5)
        until("a snapshot succeeds", lambda: site.ask("/snapshot", "POST")[0] == 200, 20)
        with case(FaultClass.NEIGHBOUR, f"scribble: killed after all that, round {number}"):
            site.kill_store()
            site.start_store()
            until("served again", lambda: site.client().put("again", b"value") == 0)
            assert wrong_values(site.client()) == [], SEED
        with case(FaultClass.NEIGHBOUR, f"scribble: from disk after all that, round {number}"):
            site.kill_store()
            site.wipe_segment()
            site.start_store()
            site.wait_ready()
            client = site.client()
            assert wrong_values(client) == [], SEED
            assert client.get("after") in (b"value", b"")
        assert site.ask("/healthz")[0] == 200


def header_is_whole(site: DaemonSite) -> bool:
    with open(site.segment_path, "rb") as file, contextlib.suppress(Exception):
        decode_header(file.read(HEADER_BYTES))
        return True
    return False


def offset_of(scribbler: Scribbler, value: bytes) -> int:
    """Where in the segment these bytes lie."""
    return scribbler.memory.find(value, scribbler.geometry.data_offset)


def test_a_block_scribbled_before_its_flush_is_never_blessed(tmp_path: Path) -> None:
    """The flush holds it against the checksum of who put it: quarantined, counted, not written."""
    with DaemonSite(tmp_path / "site", flush_sec=3600, snapshot_interval_sec=3600) as site:
        site.start()
        client = site.client()
        for key, value in values().items():
            assert client.put(key, value) == 0
        bad = KEYS[::7]
        with (
            Scribbler(site.segment_path) as scribbler,
            case(FaultClass.NEIGHBOUR, "scribble: data of blocks that are not flushed yet"),
        ):
            for key in bad:
                at = offset_of(scribbler, values()[key])
                assert at > 0
                scribbler.memory[at + 10_000] ^= 4
            site.snapshot()
            assert site.metric("blocks_quarantined_total") == len(bad)
            assert site.status()["snapshot"]["blocks"] == len(KEYS) - len(bad)
            site.kill_store()
            site.wipe_segment()
            site.start_store()
            site.wait_ready()
            client = site.client()
            assert [key for key in KEYS if client.get(key) == b""] == bad
            assert wrong_values(client) == []


def test_slots_evicted_and_reused_under_a_flush_leave_no_wrong_block_on_disk(
    tmp_path: Path,
) -> None:
    """A small store under puts that push each other out, flushed all the time; then only the disk
    is left: it has each key with the bytes it had, or not at all."""
    with DaemonSite(
        tmp_path / "site", global_segment_size="2mb", flush_sec=0.05, lease_sec=0.01
    ) as site:
        site.start()
        with case(FaultClass.NEIGHBOUR, "slots evicted and reused in the middle of flushes"):
            threads, last = churn(site)
            for thread in threads:
                thread.join(60)
            site.snapshot()
            site.kill_store()
            site.wipe_segment()
            site.start_store()
            site.wait_ready()
            client = site.client()
            got = {key: client.get(key) for key in last}
            wrong = [key for key, value in got.items() if value not in (b"", last[key])]
            assert wrong == []
            assert sum(value != b"" for value in got.values()) > 5


def churn(site: DaemonSite) -> tuple[list[threading.Thread], dict[str, bytes]]:
    """Threads with keys of their own; what each key was last given, or b"" once removed."""
    last: dict[str, bytes] = {}

    def work(number: int) -> None:
        client, chance = site.client(), random.Random(SEED + number)
        for step in range(70):
            key = f"churn-{number}-{chance.randrange(60)}"
            if chance.random() < 0.15:
                if client.remove(key, force=True) in (0, -704):
                    last[key] = b""
                continue
            value = block(key, step, chance.choice([900, 30_000, 90_000]))
            if client.upsert(key, value) == 0:
                last[key] = value

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    return threads, last
