"""Power cuts and refusals at each operation of a restore: nothing of it is visible, or all is."""

from __future__ import annotations

import errno

import pytest
from backup_kit import archive_of, blocks, build, live, opened, restore_archive
from crash_explorer import LOSSES, loss_of, seeded_identifiers, words_of
from fault_ledger import FaultClass, case
from repository_kit import content, put, remove

from snapd.disk.simulated import Operation, Side, SimulatedDisk
from snapd.errors import DiskError, RefusedError
from snapd.repository.names import RESTORE_FILE

REPEAT = "repeat: ./check -- tests/crash/test_restore_crash_points.py -k '{}'"

Blocks = dict[bytes, bytes]


def targets() -> dict[str, tuple[bytes, SimulatedDisk, Blocks, Blocks]]:
    """By name: an archive, a target, what is live there before, and what must be afterwards."""
    with seeded_identifiers("restore"):
        source = SimulatedDisk(1)
        expected = build(source)
        archive = archive_of(source)
        with opened(source) as repository:
            # Since the backup: one key is gone, one is replaced, one is new.
            remove(repository, [b"c"], sequence=6)
            put(repository, blocks([b"d", b"g"], 7), sequence=7)
            repository.commit()
        before = live(source.fork(1))
        after = {key: expected[key] for key in (b"b", b"e")}
        assert before[b"g"] == content(b"g", 7)
    return {
        "empty": (archive, SimulatedDisk(2), {}, expected),
        "same-repository": (archive, source.clone(3), before, after),
    }


@pytest.fixture(scope="module")
def cases() -> dict[str, tuple[bytes, SimulatedDisk, Blocks, Blocks]]:
    return targets()


def check_ending(disk: SimulatedDisk, archive: bytes, before: Blocks, after: Blocks) -> bool:
    """A daemon sees nothing, what was there, or all; and the restore can be run again. Returns
    whether it was all there."""
    look = disk.fork(5)
    try:
        seen = live(look)
    except RefusedError:
        assert RESTORE_FILE in look.list("")
    else:
        assert seen in (before, after), sorted(seen)
        if seen == after:
            return True
    restore_archive(disk, archive, force=True)
    assert live(disk) == after
    assert not [name for name in disk.files() if name.endswith(".tmp")]
    return False


def cut_everywhere(
    name: str, cases: dict[str, tuple[bytes, SimulatedDisk, Blocks, Blocks]], losses: list[str]
) -> None:
    """Cut the power before and after each operation, with each of these losses."""
    archive, start, before, after = cases[name]
    disk = start.clone(7)
    tried: set[bytes] = set()
    endings = {True: 0, False: 0}

    def look(operation: Operation, side: Side) -> None:
        for loss in losses:
            crashed = disk.fork(len(tried))
            crashed.crash(loss_of(loss))
            mark = crashed.medium_digest()
            if mark in tried:
                continue
            tried.add(mark)
            what = f"restore {name}: {words_of(operation)}/{side}:{operation.number}:{loss}"
            with case(FaultClass.POWER_CUT, what):
                try:
                    endings[check_ending(crashed, archive, before, after)] += 1
                except Exception as error:
                    raise AssertionError(f"{what}; seed 7; {REPEAT.format(name)}") from error

    disk.watch = look
    restore_archive(disk, archive, force=True)
    disk.watch = None
    assert live(disk) == after
    assert endings[False] > 10
    assert endings[True] >= 1


@pytest.mark.parametrize("name", ["empty", "same-repository"])
def test_a_power_cut_at_each_operation_leaves_nothing_or_all(
    name: str, cases: dict[str, tuple[bytes, SimulatedDisk, Blocks, Blocks]]
) -> None:
    cut_everywhere(name, cases, ["lost"] if name == "same-repository" else ["kept", "lost"])


@pytest.mark.long
@pytest.mark.parametrize("name", ["empty", "same-repository"])
def test_a_power_cut_with_any_loss_leaves_nothing_or_all(
    name: str, cases: dict[str, tuple[bytes, SimulatedDisk, Blocks, Blocks]]
) -> None:
    cut_everywhere(name, cases, [*LOSSES, *(f"drawn-{one}" for one in range(5))])


@pytest.mark.long
@pytest.mark.parametrize("name", ["empty", "same-repository"])
def test_an_operation_that_fails_leaves_a_restore_that_goes_on(
    name: str, cases: dict[str, tuple[bytes, SimulatedDisk, Blocks, Blocks]]
) -> None:
    archive, start, before, after = cases[name]
    whole = start.clone(8)
    restore_archive(whole, archive, force=True)
    operations = list(whole.operations)
    for operation in operations:
        for code in (errno.EIO, errno.ENOSPC):
            disk = start.clone(9)
            disk.fail(operation.number, code)
            what = f"restore {name}: {words_of(operation)}/fails:{operation.number}:{code}"
            with case(FaultClass.DISK_REFUSES, what):
                try:
                    restore_archive(disk, archive, force=True)
                except DiskError:
                    check_ending(disk, archive, before, after)
                else:
                    assert live(disk) == after, f"{what}; seed 9; {REPEAT.format(name)}"
