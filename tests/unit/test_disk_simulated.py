"""SimulatedDisk: what a crash may and may not lose."""

from __future__ import annotations

import errno

import pytest

from snapd.disk.simulated import SimulatedCrash, SimulatedDisk
from snapd.errors import DiskError

SEEDS = range(200)


def make(disk: SimulatedDisk, name: str, data: bytes) -> None:
    file = disk.open(name, "x")
    file.write([data], 0)
    file.sync()


def test_synced_bytes_under_a_synced_name_survive_every_crash() -> None:
    for seed in SEEDS:
        disk = SimulatedDisk(seed)
        make(disk, "f", b"a" * 10_000)
        disk.sync_directory("")
        disk.crash()
        assert disk.contents("f") == b"a" * 10_000, seed


def test_unsynced_writes_are_kept_lost_torn_and_reordered() -> None:
    outcomes = set()
    for seed in SEEDS:
        disk = SimulatedDisk(seed)
        make(disk, "f", b"a" * 12_288)
        disk.sync_directory("")
        file = disk.open("f", "a")
        file.write([b"b" * 12_288], 0)
        file.write([b"c" * 4096], 12_288)
        disk.crash()
        data = disk.contents("f")
        assert set(data) <= set(b"abc\0"), seed
        assert 12_288 <= len(data) <= 16_384, seed
        kinds = bytes(data[at] for at in range(0, len(data), 512))
        outcomes.add(kinds)
    assert b"a" * 24 in outcomes
    assert b"b" * 24 + b"c" * 8 in outcomes
    assert any(b"a" in one and b"b" in one for one in outcomes)
    assert any(one.endswith(b"c") and one.startswith(b"a") for one in outcomes)


def test_unsynced_names_may_vanish_and_the_target_of_a_rename_is_old_or_new() -> None:
    outcomes = set()
    for seed in SEEDS:
        disk = SimulatedDisk(seed)
        make(disk, "old", b"old")
        disk.sync_directory("")
        make(disk, "new", b"new")
        disk.rename("new", "old")
        disk.crash()
        outcomes.add((tuple(disk.list("")), disk.contents("old")))
    assert outcomes == {
        (("old",), b"old"),
        (("old",), b"new"),
        (("new", "old"), b"old"),
        (("new", "old"), b"new"),
    }


def test_a_removal_that_is_not_synced_may_come_undone() -> None:
    outcomes = set()
    for seed in SEEDS:
        disk = SimulatedDisk(seed)
        make(disk, "f", b"x")
        disk.sync_directory("")
        disk.remove("f")
        disk.crash()
        outcomes.add(tuple(disk.list("")))
    assert outcomes == {(), ("f",)}


def test_a_directory_that_was_not_synced_takes_its_files_with_it() -> None:
    outcomes = set()
    for seed in SEEDS:
        disk = SimulatedDisk(seed)
        disk.make_directory("packs")
        make(disk, "packs/p", b"x")
        disk.sync_directory("packs")
        disk.crash()
        outcomes.add((tuple(disk.list("")), tuple(disk.list("packs"))))
    assert outcomes == {((), ()), (("packs",), ("p",))}


def test_what_a_failed_sync_dropped_stays_dropped_after_a_good_one() -> None:
    outcomes = set()
    for seed in SEEDS:
        disk = SimulatedDisk(seed)
        make(disk, "f", b"old")
        disk.sync_directory("")
        file = disk.open("f", "a")
        file.write([b"new"], 0)
        disk.fail_kind("sync")
        with pytest.raises(DiskError):
            file.sync()
        with pytest.raises(DiskError, match="given up"):
            file.sync()
        disk.open("f", "a").sync()
        disk.crash()
        outcomes.add(disk.contents("f"))
    assert outcomes == {b"old", b"new"}


def test_same_seed_same_outcome() -> None:
    def run(seed: int) -> bytes:
        disk = SimulatedDisk(seed)
        make(disk, "f", b"")
        disk.sync_directory("")
        disk.open("f", "a").write([bytes(range(256)) * 64], 100)
        disk.crash()
        return disk.contents("f")

    assert all(run(seed) == run(seed) for seed in range(20))
    assert len({run(seed) for seed in range(20)}) > 5


def test_a_crash_can_be_placed_around_any_operation() -> None:
    disk = SimulatedDisk(1)
    make(disk, "f", b"one")
    disk.sync_directory("")
    kinds = [operation.kind for operation in disk.operations]
    assert kinds == ["create", "write", "sync", "syncdir"]

    before = SimulatedDisk(1)
    before.crash_before = 1
    with pytest.raises(SimulatedCrash):
        make(before, "f", b"one")
    with pytest.raises(SimulatedCrash):
        before.list("")
    assert len(before.operations) == 1
    before.crash()
    before.list("")

    after = SimulatedDisk(1)
    after.crash_after = 3
    make(after, "f", b"one")
    with pytest.raises(SimulatedCrash):
        after.sync_directory("")
    after.crash()
    assert after.contents("f") == b"one"


def test_files_and_locks_of_a_former_life_are_dead() -> None:
    disk = SimulatedDisk(1)
    file = disk.open("f", "x")
    disk.lock("lock")
    disk.crash()
    with pytest.raises(SimulatedCrash):
        file.sync()
    disk.lock("lock")


def test_a_full_disk_and_injected_errors() -> None:
    disk = SimulatedDisk(1, capacity_bytes=10_000)
    file = disk.open("f", "x")
    with pytest.raises(DiskError) as caught:
        file.write([bytes(20_000)], 0)
    assert caught.value.errno == errno.ENOSPC
    disk.fail(len(disk.operations), errno.EROFS)
    with pytest.raises(DiskError) as caught:
        disk.make_directory("d")
    assert caught.value.errno == errno.EROFS
    assert disk.list("d") == []
    disk.fail_kind("read", 1)
    reader = disk.open("f", "r")
    reader.read([bytearray(1)], 0)
    with pytest.raises(DiskError):
        reader.read([bytearray(1)], 0)
    reader.read([bytearray(1)], 0)


def test_unaligned_direct_io_is_refused() -> None:
    file = SimulatedDisk(1).open("f", "x", direct=True)
    with pytest.raises(DiskError, match="unaligned"):
        file.write([bytearray(100)], 0)
