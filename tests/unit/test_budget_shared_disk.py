"""What the use of the disk by others changes, and what it does not."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from daemon_kit import LocalDaemon
from repository_kit import contents_of
from store_kit import LocalStore, content, shared_memory_path

from snapd.disk.simulated import SimulatedDisk
from snapd.errors import DiskError
from snapd.flusher.commit import commit_in_room
from snapd.repository import Repository

CAPACITY = 8 * 2**20
BLOCK = 8000


class Site:
    """A daemon without a budget on a small disk that has a neighbour."""

    def __init__(self, path: str) -> None:
        self.disk = SimulatedDisk(1, capacity_bytes=CAPACITY)
        self.store = LocalStore(
            path, global_segment_size=1 << 24, segment_blocks_max=2048, lease_sec=0.001
        )
        self.store.advance(time.time() - 1.7e9 - self.store.now)
        self.client = self.store.client()
        self.daemon = LocalDaemon(self.store, self.disk, clock=lambda: self.store.now)
        self.daemon.attach()
        self.daemon.flush()

    def put(self, name: str, blocks: int) -> set[bytes]:
        keys = {f"{name}-{number}".encode(): content(number, BLOCK) for number in range(blocks)}
        assert set(self.client.put(keys).values()) == {0}
        return set(keys)

    def neighbour(self, left_bytes: int) -> None:
        """Others take all of the disk but so much."""
        self.disk.inode_of("neighbour").replace(b"")
        free = self.disk.usage().free_bytes
        self.disk.inode_of("neighbour").replace(bytes(max(0, free - left_bytes)))

    def live(self) -> set[bytes]:
        catalog = self.daemon.repository.catalog
        return set(catalog.take(catalog.live_rows()).keys.to_list())

    def after_a_power_cut(self) -> set[bytes]:
        self.daemon.close()
        self.disk.crash()
        with Repository.open(self.disk, read_only=True) as repository:
            repository.recover()
            return set(contents_of(repository))


@pytest.fixture
def site() -> Iterator[Site]:
    with shared_memory_path() as path:
        found = Site(path)
        yield found
        found.daemon.close()
        found.store.close()


def generations(site: Site) -> list[str]:
    return list(site.disk.list("manifests"))


def test_the_limit_follows_what_is_free_and_never_goes_below_what_is_in_use(site: Site) -> None:
    site.put("old", 200)
    site.daemon.flush()
    site.daemon.commit()
    before = site.daemon.budget.look()
    assert not before.is_shared
    for left in (CAPACITY // 4, 100_000, 0):
        site.neighbour(left)
        state = site.daemon.budget.look()
        assert state.limits.bytes_max == state.use.total + left
        assert state.own.bytes_max == before.own.bytes_max
        assert state.is_shared
        assert state.bound == "disk"


def test_a_file_system_that_counts_others_as_missing_does_not_get_smaller(site: Site) -> None:
    """As ZFS does: the capacity of one directory tree is its own use and what the pool has left."""
    site.put("old", 200)
    site.daemon.flush()
    before = site.daemon.budget.look().own
    usage = site.disk.usage()
    site.disk.capacity_bytes = usage.capacity_bytes - usage.free_bytes
    for _ in range(5):
        site.store.advance(3.0)
        site.daemon.compactor.look()
    assert site.daemon.budget.look().own.bytes_max == before.bytes_max
    assert site.daemon.compactor.dropped == 0


def test_what_is_new_waits_however_hot_it_is_and_comes_in_when_there_is_room(site: Site) -> None:
    old = site.put("old", 200)
    site.daemon.flush()
    site.daemon.commit()
    site.daemon.commit()
    site.neighbour(0)
    hot = site.put("hot", 50)
    for _ in range(20):
        site.client.get(sorted(hot))
    for _ in range(4):
        site.daemon.flush()
        site.daemon.commit()
        site.store.advance(3.0)
        site.daemon.compactor.look()
    assert site.live() == old
    assert site.daemon.compactor.dropped == 0
    site.daemon.admission.count_waiting(site.daemon.session)  # type: ignore[arg-type]
    assert site.daemon.admission.left_out["no_space"] == len(hot)
    site.neighbour(CAPACITY // 2)
    site.daemon.flush()
    assert site.live() == old | hot


def test_the_generation_before_makes_room_for_the_next_and_nothing_else_does(site: Site) -> None:
    old = site.put("old", 200)
    site.daemon.flush()
    site.daemon.commit()
    site.daemon.commit()
    site.neighbour(0)
    for _ in range(3):
        newest = generations(site)[-1]
        summary = site.daemon.commit()
        assert summary.blocks == len(old)
        assert generations(site)[-2:-1] == [newest]
        site.neighbour(0)
    site.daemon.repository.prune(retain=1)
    site.neighbour(0)
    last = generations(site)
    for settled in (True, False):
        with pytest.raises(DiskError):
            commit_in_room(site.daemon.repository, site.daemon.budget, settled=settled)
    assert generations(site) == last
    assert site.after_a_power_cut() == old


def test_nothing_makes_room_while_a_source_is_not_settled(site: Site) -> None:
    site.put("old", 200)
    site.daemon.flush()
    site.daemon.commit()
    site.daemon.commit()
    site.neighbour(0)
    before = generations(site)
    with pytest.raises(DiskError):
        commit_in_room(site.daemon.repository, site.daemon.budget, settled=False)
    assert generations(site) == before
