"""Backups in a directory: what is there is not copied again, and what is wrong is not believed."""

from __future__ import annotations

import errno

import pytest
from backup_kit import KEY, OTHER_KEY, blocks, build, live, opened, restore_from, save_to
from fault_ledger import FaultClass, case
from repository_kit import blank, content, put, remove

from snapd.backup import DirectoryPlace, RestoreOptions, load_place, load_stream
from snapd.disk.simulated import Operation, SimulatedDisk
from snapd.errors import CorruptError, DiskError, NothingThereError, RefusedError
from snapd.repository import Repository


def parts_of(place: SimulatedDisk) -> list[str]:
    return [name for name in place.files() if name.startswith("packs/")]


@pytest.fixture
def source() -> SimulatedDisk:
    disk = SimulatedDisk(1)
    build(disk)
    return disk


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "encrypted"])
def test_only_new_packs_are_copied(source: SimulatedDisk, key: object) -> None:
    place = SimulatedDisk(2)
    chosen = KEY if key is not None else None
    first = save_to(source, place, chosen)
    assert (first.packs_copied, first.packs_there) == (3, 0)
    with opened(source) as repository:
        put(repository, blocks([b"g"], 9), sequence=9)
        remove(repository, [b"e"], sequence=10)
    second = save_to(source, place, chosen)
    # The pack that held nothing but what was removed is not needed any more.
    assert (second.packs_copied, second.packs_there) == (1, 2)
    now = {b"b": content(b"b", 2), b"c": content(b"c", 1), b"d": content(b"d", 2)}
    assert restore_from(place, chosen) == now | {b"g": content(b"g", 9)}
    assert restore_from(place, chosen, number=1) == now | {b"e": content(b"e", 4)}
    assert save_to(source, place, chosen).packs_copied == 0


def test_old_backups_go_when_that_is_asked_for(source: SimulatedDisk) -> None:
    place = SimulatedDisk(2)
    save_to(source, place)
    with opened(source) as repository:
        put(repository, blocks([b"g"], 9), sequence=9)
        remove(repository, [b"e", b"c"], sequence=10)
    done = save_to(source, place, keep=1)
    assert done.removed == 3  # a list, and two packs that nothing of the new backup is in
    assert len(parts_of(place)) == 2
    assert set(restore_from(place)) == {b"b", b"d", b"g"}
    with pytest.raises(NothingThereError):
        restore_from(place, number=1)


def test_a_backup_that_was_killed_leaves_parts_that_the_next_one_uses(
    source: SimulatedDisk,
) -> None:
    place = SimulatedDisk(2)
    place.fail_kind("rename", 2, errno.EIO)
    with case(FaultClass.DISK_REFUSES, "backup: rename of the third archive"):
        with pytest.raises(DiskError):
            save_to(source, place)
        assert len(parts_of(place)) == 2
        with pytest.raises(NothingThereError):
            restore_from(place)
        again = save_to(source, place)
        assert (again.packs_copied, again.packs_there) == (1, 2)
        assert len(restore_from(place)) == 4
    assert not [name for name in place.files() if name.endswith(".tmp")]


def test_a_backup_that_fails_anywhere_leaves_the_one_before(source: SimulatedDisk) -> None:
    place = SimulatedDisk(2)
    save_to(source, place)
    with opened(source) as repository:
        put(repository, blocks([b"g"], 9), sequence=9)
    before = restore_from(place)
    operations = place.clone(3)
    save_to(source, operations, keep=1)
    for operation in operations.operations[:: 2 if len(operations.operations) > 60 else 1]:
        cut = place.clone(4)
        cut.fail(operation.number, errno.EIO)
        with case(FaultClass.DISK_REFUSES, f"backup: {operation.kind} {operation.number} fails"):
            try:
                save_to(source, cut, keep=1)
            except DiskError:
                cut.crash()
            found = restore_from(cut)
            assert found in (before, before | {b"g": content(b"g", 9)})


def damaged(place: SimulatedDisk, name: str, at: int) -> None:
    place.flip(name, at * 8)


def test_damage_in_a_part_is_found_and_repaired_when_asked(source: SimulatedDisk) -> None:
    place = SimulatedDisk(2)
    save_to(source, place)
    part = parts_of(place)[0]
    damaged(place, part, len(place.contents(part)) // 2)
    with case(FaultClass.DISK_LIES, "backup: a bit of a part flips"):
        with pytest.raises(CorruptError):
            restore_from(place)
        # Nobody reads what is there, unless that is asked for.
        assert save_to(source, place).packs_there == 3
        repaired = save_to(source, place, reread=True)
        assert (repaired.packs_copied, repaired.packs_there) == (1, 2)
        assert len(restore_from(place)) == 4
        # The damaged newest one is never passed over for an older one.
        with pytest.raises(CorruptError):
            restore_from(place, number=1)


def test_a_damaged_list_is_not_passed_over_for_an_older_one(source: SimulatedDisk) -> None:
    place = SimulatedDisk(2)
    save_to(source, place)
    name = save_to(source, place).name
    damaged(place, name, 300)
    with case(FaultClass.DISK_LIES, "backup: a bit of a list flips"):
        with pytest.raises(CorruptError):
            restore_from(place)
        assert len(restore_from(place, number=1)) == 4
        # The next backup needs no list that it cannot read.
        assert save_to(source, place).packs_there == 3
        assert len(restore_from(place)) == 4


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "encrypted"])
def test_a_part_in_the_place_of_another_is_noticed(source: SimulatedDisk, key: object) -> None:
    chosen = KEY if key is not None else None
    place = SimulatedDisk(2)
    save_to(source, place, chosen)
    first, second = parts_of(place)[:2]
    one, two = place.contents(first), place.contents(second)
    with case(FaultClass.HOSTILE_FILE, f"backup: two parts swapped, key {key is not None}"):
        place.replace_contents(first, two)
        place.replace_contents(second, one)
        with pytest.raises(CorruptError):
            restore_from(place, chosen)
        place.replace_contents(first, one)
        place.vanish(second)
        with pytest.raises(NothingThereError):
            restore_from(place, chosen)


def test_parts_under_another_key_are_copied_again(source: SimulatedDisk) -> None:
    place = SimulatedDisk(2)
    save_to(source, place)
    assert save_to(source, place, KEY).packs_copied == 3
    assert save_to(source, place, OTHER_KEY).packs_copied == 3
    assert len(restore_from(place, OTHER_KEY)) == 4
    with pytest.raises(RefusedError):
        restore_from(place, KEY)
    assert len(restore_from(place, KEY, number=2)) == 4


def test_two_repositories_do_not_share_a_place(source: SimulatedDisk) -> None:
    place, other = SimulatedDisk(2), SimulatedDisk(3)
    save_to(source, place)
    build(other)
    with pytest.raises(RefusedError, match="is a backup of repository"):
        save_to(other, place)


def test_a_list_alone_is_no_backup(source: SimulatedDisk) -> None:
    place, target = SimulatedDisk(2), SimulatedDisk(3)
    name = save_to(source, place).name
    with (
        DirectoryPlace(place).reading(name) as archive,
        pytest.raises(CorruptError, match="only lists"),
    ):
        load_stream(target, archive, None, RestoreOptions())
    with pytest.raises(RefusedError):
        live(target)


def test_pages_that_the_medium_does_not_give_cost_their_blocks(source: SimulatedDisk) -> None:
    pack = sorted(name for name in source.files() if name.startswith("packs/"))[1]
    place = SimulatedDisk(2)

    reads = 0

    def fault(operation: Operation) -> int:
        nonlocal reads
        if operation.kind == "read" and operation.name == pack:
            reads += 1
        # Recovery reads the ends and the index of a pack, twice the ends; then comes the copy: all
        # at once, which fails, and page by page, of which the second is gone.
        return errno.EIO if reads in failing else 0

    source.fault = fault
    failing: set[int] = set()
    save_to(source, SimulatedDisk(3))
    before = reads - 1
    reads, failing = 0, {before + 1, before + 3}
    with case(FaultClass.DISK_REFUSES, "backup: a page of a pack cannot be read"):
        result = save_to(source, place)
        assert result.findings == [f"{pack}: 1 pages cannot be read, their blocks are lost"]
    source.fault = None
    target = SimulatedDisk(4)
    load_place(target, DirectoryPlace(place), None, RestoreOptions())
    with Repository.open(target) as repository:
        repository.recover()
        rows = repository.catalog.live_rows()
        sizes = repository.catalog.column("size", rows).tolist()
        good = repository.read(rows, [blank(size) for size in sizes])
    # Never a wrong byte: the block in that page does not verify, all others do.
    assert (len(good), int(good.sum())) == (4, 3)
