"""Blocks of another fingerprint stay on the disk, and come back when theirs is expected again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pytest
from daemon_kit import LocalDaemon
from store_kit import LocalStore, content, shared_memory_path

from snapd.blocks.labels import label_tag
from snapd.disk.simulated import SimulatedDisk
from snapd.warmup import Demand, Warmer

NONE, FIRST, SECOND = "", "dtype=bfloat16", "dtype=float16"
LABELS = (NONE, FIRST, SECOND)
BLOCKS = {
    label: {
        b"key-%02d" % number + label_tag(label): content(number + at, 9000) for number in range(8)
    }
    for at, label in enumerate(LABELS)
}


@dataclass
class Site:
    store: LocalStore
    daemon: LocalDaemon
    expected: str = NONE

    def fingerprint(self) -> int:
        return self.daemon.repository.fingerprint(self.expected)

    def resident(self) -> dict[str, int]:
        """How many blocks of each label are in memory."""
        session = self.daemon.session
        assert session is not None
        residency, catalog = session.residency, self.daemon.repository.catalog
        with residency.lock:
            held = (residency.sequence != 0) & ~residency.cold & (residency.row >= 0)
            found = catalog.column("fingerprint", residency.row[np.flatnonzero(held)])
        known = {0: NONE} | self.daemon.repository.fingerprints
        return {label: int((found == number).sum()) for number, label in known.items()}

    @contextmanager
    def warming(self) -> Iterator[Warmer]:
        stopping = threading.Event()
        warmer = Warmer(
            self.daemon.repository,
            self.daemon.link,
            Demand(),
            pace=lambda _: None,
            observer=self.daemon.metrics,
            stopping=stopping,
            fingerprint=self.fingerprint,
        )
        thread = threading.Thread(target=warmer.run)
        thread.start()
        try:
            yield warmer
        finally:
            stopping.set()
            thread.join(10)
            assert not thread.is_alive()

    def until(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 20
        while not done():
            assert time.monotonic() < deadline, self.resident()
            time.sleep(0.01)


@pytest.fixture
def site() -> Iterator[Site]:
    """24 blocks, 8 of each label and 8 of none, on disk and cold."""
    disk = SimulatedDisk(1)
    with shared_memory_path() as path:
        store = LocalStore(path, global_segment_size=1 << 22)
        daemon = LocalDaemon(store, disk)
        daemon.attach()
        for label, blocks in BLOCKS.items():
            store.client(label=label).put(blocks)
        daemon.flush()
        daemon.commit()
        daemon.close()
        store.close()
    with shared_memory_path() as path:
        store = LocalStore(path, global_segment_size=1 << 22)
        daemon = LocalDaemon(store, disk)
        daemon.attach()
        yield Site(store, daemon)
        daemon.close()
        store.close()


@pytest.mark.parametrize("label", LABELS)
def test_only_blocks_of_the_expected_fingerprint_come_back(site: Site, label: str) -> None:
    site.expected = label
    with site.warming() as warmer:
        site.until(lambda: warmer.state == "done")
    assert site.resident() == {one: 8 if one == label else 0 for one in LABELS}
    assert (warmer.handled, warmer.withheld) == (8, 16)
    sample = site.daemon.metrics.registry.get_sample_value
    assert sample("snapd_warmup_blocks_total", {"result": "other_fingerprint"}) == 16
    assert sample("snapd_warmup_blocks_total", {"result": "loaded"}) == 8
    assert site.daemon.repository.catalog.live_totals()[0] == 24, "they stay on disk"


def test_back_to_the_first_fingerprint_its_blocks_come_back(site: Site) -> None:
    site.expected = SECOND
    with site.warming() as warmer:
        site.until(lambda: warmer.state == "done")
        assert site.resident()[FIRST] == 0
        site.expected = FIRST
        site.until(lambda: site.resident()[FIRST] == 8)
        site.until(lambda: warmer.state == "done" and warmer.withheld == 8)
    assert site.resident() == {NONE: 0, FIRST: 8, SECOND: 8}
