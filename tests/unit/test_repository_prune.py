"""What may be deleted and what must stay: damage, dry runs, packs that have to go."""

from __future__ import annotations

import errno
from contextlib import suppress

import pytest
from fault_ledger import FaultClass, case
from repository_kit import content, contents_of, put, remove

from snapd.disk.simulated import Operation, SimulatedCrash, SimulatedDisk
from snapd.formats.sealed import PAGE_BYTES
from snapd.repository import PruneResult, Repository
from snapd.repository import commit as commit_module

SEED = 2_718


def opened(disk: SimulatedDisk, retain: int = 2) -> Repository:
    repository = Repository.open(disk, retain=retain)
    repository.recover()
    repository.incarnation(b"0123456789abcdef")
    return repository


def values(sequence: int, *names: str) -> dict[bytes, bytes]:
    return {name.encode(): content(name.encode(), sequence) for name in names}


def names_in(disk: SimulatedDisk, directory: str) -> list[str]:
    return [f"{directory}/{name}" for name in disk.list(directory)]


def everything(disk: SimulatedDisk) -> dict[str, bytes]:
    found = [name for one in ("packs", "manifests", "journal") for name in names_in(disk, one)]
    return {name: disk.contents(name) for name in found}


def break_end(disk: SimulatedDisk, name: str) -> bytes:
    """Damage the trailer; returns the bytes as they were."""
    data = disk.contents(name)
    disk.replace_contents(name, data[:-PAGE_BYTES] + bytes(PAGE_BYTES))
    return data


def overwrite_often(repository: Repository, times: int) -> None:
    for sequence in range(100, 100 + times):
        put(repository, values(sequence, "often"), sequence=sequence)
        repository.commit()


# --- on request -----------------------------------------------------------------------------------


def test_a_dry_run_says_what_a_run_does_and_changes_nothing() -> None:
    disk = SimulatedDisk(SEED)
    with opened(disk, retain=5) as repository:
        overwrite_often(repository, 5)
        before = everything(disk)
        planned = repository.prune(2, dry_run=True)
        assert everything(disk) == before
    with Repository.open(disk, read_only=True, retain=5) as repository:
        repository.recover()
        assert repository.prune(2, dry_run=True) == planned
        assert everything(disk) == before
    with opened(disk, retain=5) as repository:
        before = everything(disk)
        done = repository.prune(2)
        gone = before.keys() - everything(disk).keys()
        assert (done.manifests, done.packs) == (planned.manifests, planned.packs) == (3, 3)
        assert done.bytes == planned.bytes
        assert done.bytes == sum(len(before[name]) for name in gone if "packs" in name)
        assert contents_of(repository) == values(104, "often")


def test_damage_is_moved_aside_on_request_and_pruning_goes_on() -> None:
    disk = SimulatedDisk(SEED)
    with opened(disk) as repository:
        overwrite_often(repository, 3)
        put(repository, values(1, "lost"))
        repository.commit()
        remove(repository, [b"x"], sequence=9)
    manifest, pack = names_in(disk, "manifests")[0], names_in(disk, "packs")[-1]
    broken = {name: break_end(disk, name) and disk.contents(name) for name in (manifest, pack)}
    with opened(disk) as repository, case(FaultClass.DISK_LIES, "prune meets damaged files"):
        assert "cannot be read" in repository.prune().blocked
        planned = repository.prune(move_unreadable=True, dry_run=True)
        assert sorted(planned.moved_aside) == sorted(broken)
        done = repository.prune(move_unreadable=True)
        assert done.blocked == ""
        assert sorted(done.moved_aside) == sorted(names_in(disk, "aside-1"))
        for name, data in broken.items():
            assert disk.contents(f"aside-1/{name.rpartition('/')[2]}") == data
        assert contents_of(repository) == values(102, "often")
        overwrite_often(repository, 3)
        assert len(names_in(disk, "manifests")) == 2
    with opened(disk) as repository:
        assert contents_of(repository) == values(102, "often")


def test_a_damaged_journal_is_moved_only_after_its_removals_were_written_again() -> None:
    disk = SimulatedDisk(SEED)
    with opened(disk) as repository:
        put(repository, values(1, "a", "b"))
        repository.commit()
        remove(repository, [b"a"], sequence=5)
        remove(repository, [b"c"], sequence=5)
    name = names_in(disk, "journal")[-1]
    data = disk.contents(name)
    disk.replace_contents(name, bytes(PAGE_BYTES) + data[PAGE_BYTES:])
    with case(FaultClass.DISK_LIES, "prune meets a journal without its header"):
        with opened(disk) as repository:
            assert name in names_in(disk, "journal"), "kept, because it is damaged"
            done = repository.prune(move_unreadable=True)
            assert len(done.moved_aside) == 1
            assert name not in names_in(disk, "journal")
        disk.crash()
        with opened(disk) as repository:
            assert contents_of(repository) == values(1, "b")
            assert repository.recover().journal_findings == []


def test_a_damaged_journal_that_could_not_be_written_again_is_not_moved() -> None:
    disk = SimulatedDisk(SEED)
    with opened(disk) as repository:
        remove(repository, [b"a"], sequence=5)
        remove(repository, [b"c"], sequence=5)
    name = names_in(disk, "journal")[-1]
    disk.replace_contents(name, bytes(PAGE_BYTES) + disk.contents(name)[PAGE_BYTES:])

    def refuse(operation: Operation) -> int:
        renewing = operation.kind == "create" and operation.name.startswith("journal/")
        return errno.ENOSPC if renewing else 0

    disk.fault = refuse
    with Repository.open(disk) as repository:
        repository.recover()
        disk.fault = None
        with case(FaultClass.DISK_REFUSES, "journal written again at recovery: disk full"):
            assert repository.prune(move_unreadable=True).moved_aside == ()
            assert name in names_in(disk, "journal")


def test_what_cannot_be_opened_for_want_of_descriptors_is_not_moved() -> None:
    disk = SimulatedDisk(SEED)
    with opened(disk) as repository:
        overwrite_often(repository, 2)
    name = names_in(disk, "packs")[-1]
    code = errno.EIO
    disk.fault = lambda one: code if one.kind == "open" and one.name == name else 0
    with Repository.open(disk) as repository, case(FaultClass.DISK_REFUSES, "open a pack: EMFILE"):
        assert name in repository.recover().unreadable_packs[0]
        code = errno.EMFILE
        assert repository.prune(move_unreadable=True).moved_aside == ()
        assert name in names_in(disk, "packs")


def journal_length(disk: SimulatedDisk) -> int:
    return sum(len(disk.contents(name)) for name in names_in(disk, "journal"))


def test_a_journal_that_has_grown_long_gets_a_pack_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(commit_module, "JOURNAL_BYTES_MAX", 20 * PAGE_BYTES)
    disk = SimulatedDisk(SEED)
    with opened(disk) as repository:
        put(repository, values(1, "a", "b"))
        repository.commit()
        for sequence in range(2, 14):
            remove(repository, [b"a"], sequence=sequence)
        assert journal_length(disk) > 90_000
        repository.commit()
        # The pack is not worth keeping for one removal: that is said again, in a new journal.
        assert 0 < journal_length(disk) < 20_000
    with opened(disk) as repository:
        assert contents_of(repository) == values(1, "b")


# --- packs that cannot be read --------------------------------------------------------------------


def lay_shielded(disk: SimulatedDisk) -> str:
    """A pack with a key whose removal only the pack behind it tells; the first one's name."""
    with opened(disk) as repository:
        put(repository, values(1, "kept", "gone"))
        repository.commit()
        first = names_in(disk, "packs")[0]
        remove(repository, [b"gone"], sequence=5)
        put(repository, values(6, "often"), sequence=6)
        repository.commit()
        assert names_in(disk, "journal") == []
        return first


@pytest.mark.parametrize("commits", range(7))
@pytest.mark.parametrize("told_by", ["a pack", "the journal"])
def test_what_a_pack_that_cannot_be_read_needs_is_never_deleted(commits: int, told_by: str) -> None:
    """It may become readable again: then what was removed is still removed, even if nothing but
    packs is left to tell."""
    disk = SimulatedDisk(SEED)
    if told_by == "a pack":
        first = lay_shielded(disk)
    else:
        with opened(disk) as repository:
            put(repository, values(1, "kept", "gone"))
            repository.commit()
            remove(repository, [b"gone"], sequence=5)
        first = names_in(disk, "packs")[0]
    whole = break_end(disk, first)
    with (
        opened(disk) as repository,
        case(FaultClass.DISK_LIES, f"a pack comes back after {commits} commits, {told_by} tells"),
    ):
        for sequence in range(50, 50 + commits):
            # The first of the two carries what the journal says, and dies at once.
            put(repository, values(2 * sequence, "often"), sequence=2 * sequence)
            put(repository, values(2 * sequence + 1, "often"), sequence=2 * sequence + 1)
            repository.commit()
    for name in names_in(disk, "manifests"):
        disk.remove(name)
    if first in names_in(disk, "packs"):
        disk.replace_contents(first, whole)
    with opened(disk) as repository:
        found = contents_of(repository)
        assert b"gone" not in found
        assert found.keys() <= {b"kept", b"often"}


def test_once_no_retained_generation_is_as_old_it_is_moved_aside_and_pruning_goes_on() -> None:
    disk = SimulatedDisk(SEED)
    first = lay_shielded(disk)
    break_end(disk, first)
    with opened(disk) as repository:
        put(repository, values(99, "often"), sequence=99)
        held = repository.commit().pruned
        assert first in held.blocked
        assert first in names_in(disk, "packs")
        put(repository, values(100, "often"), sequence=100)
        done = repository.commit().pruned
        assert done.blocked == ""
        assert done.moved_aside == (f"aside-1/{first.rpartition('/')[2]}",)
        overwrite_often(repository, 4)
        assert len(names_in(disk, "packs")) <= 3
    with opened(disk) as repository:
        assert repository.recover().unreadable_packs == []


# --- packs that have to go ------------------------------------------------------------------------


def test_a_condemned_pack_goes_with_the_generations_that_name_it() -> None:
    disk = SimulatedDisk(SEED)
    with opened(disk, retain=4) as repository:
        rows = put(repository, values(1, "a", "b"))
        repository.commit()
        put(repository, values(2, "other"), sequence=2)
        repository.commit()
        first = names_in(disk, "packs")[0]
        remove(repository, [b"a", b"b"], sequence=5)
        assert not repository.catalog.is_live(rows).any()
        repository.condemn([1])
        done = repository.commit().pruned
        assert (done.manifests, done.packs, done.blocked) == (2, 1, "")
        assert first not in names_in(disk, "packs")
        assert names_in(disk, "manifests") == ["manifests/0000000003.manifest"]
        assert contents_of(repository) == values(2, "other")
    with opened(disk) as repository:
        assert contents_of(repository) == values(2, "other")


def test_a_condemned_pack_with_something_live_stays_until_it_has_nothing() -> None:
    disk = SimulatedDisk(SEED)
    with opened(disk) as repository:
        put(repository, values(1, "a", "b"))
        remove(repository, [b"a"], sequence=5)
        repository.condemn([1])
        assert repository.commit().pruned.packs == 0
        assert contents_of(repository) == values(1, "b")
        remove(repository, [b"b"], sequence=6)
        assert repository.commit().pruned.packs == 1
        assert repository.commit().pruned == PruneResult(manifests=0)


def test_a_condemned_pack_above_the_floor_goes_although_another_is_being_written() -> None:
    disk = SimulatedDisk(SEED)
    with opened(disk) as repository:
        writer = repository.begin_pack()
        put(repository, values(1, "a"))
        remove(repository, [b"a"], sequence=5)
        repository.condemn([2])
        assert repository.commit().pruned.packs == 1
        writer.abort()
        assert names_in(disk, "packs") == []
    with opened(disk) as repository:
        assert contents_of(repository) == {}


@pytest.mark.parametrize("seed", range(4))
def test_a_power_cut_while_condemned_packs_go_brings_nothing_back(seed: int) -> None:
    last = 0
    while True:
        disk = SimulatedDisk(seed)
        repository = opened(disk)
        put(repository, values(1, "a"))
        repository.commit()
        writer = repository.begin_pack()
        put(repository, values(2, "b", "c"), sequence=2)
        remove(repository, [b"b"], sequence=5)
        remove(repository, [b"a"], sequence=5)
        repository.condemn([1])
        disk.crash_before = len(disk.operations) + last
        with case(FaultClass.POWER_CUT, f"commit that deletes condemned packs, operation {last}"):
            crashed = True
            with suppress(SimulatedCrash):
                repository.commit()
                writer.abort()
                crashed = False
            disk.crash_before = None
            disk.crash()
            with opened(disk) as again:
                assert contents_of(again) == values(2, "c")
        if not crashed:
            break
        last += 1
    assert 5 < last < 200
