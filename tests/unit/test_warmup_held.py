"""Loading cold blocks whose bytes are in memory already, and a store that takes them later."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from daemon_kit import LocalDaemon
from store_kit import LocalStore, content, shared_memory_path

from snapd.attach.port import I32, Fill, Sink
from snapd.blocks.table import U32
from snapd.disk.simulated import SimulatedDisk
from snapd.metrics import Metrics
from snapd.warmup import Demand, Warmer
from snapd.warmup.load import LoadResult, load_cold
from snapd.wire.codes import ReturnCode

BLOCK = 9000
BLOCKS = {b"key-%02d" % number: content(number, BLOCK) for number in range(24)}


class CountingDisk(SimulatedDisk):
    """Counts the packs that are opened to be read."""

    def __init__(self) -> None:
        super().__init__(1)
        self.packs_read = 0

    def open(self, name: str, mode: str, *, direct: bool = False) -> Any:
        self.packs_read += mode == "r" and name.endswith(".pack")
        return super().open(name, mode, direct=direct)


@dataclass
class Trouble:
    """What a store like Mooncake's does beside what the bundled one does."""

    held: dict[bytes, bytes] = field(default_factory=dict)
    """What an old life left, by key."""
    held_only: bool = False
    not_ready: int = 0
    """Reservations that are answered with "come again"."""
    unconfirmed: int = 0
    """Blocks of publications that are: the first so many of the next fill."""
    reserved: list[int] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


class TroubledSink:
    """A real sink of the bundled store, and trouble."""

    def __init__(self, sink: Sink, keys: dict[int, bytes], trouble: Trouble) -> None:
        self._sink, self._keys, self._trouble = sink, keys, trouble

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sink, name)

    def reserve(self, slots: U32, sequences: Any, sizes: Any, *, demand: bool) -> Fill:
        trouble = self._trouble
        with trouble.lock:
            trouble.reserved.append(len(slots))
            if trouble.not_ready:
                trouble.not_ready -= 1
                zeros = np.zeros(len(slots), np.uint64)
                codes = np.full(len(slots), ReturnCode.REPLICA_IS_NOT_READY, np.int32)
                views = [memoryview(b"")] * len(slots)
                return Fill(slots, sequences, codes, zeros.astype(np.uint32), zeros, views)
        fill = self._sink.reserve(slots, sequences, sizes, demand=demand)
        held = np.zeros(len(slots), np.bool_)
        for row, slot in enumerate(slots.tolist()):
            left = trouble.held.get(self._keys[slot])
            if left is not None and fill.codes[row] == ReturnCode.OK:
                fill.buffers[row][: len(left)] = left
                held[row] = True
        return replace(fill, held=held, held_only=held if trouble.held_only else None)

    def publish(self, fill: Fill, codes: I32) -> I32:
        with self._trouble.lock:
            some = self._trouble.unconfirmed if bool((fill.codes == ReturnCode.OK).any()) else 0
            self._trouble.unconfirmed -= some
        codes = codes.copy()
        late = np.flatnonzero(fill.codes == ReturnCode.OK)[:some]
        codes[late] = ReturnCode.TRANSFER_FAIL  # the bundled store takes the space back
        result = self._sink.publish(fill, codes)
        result[late] = ReturnCode.REPLICA_IS_NOT_READY
        return result


@dataclass
class Site:
    store: LocalStore
    daemon: LocalDaemon
    disk: CountingDisk
    trouble: Trouble

    @property
    def keys(self) -> dict[int, bytes]:
        """Key of each cold slot."""
        assert self.daemon.session is not None
        slots = self.daemon.session.residency.cold_slots()
        with closing(self.daemon.session.open_source()) as source:
            table = source.describe(slots)
        return dict(zip(table.slot.tolist(), table.keys.to_list(), strict=True))

    def load(self) -> LoadResult:
        session = self.daemon.session
        assert session is not None
        with closing(session.open_sink()) as sink:
            troubled: Any = TroubledSink(sink, self.keys, self.trouble)
            return load_cold(
                session, troubled, self.daemon.repository, self.daemon.plan(), demand=False
            )

    def warmer(self, metrics: Metrics, stopping: threading.Event) -> Warmer:
        session = self.daemon.session
        assert session is not None
        keys = self.keys
        troubled = replace(
            session,
            open_sink=lambda: TroubledSink(session.open_sink(), keys, self.trouble),  # type: ignore[arg-type,return-value]
        )
        self.daemon.link.publish(troubled)
        return Warmer(
            self.daemon.repository,
            self.daemon.link,
            Demand(),
            pace=self.paced.append,
            observer=metrics,
            stopping=stopping,
        )

    paced: list[int] = field(default_factory=list)

    def served(self) -> dict[bytes, bytes | None]:
        return dict(zip(BLOCKS, self.store.client().get(list(BLOCKS)), strict=True))


@pytest.fixture
def site() -> Iterator[Site]:
    """Everything is on disk and cold: the store lost its memory."""
    disk = CountingDisk()
    with shared_memory_path() as path:
        store = LocalStore(path, global_segment_size=1 << 22)
        daemon = LocalDaemon(store, disk)
        daemon.attach()
        store.client().put(BLOCKS)
        daemon.flush()
        daemon.commit()
        daemon.close()
        store.close()
    with shared_memory_path() as path:
        store = LocalStore(path, global_segment_size=1 << 22)
        daemon = LocalDaemon(store, disk)
        daemon.attach()
        disk.packs_read = 0
        yield Site(store, daemon, disk, Trouble())
        daemon.close()
        store.close()


def test_what_memory_holds_is_not_read_from_the_disk(site: Site) -> None:
    site.trouble.held = dict(BLOCKS)
    result = site.load()
    assert (result.from_memory, result.loaded) == (len(BLOCKS), 0)
    assert result.from_memory_bytes == len(BLOCKS) * BLOCK
    assert result.counts() == [("from_memory", len(BLOCKS), len(BLOCKS) * BLOCK)]
    assert site.disk.packs_read == 0
    assert site.served() == BLOCKS


def test_bytes_without_their_checksum_are_read_from_the_disk(site: Site) -> None:
    wrong = {key: bytes([value[0] ^ 1]) + value[1:] for key, value in BLOCKS.items()}
    site.trouble.held = {
        key: wrong[key] if number % 3 else BLOCKS[key] for number, key in enumerate(BLOCKS)
    }
    result = site.load()
    assert (result.from_memory, result.loaded) == (8, 16)
    assert site.disk.packs_read > 0
    assert site.served() == BLOCKS


def test_what_came_after_a_block_is_not_covered_up_by_it(site: Site) -> None:
    """A file that nobody could write to any more has other bytes: something newer was there."""
    site.trouble.held = {
        key: bytes(BLOCK) if key < b"key-08" else value for key, value in BLOCKS.items()
    }
    site.trouble.held_only = True
    result = site.load()
    assert (result.from_memory, result.superseded, result.loaded) == (16, 8, 0)
    assert site.disk.packs_read == 0
    kept = {key: value for key, value in BLOCKS.items() if key >= b"key-08"}
    assert {key: value for key, value in site.served().items() if value} == kept


def test_blocks_that_have_to_wait_stay_cold_and_on_disk(site: Site) -> None:
    site.trouble.not_ready = 1
    result = site.load()
    assert len(result.waiting) == len(BLOCKS)
    assert result.counts() == []
    site.trouble.unconfirmed = 5
    result = site.load()
    assert (result.loaded, len(result.waiting)) == (len(BLOCKS) - 5, 5)
    result = site.load()
    assert (result.loaded, len(result.waiting)) == (5, 0)
    assert site.served() == BLOCKS


def run_warmer(site: Site, metrics: Metrics) -> Warmer:
    stopping = threading.Event()
    warmer = site.warmer(metrics, stopping)
    thread = threading.Thread(target=warmer.run)
    thread.start()
    deadline = time.monotonic() + 20
    while warmer.state != "done" and time.monotonic() < deadline:
        time.sleep(0.01)
    stopping.set()
    session = site.daemon.session
    assert session is not None
    session.lost.set()
    thread.join(10)
    return warmer


def test_the_warm_up_comes_again_until_nothing_waits(site: Site) -> None:
    metrics = Metrics()
    site.trouble.not_ready, site.trouble.unconfirmed = 3, 7
    warmer = run_warmer(site, metrics)
    assert warmer.state == "done"
    assert warmer.handled == warmer.planned == len(BLOCKS)
    assert site.trouble.reserved == [24, 24, 24, 24, 7]
    sample = metrics.registry.get_sample_value
    assert sample("snapd_warmup_blocks_total", {"result": "loaded"}) == len(BLOCKS)
    assert sample("snapd_warmup_blocks_total", {"result": "superseded"}) == 0
    assert sample("snapd_warmup_progress_ratio") == 1.0
    assert site.paced == [24 * BLOCK, 0, 0, 0, 0], "bytes are paced once, not at each attempt"
    assert site.served() == BLOCKS


def test_the_warm_up_counts_what_came_from_memory(site: Site) -> None:
    metrics = Metrics()
    site.trouble.held = dict(BLOCKS)
    run_warmer(site, metrics)
    sample = metrics.registry.get_sample_value
    assert sample("snapd_warmup_blocks_total", {"result": "from_memory"}) == len(BLOCKS)
    assert sample("snapd_warmup_blocks_total", {"result": "loaded"}) == 0
    assert sample("snapd_warmup_bytes_total") == len(BLOCKS) * BLOCK
