"""Store, flusher, compactor and repository on a disk that is too small for the cache."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from budget_life import BudgetLife
from fault_ledger import FaultClass, case

from snapd.disk import PosixDisk
from snapd.disk.simulated import Operation, SimulatedDisk
from snapd.errors import DiskError
from snapd.plans.budget import DAY_SECONDS

BUDGET = 3 * 2**20
NEIGHBOUR = "neighbour"
"""A file that is not the repository's."""
STEPS = {"put": 4, "read": 2, "flush": 4, "commit": 3, "look": 4}
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
            assert life.seen["dropped"], "on a disk of its own the hot push out the cold"
            life.power_cut()
    finally:
        life.close()


@pytest.mark.parametrize("bytes_max", [0, 2 * BUDGET])
@pytest.mark.parametrize("seed", [7, *long(*range(40, 50))])
def test_what_others_do_with_the_disk_costs_no_block_that_is_durable(
    seed: int, bytes_max: int
) -> None:
    """A neighbour takes and frees any part of a disk, all of it included, between any two steps
    and power cuts. The disk is large enough for what lives."""
    disk = SimulatedDisk(seed, capacity_bytes=3 * BUDGET)
    life = BudgetLife(disk, seed, keys=250, bytes_max=bytes_max)

    def fill(share: float) -> None:
        disk.inode_of(NEIGHBOUR).replace(b"")
        free = disk.usage().free_bytes
        disk.inode_of(NEIGHBOUR).replace(bytes(int(share * free)))

    try:
        with case(FaultClass.FULL, f"budget {bytes_max}: a neighbour on the disk, seed {seed}"):
            for _ in range(60):
                share = life.random.choice((0.0, 0.5, 0.9, 1.0))
                for kind in life.random.choices(list(STEPS), list(STEPS.values()), k=8):
                    fill(share)
                    try:
                        getattr(life, kind)()
                    except DiskError as error:
                        life.daemon.budget.refused(error)
                    life.store.advance(life.random.choice((0.01, 1.0, 5.0)))
                assert life.daemon.compactor.dropped == 0, f"seed={seed}"
                if life.random.random() < 0.1:
                    fill(0.0)
                    life.power_cut()
            assert life.seen["left out: no_space"], "the neighbour was never in the way"
            fill(0.0)
            life.store.advance(60.0)
            for kind in ("look", "flush", "commit", "look", "flush", "commit"):
                getattr(life, kind)()
            life.power_cut()
            assert len(life.committed) > 100
    finally:
        life.close()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_quota_that_nobody_tells_is_found_and_outlived(code: int) -> None:
    """The disk says that there is plenty of room and refuses all the same; then it does not.
    Whose use it is that fills the quota nobody knows, so what is durable stays."""
    seed = 11
    disk = SimulatedDisk(seed)
    life = BudgetLife(disk, seed)
    packs: list[str] = []
    """Writes of blocks that were refused."""

    def used() -> int:
        usage = disk.usage()
        return usage.capacity_bytes - usage.free_bytes

    try:
        with case(FaultClass.DISK_REFUSES, f"budget: a quota, {errno.errorcode[code]}"):
            life.run(60)
            quota = used() + 2**18

            def refuse(operation: Operation) -> int:
                if operation.kind != "write" or used() < quota:
                    return 0
                packs.extend([operation.name] * operation.name.startswith("packs/"))
                return code

            disk.fault = refuse
            for _ in range(60):
                for step in (life.put, life.flush, life.commit, life.look):
                    try:
                        step()
                    except DiskError as error:
                        life.daemon.budget.refused(error)
                life.store.advance(1.0)
            assert packs
            assert len(packs) < 20, "the daemon does not learn"
            assert used() < quota + 2**20
            assert life.daemon.compactor.dropped == 0
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
