"""Store, flusher, compactor and repository on a disk that is too small for the cache."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from budget_life import BudgetLife
from fault_ledger import FaultClass, case

from snapd.disk import PosixDisk
from snapd.disk.simulated import SimulatedDisk
from snapd.errors import DiskError
from snapd.plans.budget import DAY_SECONDS

BUDGET = 3 * 2**20
EVERY_PATH = ("dropped", "copied", "pressed", "shrunk", "left out: colder", "left out: no_space")


def long(*seeds: int) -> list[object]:
    return [pytest.param(seed, marks=pytest.mark.long) for seed in seeds]


def reached(life: BudgetLife) -> None:
    """A run that a path was not part of shows nothing about it."""
    missed = [path for path in EVERY_PATH if not life.seen[path]]
    assert not missed, f"seed={life.seed}: never happened: {missed}"


@pytest.mark.parametrize("seed", [1, *long(2, 31, 32, 33)])
def test_a_cache_larger_than_its_budget_stays_inside_it(seed: int) -> None:
    disk = SimulatedDisk(seed)
    life = BudgetLife(disk, seed, bytes_max=BUDGET)
    try:
        life.run(500)
        reached(life)
        amplification = disk.bytes_written / life.written_bytes
        assert amplification < 2, f"{amplification:.2f} bytes written for each that was flushed"
        life.power_cut()
    finally:
        life.close()


def test_the_same_on_a_real_file_system(tmp_path: Path) -> None:
    disk = PosixDisk(tmp_path)
    life = BudgetLife(disk, 5, bytes_max=BUDGET)
    try:
        for _ in range(30):
            life.run(10)
            files = [path for path in tmp_path.rglob("*") if path.is_file()]
            assert sum(path.stat().st_size for path in files) <= BUDGET
        assert life.seen["pressed"]
        assert life.seen["left out: colder"]
    finally:
        life.close()
        disk.close()


@pytest.mark.parametrize("seed", [3, *long(*range(4, 30))])
def test_power_cuts_under_a_budget_lose_nothing_committed(seed: int) -> None:
    life = BudgetLife(SimulatedDisk(seed), seed, bytes_max=BUDGET)
    try:
        with case(FaultClass.POWER_CUT, f"budget: a life of power cuts, seed {seed}"):
            life.run(250, crash_share=0.15)
            life.power_cut()
    finally:
        life.close()


@pytest.mark.parametrize("seed", [6, *long(7, 8, 9)])
def test_a_small_disk_without_a_budget_is_never_filled(seed: int) -> None:
    disk = SimulatedDisk(seed, capacity_bytes=BUDGET)
    life = BudgetLife(disk, seed)
    try:
        with case(FaultClass.DISK_REFUSES, f"budget: no budget but the disk's size, seed {seed}"):
            life.run(400)
            free = disk.usage().free_bytes
            assert free > 0
            assert life.seen["pressed"]
            life.power_cut()
    finally:
        life.close()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_quota_that_nobody_tells_is_found_and_outlived(code: int) -> None:
    """The disk says that there is plenty of room and refuses all the same; then it does not."""
    seed = 11
    disk = SimulatedDisk(seed)
    life = BudgetLife(disk, seed)

    def used() -> int:
        usage = disk.usage()
        return usage.capacity_bytes - usage.free_bytes

    try:
        with case(FaultClass.DISK_REFUSES, f"budget: a quota, {errno.errorcode[code]}"):
            life.run(60)
            quota, refusals = used() + 2**18, 0
            disk.fault = lambda operation: code * (operation.kind == "write" and used() >= quota)
            for _ in range(60):
                try:
                    life.put()
                    life.upsert()
                    life.flush()
                    life.commit()
                except DiskError as error:
                    life.daemon.budget.refused(error)
                    refusals += error.errno == code
                life.store.advance(1.0)
                try:
                    life.look()
                except DiskError as error:
                    life.daemon.budget.refused(error)
            assert refusals
            assert refusals < 50, "the daemon does not learn"
            assert used() < quota + 2**20
            disk.fault = None
            life.store.advance(60.0)
            for _ in range(10):
                life.flush()
                life.commit()
                life.store.advance(1.0)
            life.flush()
            waiting = (
                life.daemon.session.residency.waiting(-2, -3, -4) if life.daemon.session else []
            )
            assert len(waiting) == 0, "blocks still wait although there is room again"
            life.power_cut()
    finally:
        life.close()


@pytest.mark.parametrize("seed", [12, *long(13, 14)])
def test_a_day_of_writes_stays_under_its_limit_across_restarts(seed: int) -> None:
    """Clocks of days, with power cuts in between, whose debts are read from the disk."""
    limit = 2**20
    disk = SimulatedDisk(seed)
    life = BudgetLife(disk, seed, bytes_per_day_max=limit)
    written: list[tuple[float, int]] = []
    try:
        for number in range(100):
            before = disk.bytes_written
            life.put()
            life.flush()
            life.commit()
            if life.random.random() < 0.1:
                with case(FaultClass.POWER_CUT, f"write budget: day step {number}, seed {seed}"):
                    life.power_cut()
            written.append((life.store.now, disk.bytes_written - before))
            life.store.advance(life.random.choice((60.0, 3600.0, DAY_SECONDS / 8)))
        assert life.seen["left out: write_budget"]
    finally:
        life.close()
    for at, (moment, _) in enumerate(written):
        day = sum(amount for then, amount in written[: at + 1] if then > moment - DAY_SECONDS)
        # What is never refused: a manifest a step, and the journals of 20 restarts.
        assert day <= 1.1 * limit, f"seed={seed}: {day} bytes in the day before {moment}"
