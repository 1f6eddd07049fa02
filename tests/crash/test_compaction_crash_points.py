"""A power cut before and after every operation of a life with compactions; every one of them fails.

After each: recovery, or a rebuild from packs alone, must find every key as it durably was, and
nothing that was removed or superseded. Then the next compaction and snapshot must work.
"""

from __future__ import annotations

import errno
from collections import Counter

import pytest
from fault_ledger import FaultClass, case
from repository_kit import content
from repository_model import ModelledRepository

from snapd.disk.simulated import SimulatedCrash, SimulatedDisk
from snapd.errors import SnapdError

SEED = 44_100
RETAIN = 1
COMMAND = "pytest tests/crash/test_compaction_crash_points.py --long"


def blocks(model: ModelledRepository, *names: str) -> dict[bytes, bytes]:
    sequence = model.sequence + 1
    return {name.encode(): content(name.encode(), sequence, 2000 + sequence) for name in names}


def live_through(model: ModelledRepository) -> None:
    """Compactions of what was upserted, removed and evicted, before and after snapshots; packs that
    only dead originals and evicted blocks are left in; and an epoch."""
    model.start()
    model.put(blocks(model, "a", "b", "c", "d"))
    model.put(blocks(model, "a", "e"))
    model.commit()
    model.remove([b"b"])
    model.evict([b"c"])
    model.compact()
    model.put(blocks(model, "e", "f"))
    model.commit()
    model.remove([b"d"])
    model.compact()
    model.commit()
    model.evict([b"f"])
    model.compact()
    model.put(blocks(model, "a", "f"))
    model.commit()
    model.remove_all()
    model.put(blocks(model, "a", "g"))
    model.compact()
    model.commit()
    model.close()


def operations() -> list[str]:
    disk = SimulatedDisk(SEED)
    live_through(ModelledRepository(disk, retain=RETAIN))
    return [f"{one.step}/{one.kind} in {one.name.split('/')[0]}" for one in disk.operations]


OPERATIONS = operations()
PARTS = 24
"""The operations in as many interleaved parts: the fast run takes one of them, `--long` all."""
EVERY_PART = [0, *(pytest.param(part, marks=pytest.mark.long) for part in range(1, PARTS))]


def named(number: int) -> str:
    """An operation's place in the life, by what it does and the how-manieth of these it is."""
    seen = Counter(OPERATIONS[: number + 1])
    return f"{OPERATIONS[number]} {seen[OPERATIONS[number]]}"


def check_after(model: ModelledRepository, ending: str) -> None:
    """Apply the oracle and go on to compact."""
    recovery = model.start()
    assert recovery.blocks_lost == 0
    assert not recovery.unreadable_manifests + recovery.unreadable_packs
    model.check()
    if ending == "rebuild":
        model.rebuild()
        model.check()
    assert model.compact().rejected == 0
    model.check()
    model.commit()
    model.commit()
    model.check()
    assert model.open.verify(all_blocks=True).findings == []
    model.close()
    model.start()
    model.check()
    model.close()


def test_the_life_itself_ends_as_it_should() -> None:
    assert any("compaction/rename" in one for one in OPERATIONS)
    for ending in ("recover", "rebuild"):
        model = ModelledRepository(SimulatedDisk(SEED), retain=RETAIN)
        live_through(model)
        check_after(model, ending)


@pytest.mark.parametrize("ending", ["recover", "rebuild"])
@pytest.mark.parametrize("side", ["before", "after"])
@pytest.mark.parametrize("part", EVERY_PART)
def test_a_power_cut_at_every_operation(part: int, side: str, ending: str) -> None:
    # The endings and sides of one operation differ little: the fast run takes other ones for each.
    first = part + 6 * (side == "after") + 12 * (ending == "rebuild")
    for number in range(first % PARTS, len(OPERATIONS), PARTS):
        disk = SimulatedDisk(SEED + number)
        setattr(disk, f"crash_{side}", number)
        model = ModelledRepository(disk, retain=RETAIN)
        try:
            with case(FaultClass.POWER_CUT, f"compaction life/{named(number)}/{side}/{ending}"):
                try:
                    live_through(model)
                except SimulatedCrash:
                    disk.crash()
                check_after(model, ending)
        except Exception as error:
            where = f"power cut {side} operation {number} ({named(number)}), seed {SEED + number}"
            raise AssertionError(f"{where}, {ending}: {COMMAND} -k 'cut and {part}'") from error


@pytest.mark.parametrize("part", EVERY_PART)
def test_every_operation_fails_once(part: int) -> None:
    for number in range(part, len(OPERATIONS), PARTS):
        disk = SimulatedDisk(SEED + number)
        code = errno.ENOSPC if number % 2 else errno.EIO
        disk.fail(number, code)
        model = ModelledRepository(disk, retain=RETAIN)
        try:
            with case(FaultClass.DISK_REFUSES, f"compaction life/{named(number)}/{code}"):
                try:
                    live_through(model)
                except SnapdError:
                    pass
                finally:
                    model.close()
                disk.fault = None
                disk.crash()
                check_after(model, "rebuild" if number % 3 else "recover")
        except Exception as error:
            where = f"operation {number} ({named(number)}) fails, seed {SEED + number}"
            raise AssertionError(f"{where}: {COMMAND} -k 'fails and {part}'") from error


@pytest.mark.parametrize("part", EVERY_PART)
def test_a_second_power_cut_during_the_recovery_from_one_in_a_compaction(part: int) -> None:
    compactions = [at for at, one in enumerate(OPERATIONS) if one.startswith("compaction")]
    for number in compactions[part::PARTS]:
        at = 0
        while cut_again(number, at):
            at += 9


def cut_again(number: int, at: int) -> bool:
    """Cut before operation `number` of the life, then after so many of the recovery and its commit;
    False if there are not so many."""
    disk = SimulatedDisk(SEED + number)
    disk.crash_before = number
    model = ModelledRepository(disk, retain=RETAIN)
    try:
        live_through(model)
    except SimulatedCrash:
        disk.crash()
    disk.crash_after = len(disk.operations) + at
    try:
        model.start()
        model.compact()
        model.commit()
        return False
    except SimulatedCrash:
        disk.crash()
    try:
        with case(FaultClass.POWER_CUT_TWICE, f"compaction life/{named(number)}/then {at}"):
            check_after(model, "recover")
    except Exception as error:
        raise AssertionError(
            f"cut before {number}, then {at} later, {COMMAND} -k second"
        ) from error
    return True
