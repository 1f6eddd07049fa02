"""Faults of the disk that once did harm, each as short as it can be told."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest
from fault_ledger import FaultClass, case
from repository_kit import content
from repository_model import ModelledRepository

from snapd.disk.simulated import LOSES_ALL, Effect, Operation, SimulatedDisk
from snapd.errors import CorruptError, DiskError
from snapd.repository import Repository

Fault = Callable[[Operation], int | Effect]


def values(turn: int, *names: str) -> dict[bytes, bytes]:
    return {name.encode(): content(name.encode(), turn) for name in names}


def model_on(seed: int = 1, retain: int = 1) -> tuple[SimulatedDisk, ModelledRepository]:
    disk = SimulatedDisk(seed)
    model = ModelledRepository(disk, retain=retain)
    model.start()
    return disk, model


def model_with_two_snapshots() -> tuple[SimulatedDisk, ModelledRepository]:
    """Two packs; the newer has a newer version of one of the older's keys."""
    disk, model = model_on()
    model.put(values(1, "a", "b"))
    model.commit()
    model.put(values(2, "b", "c"))
    model.commit()
    return disk, model


def once(kind: str, where: str, code: int | Effect) -> Fault:
    """The first operation of a kind on such a name."""
    hit: list[int] = []

    def fault(operation: Operation) -> int | Effect:
        if operation.kind == kind and where in operation.name and not hit:
            hit.append(operation.number)
            return code
        return 0

    return fault


def always(kind: str, where: str, code: int) -> Fault:
    return lambda one: code if one.kind == kind and where in one.name else 0


AFTER_THE_RENAME: dict[str, Fault] = {
    "rename done, EIO": once("rename", "packs/", Effect(errno.EIO, done=True)),
    "syncdir EIO": once("syncdir", "packs", errno.EIO),
    "open to read back EMFILE": once("open", "packs/", errno.EMFILE),
    "read back EIO": once("read", "packs/", errno.EIO),
    "read back with a wrong bit": once("read", "packs/", Effect(flip_bit=70)),
}


@pytest.mark.parametrize("what", AFTER_THE_RENAME)
def test_a_pack_that_failed_after_its_rename_hides_nothing_and_revives_nothing(what: str) -> None:
    disk, model = model_on()
    model.put(values(1, "a", "b"))
    model.commit()
    with case(FaultClass.DISK_REFUSES, f"seal: {what}"):
        disk.fault = AFTER_THE_RENAME[what]
        with pytest.raises((DiskError, CorruptError)):
            model.put(values(2, "a", "b"))
        disk.fault = None
        assert len(disk.list("packs")) == 1, "it kept its name"
        model.commit()
        model.close()
        model.start()
        assert model.open.verify(all_blocks=True).findings == []
        model.check()
        assert set(model.certain) == {b"a", b"b"}
        # What supersedes it is committed, then evicted and pruned: a rebuild has only the rest.
        model.put(values(3, "a"))
        model.put(values(4, "c"))
        model.remove([b"a"])
        for _ in range(3):
            model.put(values(5, "d"))
            model.commit()
        model.rebuild()
        model.commit()
        model.check()
        assert b"a" not in model.certain


def test_a_pack_whose_name_cannot_be_taken_back_is_taken_in_by_the_next_life() -> None:
    disk, model = model_on()
    model.put(values(1, "a", "b"))
    model.commit()
    with case(FaultClass.DISK_REFUSES, "seal: syncdir EIO, and remove EIO"):
        disk.fault = lambda one: (
            errno.EIO if one.kind in {"syncdir", "remove"} and one.name.startswith("packs") else 0
        )
        with pytest.raises(DiskError):
            model.put(values(2, "a", "b"))
        disk.fault = None
        model.commit()
        model.close()
        model.start()
        model.check()
        assert set(model.certain) == {b"a", b"b"}, "blocks that were committed are gone"


def test_a_name_that_could_not_be_taken_back_is_taken_back_at_the_next_commit() -> None:
    disk, model = model_on()
    model.put(values(1, "a", "b"))
    model.commit()
    with case(FaultClass.DISK_REFUSES, "seal: syncdir EIO, and remove EIO, then a commit"):
        disk.fault = lambda one: (
            errno.EIO if one.kind in {"syncdir", "remove"} and one.name.startswith("packs") else 0
        )
        with pytest.raises(DiskError):
            model.put(values(2, "a", "b"))
        model.commit()
        failed = model.open.writing()
        assert len(failed) == 1, "the disk still refuses: no floor may pass the pack"
        disk.fault = None
        model.commit()
        assert model.open.writing() == []
        assert len(disk.list("packs")) == 1, "it kept its name"
        assert model.open.show(model.generation).pack_floor >= failed[0]
        disk.crash(LOSES_ALL)
        model.start()
        model.check()
        assert model.open.verify(all_blocks=True).findings == []
        assert set(model.certain) == {b"a", b"b"}


def test_a_rebuild_that_cannot_read_a_pack_does_not_bring_back_what_it_removed() -> None:
    disk, model = model_on(retain=1)
    model.put(values(1, "a", "b"))
    model.commit()
    model.remove([b"a"])
    model.put(values(2, "c"))  # this pack is all that says it, but for the manifest
    model.commit()
    assert disk.list("journal") == []
    says_it = disk.list("packs")[-1]
    with case(FaultClass.DISK_REFUSES, "rebuild: open of a pack EIO"):
        disk.fault = always("open", says_it, errno.EIO)
        recovery = model.open.rebuild()
        disk.fault = None
        assert recovery.unreadable_packs
        assert b"a" not in model.readable()[0]


def test_a_start_that_cannot_open_a_journal_file_fails_and_the_next_one_works() -> None:
    disk, model = model_on()
    model.put(values(1, "a", "b"))
    model.commit()
    model.remove([b"a"])
    model.close()
    with case(FaultClass.DISK_REFUSES, "recovery: open of a journal file EMFILE"):
        disk.fault = always("open", "journal/", errno.EMFILE)
        with pytest.raises(DiskError) as caught:
            model.start()
        assert caught.value.errno == errno.EMFILE
        disk.fault = None
        model.start()
        model.check()
        assert b"a" not in model.certain


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE])
@pytest.mark.parametrize("kind", ["open", "size", "read"])
@pytest.mark.parametrize("directory", ["packs", "manifests"])
def test_a_start_that_lacks_something_fails_instead_of_losing_blocks(
    directory: str, kind: str, code: int
) -> None:
    """What it could not read is not gone, and a commit would have made the loss final."""
    disk, model = model_with_two_snapshots()
    model.close()
    newest = f"{directory}/{disk.list(directory)[-1]}"
    name = errno.errorcode[code]
    with case(FaultClass.DISK_REFUSES, f"recovery: {kind} in {directory} {name}, for a while"):
        disk.fault = always(kind, newest, code)
        with pytest.raises(DiskError) as caught:
            model.start()
        assert caught.value.errno == code
        disk.fault = None
        assert model.start().source == "manifest"
        model.commit()
        model.close()
        model.start()
        model.check()
        assert model.certain.keys() == {b"a", b"b", b"c"}


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("kind", ["open", "size", "read"])
@pytest.mark.parametrize("directory", ["packs", "manifests"])
def test_a_file_that_fails_to_be_read_once_or_twice_is_read_again(
    directory: str, kind: str, times: int
) -> None:
    disk, model = model_with_two_snapshots()
    # Opening reads headers for itself, and goes on without them: this is about what recovery reads.
    model.close()
    reading = Repository.open(disk, retain=1)
    failures = 0

    def fault(operation: Operation) -> int:
        nonlocal failures
        if operation.kind != kind or not operation.name.startswith(f"{directory}/"):
            return 0
        failures += 1
        return errno.EIO if failures <= times else 0

    words = f"recovery: {kind} in {directory} EIO, {times} times"
    with case(FaultClass.DISK_REFUSES, words), reading as repository:
        disk.fault = fault
        recovery = repository.recover()
        disk.fault = None
        assert failures > times
        assert recovery.source == "manifest"
        assert recovery.blocks_lost == 0
        assert not recovery.unreadable_packs
        assert not recovery.unreadable_manifests
        assert recovery.blocks == 3


def test_a_lost_identity_is_not_made_anew_while_files_cannot_be_opened() -> None:
    """A new one would make all that is there another repository's."""
    disk, model = model_on()
    model.put(values(1, "a", "b"))
    model.commit()
    model.close()
    disk.vanish("repository.json")
    with case(FaultClass.DISK_REFUSES, "open without repository.json: all files EMFILE"):
        disk.fault = lambda one: (
            errno.EMFILE if one.kind == "open" and one.name.endswith(("manifest", ".pack")) else 0
        )
        with pytest.raises(DiskError):
            model.start()
        disk.fault = None
        assert model.start().moved_aside == []
        model.check()
        assert model.certain.keys() == {b"a", b"b"}


@pytest.mark.parametrize("kind", ["open", "size", "read"])
def test_a_journal_file_that_fails_to_be_read_once_is_read_again(kind: str) -> None:
    disk, model = model_on()
    model.put(values(1, "a", "b"))
    model.commit()
    model.remove([b"a"])
    model.close()
    with case(FaultClass.DISK_REFUSES, f"recovery: {kind} of a journal file EIO, once"):
        disk.fault = once(kind, "journal/", errno.EIO)
        recovery = model.start()
        assert recovery.journal_findings == []
        model.check()
        assert b"a" not in model.certain


@pytest.mark.parametrize("page", range(5))
def test_a_page_of_the_journal_that_the_medium_does_not_give_loses_no_removal(page: int) -> None:
    """A read of the whole file fails, and so does that of one page, for ever."""
    disk, model = model_on()
    model.put(values(1, "a", "b"))
    model.commit()
    model.close()
    model.start()
    model.remove([b"a"])
    model.close()
    reads = 0

    def bad_sector(operation: Operation) -> int:
        nonlocal reads
        if "journal/" not in operation.name or operation.kind not in {"open", "read"}:
            return 0
        reads = reads + 1 if operation.kind == "read" else 0
        return errno.EIO if reads in {1, page + 2} else 0

    with case(FaultClass.DISK_REFUSES, f"recovery: a bad sector in page {page} of the journal"):
        disk.fault = bad_sector
        model.start()
        disk.fault = None
        model.check()
        assert b"a" not in model.certain
        disk.crash(LOSES_ALL)
        model.start()
        model.check()
        assert b"a" not in model.certain


@pytest.mark.parametrize("directory", ["packs", "manifests", "journal"])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_what_a_failed_sync_may_have_dropped_is_not_believed(directory: str, code: int) -> None:
    disk, model = model_on()
    model.put(values(1, "a", "b"))
    model.commit()
    before = model.generation
    call = {
        "packs": lambda: model.put(values(2, "c")),
        "manifests": model.commit,
        "journal": lambda: model.remove([b"a"]),
    }[directory]
    with case(FaultClass.DISK_REFUSES, f"sync of a file in {directory}: {errno.errorcode[code]}"):
        disk.fault = once("sync", f"{directory}/", code)
        with pytest.raises(DiskError) as caught:
            call()
        assert caught.value.errno == code
        assert model.open.generation == before
        disk.crash(LOSES_ALL)
        model.start()
        model.check()
        assert model.certain.keys() == {b"a", b"b"}


def test_what_was_stale_before_its_pack_was_sealed_stays_so_when_the_newer_pack_goes_bad() -> None:
    disk, model = model_on()
    first = model.begin(values(1, "a", "b"))
    second = model.begin(values(2, "a"))
    model.seal(second)
    model.commit()
    newer = f"packs/{disk.list('packs')[-1]}"
    model.seal(first)
    model.close()
    with case(FaultClass.DISK_LIES, "packs sealed out of order, the newer one zeroed"):
        disk.replace_contents(newer, bytes(len(disk.contents(newer))))
        assert model.start().blocks_lost == 1
        model.check(lossy=True)
        assert model.certain.keys() == {b"b"}


@pytest.mark.parametrize("reads", [1, 2, 3, 4])
def test_a_copy_that_could_not_be_read_once_does_not_take_its_original_along_later(
    reads: int,
) -> None:
    disk, model = model_on(retain=3)
    model.put(values(1, "a", "b"))
    model.commit()
    model.put(values(2, "b", "c"))
    model.commit()
    model.compact()
    copy = f"packs/{disk.list('packs')[-1]}"
    model.close()
    seen: list[int] = []

    def fault(one: Operation) -> int | Effect:
        if (one.kind, one.name) != ("read", copy):
            return 0
        seen.append(one.number)
        return Effect(flip_bit=9) if len(seen) >= reads else 0

    with case(FaultClass.DISK_LIES, f"a compacted pack reads badly from read {reads} on, once"):
        disk.fault = fault
        assert model.start().unreadable_packs
        disk.fault = None
        # The originals serve, and a manifest says so that does not name the copy.
        model.check()
        model.commit()
        model.close()
        assert copy.removeprefix("packs/") in disk.list("packs")
        recovery = model.start()
        assert not recovery.unreadable_packs
        assert recovery.blocks == 3
        model.check()
        model.compact()
        model.commit()
        model.check()
