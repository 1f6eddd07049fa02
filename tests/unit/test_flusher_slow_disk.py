"""A first snapshot that takes longer than its interval, and an end in the middle of it."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future

import numpy as np
import pytest
from daemon_kit import LocalDaemon
from repository_kit import contents_of, remove
from store_kit import LocalStore, content, shared_memory_path

from snapd.config import Settings
from snapd.disk import Disk, DiskFile
from snapd.disk.metered import MeteredDisk, MeteredFile
from snapd.disk.simulated import SimulatedDisk
from snapd.flusher import Flusher
from snapd.repository import Repository, commit

BLOCK = 65_536
BLOCKS = 96


class SlowDisk(MeteredDisk):
    """Takes its time for each byte."""

    def __init__(self, disk: Disk) -> None:
        super().__init__(disk)
        self.seconds_per_byte = 0.0

    def open(self, name: str, mode: str, *, direct: bool = False) -> DiskFile:
        file = super().open(name, mode, direct=direct)
        return file if mode == "r" else SlowFile(file, self)


class SlowFile(MeteredFile):
    def __init__(self, file: DiskFile, disk: SlowDisk) -> None:
        super().__init__(file, disk)
        self._disk = disk

    def write(self, buffers: Sequence[memoryview], offset: int) -> None:  # type: ignore[override]
        time.sleep(
            self._disk.seconds_per_byte * sum(one.nbytes for one in map(memoryview, buffers))
        )
        super().write(buffers, offset)


@pytest.fixture
def slow() -> Iterator[tuple[LocalDaemon, SlowDisk, SimulatedDisk]]:
    """A daemon with blocks in its store; a tenth of them, in the middle, were read often."""
    with shared_memory_path() as path:
        store = LocalStore(path, global_segment_size=1 << 24, segment_blocks_max=256)
        store.advance(time.time() - 1.7e9 - store.now)
        inner = SimulatedDisk(1)
        disk = SlowDisk(inner)
        daemon = LocalDaemon(store, disk, pack_bytes_max=BLOCK * 4)
        daemon.attach()
        daemon.flush()
        client = store.client()
        blocks = {b"key-%02d" % number: content(number, BLOCK - 100) for number in range(BLOCKS)}
        client.put(blocks)
        hot = [b"key-%02d" % number for number in range(50, 60)]
        for _ in range(5):
            client.get(hot)
        yield daemon, disk, inner
        daemon.close()
        store.close()


def flusher_of(daemon: LocalDaemon, **settings: float) -> Flusher:
    values = {"flush_sec": 0.05, "snapshot_interval_sec": 0.2} | settings
    return Flusher(
        daemon.repository,
        daemon.link,
        Settings(**values),  # type: ignore[arg-type]
        pace=lambda _: None,
        observer=daemon.metrics,
        budget=daemon.budget,
        piece_bytes_max=2**18,
        last_piece_bytes_max=2**18,
    )


def test_each_interval_gets_its_snapshot_and_the_lag_says_what_is_missing(
    slow: tuple[LocalDaemon, SlowDisk, SimulatedDisk],
) -> None:
    daemon, disk, _ = slow
    disk.seconds_per_byte = 0.25 / 2**20  # 4 MiB/s: 1.5 s for all of it
    flusher = flusher_of(daemon)
    thread = threading.Thread(target=flusher.run)
    thread.start()
    try:
        lags: list[float] = []
        sizes: list[int] = []
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and (not sizes or sizes[-1] < BLOCKS):
            time.sleep(0.1)
            lags.append(flusher.lag_seconds())
            if flusher.last_snapshot is not None:
                sizes.append(flusher.last_snapshot.blocks)
        assert sizes[-1] == BLOCKS, "the flush never ended"
        between = {size for size in sizes if 0 < size < BLOCKS}
        assert len(between) >= 2, f"no snapshots on the way: {sizes}"
        assert max(lags) > 0.8, "the lag hides that blocks are missing"
        settle = time.monotonic() + 5
        while flusher.lag_seconds() > 0.5 and time.monotonic() < settle:
            time.sleep(0.02)
        assert flusher.lag_seconds() < 0.5, "the lag does not end with the flush"
    finally:
        flusher.stop(time.monotonic() + 5, lambda: None)
        thread.join(10)
    assert not thread.is_alive()


def test_the_end_in_the_middle_is_in_time_and_has_the_hottest_blocks(
    slow: tuple[LocalDaemon, SlowDisk, SimulatedDisk],
) -> None:
    daemon, disk, inner = slow
    disk.seconds_per_byte = 2.0 / 2**20  # 12 s for all of it
    flusher = flusher_of(daemon, snapshot_interval_sec=3600)
    thread = threading.Thread(target=flusher.run)
    thread.start()
    time.sleep(0.3)
    started = time.monotonic()
    flusher.stop(started + 4.0, lambda: None)
    thread.join(20)
    assert time.monotonic() - started < 5.0, "the grace period is over"
    assert flusher.final_error is None
    daemon.repository.close()
    inner.crash()
    with Repository.open(inner) as repository:
        recovery = repository.recover()
        assert recovery.source == "manifest"
        found = contents_of(repository)
    assert 0 < len(found) < BLOCKS, "all of it or nothing: the test shows nothing"
    assert {b"key-%02d" % number for number in range(50, 60)} <= set(found), "not the hottest first"


def test_a_request_to_commit_does_not_wait_for_a_flush(
    slow: tuple[LocalDaemon, SlowDisk, SimulatedDisk],
) -> None:
    daemon, disk, _ = slow
    disk.seconds_per_byte = 1.0 / 2**20
    flusher = flusher_of(daemon, snapshot_interval_sec=3600)
    thread = threading.Thread(target=flusher.run)
    thread.start()
    try:
        time.sleep(0.3)
        done: Future[object] = flusher.request_commit()  # type: ignore[assignment]
        done.result(3.0)
        assert int(np.sum(daemon.repository.catalog.live_totals()[0])) < BLOCKS
    finally:
        disk.seconds_per_byte = 0.0
        flusher.stop(time.monotonic() + 5, lambda: None)
        thread.join(10)


def test_a_long_journal_hastens_the_snapshot(
    slow: tuple[LocalDaemon, SlowDisk, SimulatedDisk], monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon, _, _ = slow
    flusher = flusher_of(daemon, snapshot_interval_sec=3600)
    thread = threading.Thread(target=flusher.run)
    thread.start()
    try:
        deadline = time.monotonic() + 10
        while daemon.repository.catalog.live_totals()[0] < BLOCKS and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.2)  # a pack that is sealed later would take the removal along
        assert flusher.last_snapshot is None, "the test shows nothing"
        monkeypatch.setattr(commit, "JOURNAL_BYTES_MAX", 1024)
        remove(daemon.repository, [b"nowhere"], sequence=2**40)
        deadline = time.monotonic() + 10
        while flusher.last_snapshot is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert flusher.last_snapshot is not None
        assert not daemon.repository.commit_is_due, "the journal is as long as before"
    finally:
        flusher.stop(time.monotonic() + 5, lambda: None)
        thread.join(10)


def test_a_run_of_failures_goes_on_through_a_flush_that_makes_way(
    slow: tuple[LocalDaemon, SlowDisk, SimulatedDisk],
) -> None:
    """It is said once: what wrote nothing, because a snapshot was due, does not end it."""
    daemon, _, inner = slow
    flusher = flusher_of(daemon)
    inner.fault = lambda operation: errno.EROFS * operation.name.startswith("packs/")
    assert flusher._flush(lambda: float("inf")) is not None
    problems = flusher.problems
    assert problems
    assert flusher._flush(lambda: 0.0) is None
    assert flusher.problems == problems
    inner.fault = None
    assert flusher._flush(lambda: float("inf")) is None
    assert flusher.problems == []
