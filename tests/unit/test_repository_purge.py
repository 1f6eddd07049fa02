"""Purged blocks are gone from every file, and nothing else is."""

from __future__ import annotations

import errno
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from fault_ledger import FaultClass, case
from repository_kit import append, contents_of, put, remove

from snapd.disk.posix import PosixDisk
from snapd.disk.simulated import SimulatedCrash, SimulatedDisk
from snapd.errors import SnapdError
from snapd.formats.sealed import PAGE_BYTES
from snapd.repository import Purge, PurgeResult, Repository
from snapd.repository.prune import PINNED

SECRET = b"what nobody is to read again"


def opened(disk: SimulatedDisk, retain: int = 3) -> Repository:
    repository = Repository.open(disk, retain=retain)
    repository.recover()
    repository.incarnation(b"0123456789abcdef")
    return repository


def secret(number: int) -> bytes:
    """A block that can be found on the disk."""
    return SECRET * 50 + b"%d" % number


def plain(number: int) -> bytes:
    return b"may stay %d" % number * 300


def everything(disk: SimulatedDisk) -> dict[str, bytes]:
    """Every file below the root."""
    directories = ["packs", "manifests", "journal", "quarantine"]
    directories += [name for name in disk.list("") if name.startswith("aside-")]
    return {
        f"{directory}/{name}": disk.contents(f"{directory}/{name}")
        for directory in directories
        for name in disk.list(directory)
    }


def files_with_secret(disk: SimulatedDisk) -> list[str]:
    return [name for name, data in everything(disk).items() if SECRET in data]


def lay(disk: SimulatedDisk) -> dict[bytes, bytes]:
    """Secrets in packs of their own and beside others, live, overwritten, removed and evicted;
    returns what is to be there after a purge of them."""
    kept = {b"keep-%d" % number: plain(number) for number in range(4)}
    with opened(disk) as repository:
        put(repository, {b"user-7/a": secret(1), b"keep-0": kept[b"keep-0"]}, sequence=1)
        put(repository, {b"user-7/b": secret(2), b"user-7/c": secret(3)}, sequence=2)
        repository.commit()
        put(repository, {b"user-7/a": secret(4), b"keep-1": kept[b"keep-1"]}, sequence=3)
        remove(repository, [b"user-7/b"], sequence=4)
        repository.commit()
        rows = put(repository, {b"user-7/d": secret(5), b"keep-2": kept[b"keep-2"]}, sequence=5)
        repository.catalog.set_live(rows[:1], live=False)
        repository.commit()
        put(repository, {b"user-70": plain(70), b"keep-3": kept[b"keep-3"]}, sequence=6)
    return kept | {b"user-70": plain(70)}


def run(repository: Repository, prefix: bytes = b"user-7/", pin_seconds: float = 0) -> PurgeResult:
    purge = Purge(repository, prefix, repository.compact, pin_seconds=pin_seconds)
    if prefix:
        purge.remove(repository.catalog.rows_end)
    else:
        repository.journal(epoch=repository.epoch + 1)
    return purge.erase()


def test_every_version_goes_and_nothing_else() -> None:
    disk = SimulatedDisk()
    kept = lay(disk)
    assert len(files_with_secret(disk)) == 4
    with opened(disk) as repository:
        result = run(repository)
        assert files_with_secret(disk) == []
        assert contents_of(repository) == kept
        assert (result.keys, result.packs_deleted, result.packs_rewritten) == (4, 4, 3)
        assert result.bytes == 5 * len(secret(1))
        assert (result.generations_deleted, result.blocked) == (3, "")
    for name in disk.list("manifests"):
        disk.remove(f"manifests/{name}")
    with opened(disk) as repository:
        assert contents_of(repository) == kept, "a rebuild from packs alone"


def test_a_purge_of_everything_leaves_no_block_and_no_key() -> None:
    disk = SimulatedDisk()
    lay(disk)
    with opened(disk) as repository:
        result = run(repository, b"")
        assert result.blocked == ""
        assert result.keys == 9
        assert contents_of(repository) == {}
        put(repository, {b"new": plain(9)}, sequence=1, epoch=repository.epoch)
        repository.commit()
    assert not any(b"user-7" in data or b"may stay 1" in data for data in everything(disk).values())
    with opened(disk) as repository:
        assert contents_of(repository) == {b"new": plain(9)}


def test_copies_in_the_quarantine_go_with_what_they_are_of() -> None:
    disk = SimulatedDisk()
    lay(disk)
    with opened(disk) as repository:
        rows = repository.catalog.live_rows()
        assert repository.reject(rows) == len(rows)
        put(repository, {b"other": plain(1)}, sequence=20)
        names = disk.list("quarantine")
        mine = [name for name in names if SECRET in disk.contents(f"quarantine/{name}")]
        unknown = disk.open("quarantine/0000000099-0000000000001000.block", "x")
        unknown.write([b"of a pack that is gone"], 0)
        unknown.close()
        result = run(repository)
        assert len(mine) >= 1
        assert result.quarantine_files == len(mine) + 1
        left = disk.list("quarantine")
        assert sorted(left) == sorted(set(names) - set(mine))
        assert files_with_secret(disk) == []


def test_what_was_moved_aside_goes_if_it_may_hold_such_blocks() -> None:
    disk = SimulatedDisk()
    kept = lay(disk)
    names = disk.list("packs")
    data = disk.contents(f"packs/{names[0]}")
    disk.replace_contents(f"packs/{names[0]}", data[:-PAGE_BYTES] + bytes(PAGE_BYTES))
    harmless = disk.contents(f"packs/{names[-1]}")
    with opened(disk) as repository:
        assert repository.prune(move_unreadable=True).moved_aside
        for name, text in ((names[-1], harmless), (names[2], disk.contents(f"packs/{names[2]}"))):
            file = disk.open(f"aside-1/{name}", "x")
            file.write([text], 0)
            file.close()
        file = disk.open("aside-1/0000000001.manifest", "x")
        file.write([b"holds no block"], 0)
        file.close()
        result = run(repository)
        assert result.aside_files == 2
        assert disk.list("aside-1") == ["0000000001.manifest", names[-1]]
        assert files_with_secret(disk) == []
        del kept[b"keep-0"]
        assert contents_of(repository) == kept


def test_a_pack_that_cannot_be_read_may_hold_anything() -> None:
    disk = SimulatedDisk()
    kept = lay(disk)
    name = f"packs/{disk.list('packs')[1]}"
    data = disk.contents(name)
    disk.replace_contents(name, data[:-PAGE_BYTES] + bytes(PAGE_BYTES))
    with opened(disk) as repository, case(FaultClass.DISK_LIES, "purge meets an unreadable pack"):
        result = run(repository)
        assert result.blocked == ""
        assert result.aside_files == 1
        assert files_with_secret(disk) == []
        assert contents_of(repository) == kept


def test_a_reader_delays_the_files_and_never_the_removal() -> None:
    disk = SimulatedDisk()
    kept = lay(disk)
    reader = None
    with opened(disk) as repository:
        reader = Repository.open(disk, read_only=True)
        result = run(repository)
        assert result.blocked == PINNED
        assert result.packs_deleted == 0
        assert len(files_with_secret(disk)) == 4
        assert contents_of(repository) == kept
        reader.close()
        again = run(repository)
        assert (again.blocked, again.packs_deleted) == ("", 4)
        assert files_with_secret(disk) == []


def test_what_is_being_written_meanwhile_goes_too() -> None:
    disk = SimulatedDisk()
    with opened(disk) as repository:
        purge = Purge(repository, b"user-7/", repository.compact)
        put(repository, {b"user-7/late": secret(1), b"keep": plain(1)}, sequence=3)
        remove(repository, [b"user-7/late"], sequence=4)
        result = purge.erase()
        assert (result.packs_deleted, result.packs_rewritten) == (1, 1)
        assert files_with_secret(disk) == []
        assert contents_of(repository) == {b"keep": plain(1)}


def test_what_a_failed_writer_left_goes_and_what_one_is_writing_stays() -> None:
    disk = SimulatedDisk()
    with opened(disk) as repository:
        failing = repository.begin_pack()
        append(failing, {b"user-7/failed": secret(1)}, sequence=3)
        disk.fault = lambda one: errno.EIO if one.kind in {"write", "remove"} else 0
        with pytest.raises(SnapdError):
            append(failing, {b"user-7/more": secret(2)}, sequence=3)
        disk.fault = None
        assert len(files_with_secret(disk)) == 1
        writer = repository.begin_pack()
        append(writer, {b"keep": plain(1)}, sequence=4)
        purge = Purge(repository, b"user-7/", repository.compact, writing_seconds=0.1)
        assert "still being written" in purge.erase().blocked
        assert files_with_secret(disk) == []
        writer.seal()
        assert purge.erase().blocked == ""
        assert contents_of(repository) == {b"keep": plain(1)}


def test_what_is_put_after_the_removal_stays() -> None:
    disk = SimulatedDisk()
    lay(disk)
    with opened(disk) as repository:
        purge = Purge(repository, b"user-7/", repository.compact)
        rows_end = repository.catalog.rows_end
        put(repository, {b"user-7/a": plain(77)}, sequence=30)
        purge.remove(rows_end)
        purge.erase()
        assert contents_of(repository)[b"user-7/a"] == plain(77)
        assert files_with_secret(disk) == []


def cut_power(prefix: bytes, step: int) -> int:
    """Before every `step`th operation; returns how many there are."""
    number, crashed = 0, True
    while crashed:
        disk = SimulatedDisk(seed=number)
        kept = lay(disk)
        if not prefix:
            kept = {}
        repository = opened(disk)
        removed = Purge(repository, prefix, repository.compact)
        if prefix:
            removed.remove(repository.catalog.rows_end)
        else:
            repository.journal(epoch=repository.epoch + 1)
        disk.crash_before = len(disk.operations) + number
        with case(FaultClass.POWER_CUT, f"purge of {prefix!r}: before operation {number}"):
            with suppress(SimulatedCrash):
                removed.erase()
                crashed = False
            disk.crash_before = None
            disk.crash()
            with opened(disk) as again:
                assert contents_of(again) == kept
                assert run(again, prefix).blocked == ""
                assert files_with_secret(disk) == []
                assert contents_of(again) == kept
        number += step
    return number


@pytest.mark.parametrize("prefix", [b"user-7/", b""])
def test_a_power_cut_in_a_purge_brings_nothing_back(prefix: bytes) -> None:
    assert cut_power(prefix, 5) > 40


@pytest.mark.long
@pytest.mark.parametrize("prefix", [b"user-7/", b""])
def test_a_power_cut_anywhere_in_a_purge_brings_nothing_back(prefix: bytes) -> None:
    assert cut_power(prefix, 1) > 40


def fail_once(prefix: bytes, number: int) -> bool:
    """EIO at this operation of a purge, once; whether there is such an operation."""
    disk = SimulatedDisk(seed=number)
    kept = lay(disk)
    if not prefix:
        kept = {}
    with opened(disk) as repository:
        purge = Purge(repository, prefix, repository.compact)
        if prefix:
            purge.remove(repository.catalog.rows_end)
        else:
            repository.journal(epoch=repository.epoch + 1)
        before = repository.generation
        target = len(disk.operations) + number
        disk.fail(target, errno.EIO)
        with suppress(SnapdError):
            purge.erase()
        hit = len(disk.operations) > target
        disk.fault = None
        asides = [name for name in disk.list("") if name.startswith("aside-")]
        assert not [name for one in asides for name in disk.list(one) if "manifest" in name]
        assert contents_of(repository) == kept
    with opened(disk) as repository:
        assert repository.generation >= before
        assert contents_of(repository) == kept
    return hit


@pytest.mark.parametrize("prefix", [b"user-7/", b""])
def test_one_failure_in_a_purge_moves_no_good_snapshot_aside(prefix: bytes) -> None:
    number, hit = 0, True
    while hit:
        with case(FaultClass.DISK_REFUSES, f"purge of {prefix!r}: EIO once, operation {number}"):
            hit = fail_once(prefix, number)
        number += 3
    assert number > 40


def test_what_is_no_file_of_ours_stops_no_purge(tmp_path: Path) -> None:
    disk = PosixDisk(tmp_path)
    with Repository.open(disk) as repository:
        repository.recover()
        put(repository, {b"user-7/a": secret(1), b"keep": plain(1)})
        (tmp_path / "aside-file").write_bytes(b"somebody's own")
        (tmp_path / "aside-link").symlink_to("/")
        (tmp_path / "aside-1" / "inner").mkdir(parents=True)
        (tmp_path / "quarantine" / "inner").mkdir()
        result = run(repository)
        assert "inner is a directory" in result.blocked
        assert contents_of(repository) == {b"keep": plain(1)}
    disk.close()
    left = [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_symlink()]
    assert not [path for path in left if SECRET in path.read_bytes()]
    assert (tmp_path / "aside-file").read_bytes() == b"somebody's own"


def test_prefixes_compare_bytes() -> None:
    disk = SimulatedDisk()
    with opened(disk) as repository:
        put(repository, {"schlüssel/1".encode(): secret(1), b"schlu/1": plain(1)})
        run(repository, "schlü".encode())
        assert contents_of(repository) == {b"schlu/1": plain(1)}
    assert np.array(files_with_secret(disk)).size == 0
