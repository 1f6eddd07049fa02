"""The journal's ballast: removals stay durable on a disk that somebody else has filled."""

from __future__ import annotations

from pathlib import Path

import pytest
from fault_ledger import FaultClass, case
from repository_kit import content, contents_of, put, remove

from snapd.disk import PosixDisk
from snapd.disk.simulated import SimulatedCrash, SimulatedDisk
from snapd.errors import DiskError
from snapd.repository import Repository
from snapd.repository.ballast import BALLAST_BYTES, ballast_within
from snapd.repository.names import BALLAST_FILE, JOURNAL
from snapd.repository.space import journal_bytes

BALLAST = 256 * 1024
KEYS = [b"k%d" % number for number in range(40)]


def blocks(*keys: bytes) -> dict[bytes, bytes]:
    return {key: content(key, 1) for key in keys}


def opened(disk: SimulatedDisk, ballast_bytes: int = BALLAST) -> Repository:
    repository = Repository.open(disk, ballast_bytes=ballast_bytes)
    repository.recover()
    return repository


def used(disk: SimulatedDisk) -> int:
    usage = disk.usage()
    return usage.capacity_bytes - usage.free_bytes


def filled(seed: int = 1) -> tuple[SimulatedDisk, Repository]:
    """A repository with a snapshot of KEYS, on a disk that has no room any more."""
    disk = SimulatedDisk(seed)
    repository = opened(disk)
    put(repository, blocks(*KEYS))
    repository.commit()
    disk.capacity_bytes = used(disk)
    return disk, repository


def names(disk: SimulatedDisk) -> list[str]:
    return list(disk.list(JOURNAL))


def restarted(disk: SimulatedDisk) -> set[bytes]:
    """What is there after a power cut, on a disk as full as before."""
    disk.crash()
    with opened(disk) as repository:
        return set(contents_of(repository))


def test_a_commit_makes_it_and_it_counts() -> None:
    disk, repository = filled()
    assert "ballast" in names(disk)
    assert repository.space_use().other >= BALLAST
    assert journal_bytes(disk) < BALLAST, "nobody's writes"
    assert repository.verify(all_blocks=True).findings == []
    before = repository.space_use().total
    remove(repository, KEYS[:1], sequence=1000)
    assert "ballast" not in names(disk)
    assert repository.space_use().total >= before, "there is room when it is made again"
    repository.close()


@pytest.mark.parametrize("copies_on_write", [False, True])
def test_removals_are_durable_on_a_full_disk_until_it_is_used_up(copies_on_write: bool) -> None:
    disk, repository = filled()
    disk.copies_on_write = copies_on_write
    done = 0
    with case(
        FaultClass.FULL,
        f"the disk is full: batches of removals up to the ballast; copy on write {copies_on_write}",
    ):
        for number in range(1000):
            try:
                remove(repository, [KEYS[number % 30]], sequence=1000 + number)
            except DiskError:
                break
            done += 1
        assert done >= BALLAST // 8192 - 3
        repository.close()
        assert restarted(disk) == set(KEYS[30:])


def test_refused_removals_leave_no_file_behind_each() -> None:
    disk, repository = filled()
    with case(FaultClass.FULL, "the disk is full, and there is no ballast: tried again and again"):
        disk.remove(BALLAST_FILE)
        disk.capacity_bytes = used(disk)
        before = names(disk)
        for _ in range(20):
            with pytest.raises(DiskError):
                remove(repository, KEYS[:1], sequence=1000)
        assert names(disk) == before
        disk.capacity_bytes = 1 << 30
        remove(repository, KEYS[:1], sequence=1000)
        repository.close()
        assert restarted(disk) == set(KEYS[1:])


def test_packs_that_fail_meanwhile_do_not_end_the_file() -> None:
    disk, repository = filled()
    with case(FaultClass.FULL, "the disk is full: removals between packs that cannot be written"):
        for number in range(12):
            remove(repository, [KEYS[number]], sequence=1000 + number)
            with pytest.raises(DiskError):
                repository.begin_pack().seal()  # only what the journal has
        repository.close()
        assert restarted(disk) == set(KEYS[12:])


def test_it_is_made_again_when_there_is_room_and_the_file_goes_when_it_is_covered() -> None:
    disk, repository = filled()
    with case(FaultClass.FULL, "the disk is full, then has room: the ballast is made again"):
        remove(repository, KEYS[:5], sequence=1000)
        assert "ballast" not in names(disk)
        disk.capacity_bytes = 1 << 30
        put(repository, blocks(b"new"), sequence=2000)
        repository.commit()
        assert "ballast" in names(disk)
        remove(repository, KEYS[5:6], sequence=2001)
        put(repository, blocks(b"newer"), sequence=2002)
        repository.commit()
        repository.commit()
        assert names(disk) == ["ballast"]
        repository.close()
        assert restarted(disk) == {*KEYS[6:], b"new", b"newer"}


def test_a_full_disk_at_the_start_leaves_what_was_removed() -> None:
    disk, repository = filled()
    with case(FaultClass.FULL, "the disk is full at the start, with removals in the journal"):
        remove(repository, KEYS[:5], sequence=1000)
        repository.close()
        for _ in range(3):
            disk.capacity_bytes = used(disk)
            assert restarted(disk) == set(KEYS[5:])


@pytest.mark.parametrize("copies_on_write", [False, True])
def test_power_cuts_while_the_ballast_is_used_lose_nothing_confirmed(copies_on_write: bool) -> None:
    step, confirmed = 0, False
    while not confirmed:
        disk, repository = filled(seed=step)
        disk.copies_on_write = copies_on_write
        disk.crash_after = len(disk.operations) + step
        with case(
            FaultClass.POWER_CUT, f"the ballast becomes the journal ({copies_on_write}): {step}"
        ):
            try:
                remove(repository, KEYS[:1], sequence=1000)
                confirmed = True
                disk.crash_after = None
            except SimulatedCrash:
                pass
            left = restarted(disk)
            assert set(KEYS[1:]) <= left <= set(KEYS), f"seed and step {step}"
            assert not confirmed or left == set(KEYS[1:]), f"seed and step {step}"
        step += 1
    assert step > 5


def test_a_small_budget_has_a_small_ballast() -> None:
    assert ballast_within(1 << 40) == BALLAST_BYTES
    assert ballast_within(64 << 20) == 1 << 20


def test_a_real_one_is_as_long_as_it_says(tmp_path: Path) -> None:
    disk = PosixDisk(tmp_path)
    with Repository.open(disk, ballast_bytes=BALLAST) as repository:
        repository.recover()
        repository.commit()
    path = tmp_path / BALLAST_FILE
    assert path.stat().st_size == BALLAST
    assert path.stat().st_blocks * 512 >= BALLAST
    disk.close()
