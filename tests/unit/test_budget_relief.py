"""What goes first when the disk is too small, and what does not come back by itself."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest
from daemon_kit import LocalDaemon
from repository_kit import contents_of
from store_kit import LocalStore, StoreClient, content, shared_memory_path

from snapd.disk.simulated import SimulatedDisk
from snapd.repository import Repository

BUDGET = 2 * 2**20
BLOCK = 8000


class Site:
    def __init__(self, path: str) -> None:
        self.path = path
        self.disk = SimulatedDisk(1)
        self.store = LocalStore(
            path, global_segment_size=1 << 24, segment_blocks_max=2048, lease_sec=0.001
        )
        self.store.advance(time.time() - 1.7e9 - self.store.now)
        self.store.on_put_off = self.pump
        self.client: StoreClient = self.store.client()
        self.begin()

    def begin(self) -> None:
        self.daemon = LocalDaemon(
            self.store, self.disk, bytes_max=BUDGET, clock=lambda: self.store.now
        )
        self.daemon.attach()
        self.daemon.flush()

    def pump(self) -> None:
        self.daemon.pump()

    def put(self, name: str, blocks: int, *, upsert: bool = False, version: int = 0) -> list[bytes]:
        keys = [f"{name}-{number}".encode() for number in range(blocks)]
        values = {key: content(hash_of(key) + version, BLOCK) for key in keys}
        for at in range(0, blocks, 40):
            some = {key: values[key] for key in keys[at : at + 40]}
            assert set(self.client.put(some, upsert=upsert).values()) == {0}
        return keys

    def live(self) -> set[bytes]:
        catalog = self.daemon.repository.catalog
        return set(catalog.take(catalog.live_rows()).keys.to_list())

    def after_a_power_cut(self) -> dict[bytes, bytes]:
        self.daemon.close()
        self.disk.crash()
        with Repository.open(self.disk, read_only=True) as repository:
            repository.recover()
            return contents_of(repository)

    def lose_memory(self) -> None:
        """Everything is on disk only from now on."""
        self.client.close()
        self.daemon.close()
        self.store.kill()
        os.unlink(self.path)
        self.store.start()
        self.client = self.store.client()
        self.begin()


def hash_of(key: bytes) -> int:
    return int.from_bytes(key[-4:], "big")


@pytest.fixture
def site() -> Iterator[Site]:
    with shared_memory_path() as path:
        found = Site(path)
        yield found
        found.daemon.close()
        found.store.close()


def fill(site: Site) -> list[bytes]:
    """As many blocks as the live share takes, all read once."""
    state = site.daemon.budget.look()
    keys = site.put("old", state.limits.live_max // 8192 - 2)
    site.client.get(keys)
    site.daemon.flush()
    site.daemon.commit()
    assert site.live() == set(keys)
    return keys


def test_what_is_no_hotter_stays_out_and_is_judged_again_when_it_is(site: Site) -> None:
    old = fill(site)
    new = site.put("new", 30)
    result = site.daemon.flush()
    assert site.live() >= set(old)
    out = set(new) - site.live()
    assert len(out) >= 25
    assert result.left_out["colder"] == len(out)
    for _ in range(3):
        assert not sum(site.daemon.flush().left_out.values()), "counted again, or looked at again"
    for _ in range(8):
        site.client.get(new)
    assert site.daemon.flush().written == 0, "judged between two commits"
    site.daemon.commit()
    assert site.daemon.flush().written == len(out)
    assert set(new) <= site.live()


def test_the_coldest_go_for_what_is_hotter_and_do_not_come_back(site: Site) -> None:
    old = fill(site)
    for at in range(4):
        hot = site.put(f"hot{at}", 30)
        for _ in range(20):
            site.client.get(hot)
        site.daemon.flush()
        site.daemon.commit()
        for _ in range(4):
            site.store.advance(3.0)
            site.daemon.compactor.look()
            site.daemon.flush()
    assert site.daemon.compactor.dropped > 0
    assert all(set(site.live()) >= {f"hot{at}-{n}".encode() for n in range(30)} for at in range(4))
    gone = set(old) - site.live()
    assert gone
    before = site.daemon.repository.disk.usage().free_bytes
    for _ in range(3):
        result = site.daemon.flush()
        assert (result.written, result.matched) == (0, 0), "what was dropped came back by itself"
    assert site.daemon.repository.disk.usage().free_bytes == before
    assert site.client.get(sorted(gone)[:5]).count(None) == 0, "it is in memory still"


def test_what_is_dead_goes_before_any_block_that_lives(site: Site) -> None:
    old = fill(site)
    client = site.client
    for version in range(1, 3):
        # The space of what these replace is held by older generations only.
        site.put("old", 60, upsert=True, version=version)
        client.get(old[:60])
        site.daemon.flush()
        site.daemon.commit()
    state = site.daemon.budget.look()
    assert state.use.total > state.limits.start, "no pressure, nothing shown"
    plan = site.daemon.compactor.look()
    assert plan is not None
    assert site.daemon.compactor.dropped == 0
    assert site.daemon.budget.look().use.total < state.use.total
    for _ in range(4):
        site.store.advance(3.0)
        site.daemon.compactor.look()
        site.daemon.flush()
    assert site.live() == set(old)
    assert site.daemon.compactor.dropped == 0


def test_a_pinned_repository_is_not_committed_again_and_again(site: Site) -> None:
    fill(site)
    with Repository.open(site.disk, read_only=True):
        for version in range(1, 4):
            site.put("old", 60, upsert=True, version=version)
            site.daemon.flush()
            site.daemon.commit()
        before = site.daemon.repository.generation
        for _ in range(60):
            site.store.advance(2.0)
            site.daemon.compactor.look()
        commits = site.daemon.repository.generation - before
        assert commits < 12, f"{commits} snapshots in two minutes that could free nothing"
        usage = site.disk.usage()
        assert usage.capacity_bytes - usage.free_bytes <= BUDGET


def test_dropped_blocks_that_are_on_disk_only_are_not_served(site: Site) -> None:
    old = fill(site)
    site.lose_memory()
    assert set(site.client.exist(old)) == {1}
    hot = site.put("hot", 80)
    for _ in range(20):
        site.client.get(hot)
    site.daemon.flush()
    site.daemon.commit()
    for _ in range(6):
        site.daemon.flush()
        site.store.advance(3.0)
        site.daemon.compactor.look()
    assert site.daemon.compactor.dropped > 0
    served = dict(zip(old, site.client.exist(old), strict=True))
    assert {key for key in old if served[key]} == set(old) & site.live()


def test_a_block_that_is_left_out_ends_what_the_disk_has_of_its_key(site: Site) -> None:
    """The store forgot a key that the disk has, and was given other bytes for it, for which there
    is no room: the old ones must not come back, although nothing newer is on disk."""
    old = fill(site)
    site.lose_memory()
    assert site.daemon.session is not None
    residency = site.daemon.session.residency
    slots = residency.cold_slots()[:10]
    keys = site.daemon.repository.catalog.take(residency.row[slots]).keys.to_list()
    with closing(site.daemon.session.open_sink()) as sink:
        sink.drop_cold(slots.astype(np.uint32), residency.sequence[slots])
    residency.forget(slots)
    assert set(site.client.put({key: content(99, BLOCK) for key in keys}).values()) == {0}
    site.put("more", 40)
    site.daemon.flush()
    left = set(keys) - site.live()
    assert left, "all were written: nothing shown"
    found = site.after_a_power_cut()
    assert not left & set(found), "bytes that were replaced came back"
    assert len(found) > len(old) - 20


def test_nothing_is_dropped_before_everything_is_back(site: Site) -> None:
    fill(site)
    assert site.daemon.session is not None
    site.daemon.session.settled.clear()
    site.put("old", 60, upsert=True, version=1)
    site.daemon.repository.commit(prune=False)
    dropped = site.daemon.compactor.dropped
    for _ in range(5):
        site.store.advance(3.0)
        assert site.daemon.compactor.look() is None
    assert site.daemon.compactor.dropped == dropped
