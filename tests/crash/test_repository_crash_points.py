"""A crash before and after every operation on the disk, then recovery, then the oracle.

The oracle: every key holds the bytes that it last durably held, or what the call that the crash
interrupted was about to make of it; nothing removed or superseded is back; the last committed
generation is there; nothing is reported lost; and the repository works on.
"""

from __future__ import annotations

import random

import pytest
from repository_kit import content
from repository_model import ModelledRepository

from snapd.disk.simulated import SimulatedCrash, SimulatedDisk
from snapd.errors import DiskError, SnapdError

SEED = 20_261


def blocks(sequence: int, *names: str) -> dict[bytes, bytes]:
    return {
        name.encode(): content(name.encode(), sequence, 3000 + 100 * sequence) for name in names
    }


def live_through(model: ModelledRepository) -> None:
    """One life: packs, upserts, removals, evictions, epochs, commits that prune, restarts."""
    model.start()
    model.check()
    model.put(blocks(1, "a", "b", "c", "d"))
    model.commit()
    model.put(blocks(2, "a", "e", "moved"), dropped=[b"moved"])
    model.remove([b"b", b"never"])
    model.evict([b"c"])
    model.commit()
    model.put(blocks(3, "f"))
    model.remove([b"f"])
    model.put(blocks(4, "a", "g"))
    model.commit()
    model.open.close()
    recovery = model.start()
    if recovery.unreadable_manifests or recovery.unreadable_packs:
        raise DiskError("a read failed: what this life knows is a part, which it counted")
    model.check()
    model.put(blocks(5, "c", "g"))
    model.commit()
    model.remove_all()
    model.put(blocks(6, "a", "h"))
    model.commit()
    model.commit()
    model.commit()
    model.put(blocks(7, "h"))
    model.remove([b"a"])
    model.open.close()


def count_operations(retain: int) -> int:
    disk = SimulatedDisk(SEED)
    model = ModelledRepository(disk, retain=retain)
    live_through(model)
    return len(disk.operations)


RETAIN = 2
OPERATIONS = count_operations(RETAIN)

PARTS = 16
"""The operations in as many interleaved parts: the fast run takes one of them, `--long` all."""
EVERY_PART = [
    0,
    *(pytest.param(part, marks=pytest.mark.long) for part in range(1, PARTS)),
]


def test_the_life_ends_as_it_should() -> None:
    model = ModelledRepository(SimulatedDisk(SEED), retain=RETAIN)
    live_through(model)
    check_after(model)


def crash_during(disk: SimulatedDisk, model: ModelledRepository) -> bool:
    try:
        live_through(model)
    except SimulatedCrash:
        disk.crash()
        return True
    return False


def check_after(model: ModelledRepository) -> None:
    """Recover, apply the oracle, and work on."""
    recovery = model.start()
    assert recovery.blocks_lost == 0
    assert not recovery.unreadable_manifests
    assert not recovery.unreadable_packs
    assert not recovery.journal_findings
    assert not recovery.moved_aside
    model.check()
    for generation in model.open.generations():
        # Not only the newest: each one that is there is whole, or falling back to it would fail.
        found = model.open.verify(generation.generation)
        assert found.findings == [], f"generation {generation.generation}"
    model.put(blocks(100, "a", "new"))
    model.remove([b"e"])
    model.commit()
    model.check()
    model.open.close()
    model.start()
    model.check()
    assert model.open.verify(all_blocks=True).findings == []
    model.open.close()
    model.repository = None


@pytest.mark.parametrize("side", ["before", "after"])
@pytest.mark.parametrize("part", EVERY_PART)
def test_crash_at_every_operation(part: int, side: str) -> None:
    # The two sides of one operation differ little, so the fast run takes other ones for each.
    first = part + (PARTS // 2 if side == "after" else 0)
    for number in range(first % PARTS, OPERATIONS, PARTS):
        seed = SEED + number
        disk = SimulatedDisk(seed)
        setattr(disk, f"crash_{side}", number)
        model = ModelledRepository(disk, retain=RETAIN)
        try:
            crash_during(disk, model)
            check_after(model)
        except Exception as error:
            raise AssertionError(f"crash {side} operation {number}, seed {seed}") from error


@pytest.mark.parametrize("part", EVERY_PART)
def test_crash_again_during_recovery(part: int) -> None:
    """For a seeded crash point: crash at each operation of the recovery and its commit too."""
    number = random.Random(SEED + part).randrange(OPERATIONS)
    at = 0
    while True:
        disk = SimulatedDisk(SEED + number)
        disk.crash_before = number
        model = ModelledRepository(disk, retain=RETAIN)
        crash_during(disk, model)
        disk.crash_after = len(disk.operations) + at
        try:
            model.start()
            model.commit()
            return
        except SimulatedCrash:
            disk.crash()
        try:
            check_after(model)
        except Exception as error:
            raise AssertionError(f"crash before {number}, then {at} into recovery") from error
        at += 3


@pytest.mark.parametrize("part", EVERY_PART)
def test_failing_operations_lose_nothing(part: int) -> None:
    """Every operation fails once: the call raises, nothing durable is lost, a restart works."""
    for number in range(part, OPERATIONS, PARTS):
        disk = SimulatedDisk(SEED + number)
        disk.fail(number)
        model = ModelledRepository(disk, retain=RETAIN)
        try:
            live_through(model)
        except SnapdError:
            pass
        finally:
            if model.repository is not None:
                model.repository.close()
        disk.crash()
        try:
            check_after(model)
        except Exception as error:
            raise AssertionError(f"operation {number} fails") from error
