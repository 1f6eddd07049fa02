"""The SSD tier with a real store, a real daemon and a real disk: four times as much as memory."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
from daemon_site import DaemonSite, block

SIZE = 32_000
COUNT = 500
"""16 MB; memory has 4."""
BATCH = 20
NAMES = [f"key-{number}" for number in range(COUNT)]
SITE = {
    "global_segment_size": "4mb",
    "segment_blocks_max": 2 * COUNT,
    "flush_sec": 0.1,
    "pack_bytes_max": 2 << 20,
    "get_wait_sec": 30,
    "lease_sec": 0.004,  # all of memory is read in less than a usual lease
}


def content(name: str) -> bytes:
    return block(name, size=SIZE)


def fill(site: DaemonSite, names: list[str]) -> list[float]:
    """Put everything, each batch durable before memory could run out; seconds of each put."""
    client, seconds = site.client(), []
    for at in range(0, len(names), BATCH):
        part = names[at : at + BATCH]
        values = [content(name) for name in part]
        began = time.perf_counter()
        assert client.put_batch(part, values) == 0
        seconds.append(time.perf_counter() - began)
        if at % (4 * BATCH) == 3 * BATCH:
            site.flushed()
    site.flushed()
    return seconds


def read(site: DaemonSite, names: list[str]) -> int:
    """How many are there; AssertionError for a wrong byte. A block is a miss for a moment where all
    of memory is leased, or where it goes while it is copied, on a machine that has other work."""
    client, missing = site.client(), names
    for _ in range(3):
        asked, missing = missing, []
        for at in range(0, len(asked), BATCH):
            part = asked[at : at + BATCH]
            for name, value in zip(part, client.get_batch(part), strict=True):
                assert value in (b"", content(name)), name
                missing += [name] * (value == b"")
    return len(names) - len(missing)


def disk_bytes(site: DaemonSite) -> int:
    return sum(path.stat().st_size for path in site.repository.rglob("*") if path.is_file())


def test_nearly_all_of_it_is_there_and_a_quarter_without_the_tier(tmp_path: Path) -> None:
    hits = {}
    for offload in (False, True):
        with DaemonSite(tmp_path / str(offload), enable_ssd_offload=offload, **SITE) as site:
            site.start()
            fill(site, NAMES)
            hits[offload] = read(site, NAMES)
            if offload:
                assert read(site, NAMES[::-1]) == hits[True]
                assert site.metric("flush_blocks_total") == COUNT, "something was written twice"
                assert site.metric("offload_blocks") > COUNT / 2
                assert site.status()["offload"]["bytes"] > COUNT * SIZE / 2
                assert site.metric("demand_load_blocks_total", result="loaded") > COUNT
                # The same packs are the snapshot, for a node that lost its memory.
                assert site.snapshot()["blocks"] >= hits[True]
                site.kill_daemon()
                site.kill_store()
                site.wipe_segment()
                site.start()
                assert read(site, NAMES) == hits[True]
            else:
                assert site.status()["offload"] is None
                assert site.metric("offload_evictions_total") == 0
    assert hits[False] < 0.3 * COUNT
    assert hits[True] > 0.99 * COUNT


def test_the_byte_budget_is_its_size(tmp_path: Path) -> None:
    budget = 16 << 20
    with DaemonSite(tmp_path, enable_ssd_offload=True, repository_bytes_max=budget, **SITE) as site:
        site.start()
        most, ended = [0], threading.Event()

        def watch() -> None:
            while not ended.wait(0.02):
                try:
                    most[0] = max(most[0], disk_bytes(site))
                except FileNotFoundError:
                    continue  # a pack was deleted between two looks

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            client = site.client()
            for at in range(0, COUNT, BATCH):
                part = NAMES[at : at + BATCH]
                assert client.put_batch(part, [content(name) for name in part]) == 0
                time.sleep(0.02)
            hits = read(site, NAMES)
            site.until("relief", lambda: site.status()["budget"]["used_bytes"] <= budget)
        finally:
            ended.set()
            watcher.join()
        assert 0 < most[0] <= budget
        assert hits > (4 << 20) / SIZE, "no more than memory holds"
        # Nobody is promised what is not there: what exists can be read.
        site.flushed()
        client = site.client()
        there = [name for name in NAMES if client.is_exist(name) == 1]
        assert read(site, there) == len(there)


def test_puts_stay_quick_while_blocks_come_and_go(tmp_path: Path) -> None:
    """A reader that keeps the disk busy, and a writer whose every put evicts."""
    with DaemonSite(tmp_path, enable_ssd_offload=True, **SITE) as site:
        site.start()
        first = NAMES[: COUNT // 2]
        fill(site, first)
        ended = threading.Event()
        loaded: list[int] = []

        def keep_reading() -> None:
            while not ended.is_set():
                loaded.append(read(site, first))

        reader = threading.Thread(target=keep_reading)
        reader.start()
        try:
            seconds = fill(site, NAMES[COUNT // 2 :])
        finally:
            ended.set()
            reader.join()
        assert min(loaded) > 0.99 * len(first), "a block that is on disk was a miss"
        assert float(np.median(seconds)) < 0.25
        assert max(seconds) < 2.0, "a put waited for the disk"


def test_a_store_started_without_the_setting_follows_the_daemon(tmp_path: Path) -> None:
    with DaemonSite(tmp_path, **SITE) as site:
        site.start_store()
        site.configure(enable_ssd_offload=True)
        site.start_daemon()
        names = NAMES[:300]
        fill(site, names)
        assert read(site, names) == len(names)
        assert site.stop_daemon() == 0
        site.configure(enable_ssd_offload=False)
        site.start_daemon()
        client = site.client()
        assert client.batch_is_exist(names) == [1] * len(names), "switching it off drops nothing"
