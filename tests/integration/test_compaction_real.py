"""Real processes: packs are compacted while clients read cold blocks, replace and remove them."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from daemon_site import DaemonSite, block

SEED = 808
SECONDS = 30.0
LANES = 3
KEYS = 150
"""Of each lane."""


class Lane:
    """A client and its keys: nobody else touches them, so it knows what each must hold."""

    def __init__(self, site: DaemonSite, number: int) -> None:
        self.site = site
        self.client = site.client()
        self.random = random.Random(SEED + number)
        self.version: dict[str, int] = {f"lane-{number}-{at}": 1 for at in range(KEYS)}
        """0 once it is removed."""
        self.reads = 0

    def fill(self) -> None:
        for key in self.version:
            assert self.client.put(key, block(key, 1)) == 0

    def work(self, until: float) -> None:
        while time.monotonic() < until:
            key = self.random.choice(list(self.version))
            choice = self.random.random()
            if choice < 0.6:
                self.check(key)
            else:
                self.client.remove(key, True)
                self.version[key] = 0 if choice < 0.7 else max(self.version.values()) + 1
                if self.version[key]:
                    assert self.client.put(key, block(key, self.version[key])) == 0

    def check(self, key: str) -> None:
        """It holds its bytes, or is gone. A read that waited too long for the disk is made again:
        it is a miss, and a miss of what is there must pass."""
        wanted = block(key, self.version[key]) if self.version[key] else b""
        for _ in range(5):
            found = self.client.get(key) or b""
            if found == wanted:
                self.reads += 1
                return
            assert found == b"", f"{key} holds other bytes"
        raise AssertionError(f"{key} is lost")

    def check_all(self) -> None:
        for key in self.version:
            self.check(key)


def restart_cold(site: DaemonSite) -> None:
    site.kill_daemon()
    site.kill_store()
    site.wipe_segment()
    site.start()


@pytest.mark.long
def test_every_read_during_compactions_has_the_right_bytes(tmp_path: Path) -> None:
    print(f"seed {SEED}")
    with DaemonSite(
        tmp_path,
        pack_bytes_max=1 << 20,
        retain=1,
        snapshot_interval_sec=0.3,
        enable_warmup="false",
    ) as site:
        site.start()
        for lane in [Lane(site, number) for number in range(LANES)]:
            lane.fill()
        site.flushed()
        restart_cold(site)
        lanes = [Lane(site, number) for number in range(LANES)]
        until = time.monotonic() + SECONDS
        with ThreadPoolExecutor(LANES) as pool:
            for done in [pool.submit(lane.work, until) for lane in lanes]:
                done.result()
        site.until("compacted", lambda: site.metric("compaction_blocks_total") > 0)
        for lane in lanes:
            lane.check_all()
        assert site.metric("blocks_quarantined_total", reason="pack") == 0
        assert site.metric("warmup_blocks_total", result="rejected") == 0
        assert site.status()["errors"] == []
        site.flushed()
        restart_cold(site)
        for lane in lanes:
            lane.client = site.client()
            lane.check_all()
