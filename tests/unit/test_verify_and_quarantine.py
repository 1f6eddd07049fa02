"""`verify` finds everything and changes nothing; the quarantine is bounded whatever comes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fault_ledger import FaultClass, case
from hypothesis import given, settings
from hypothesis import strategies as st
from repository_kit import append, contents_of, put, remove

from snapd.disk.posix import PosixDisk
from snapd.disk.simulated import Operation, SimulatedDisk
from snapd.formats.repository import encode_repository
from snapd.formats.sealed import PAGE_BYTES
from snapd.repository import Repository, Sample
from snapd.repository.names import REPOSITORY_FILE
from snapd.repository.quarantine import QUARANTINE_BYTES_MAX, QUARANTINE_FILES_MAX

NOBODY = 65_534
READING = {"open", "read", "size", "list", "lock"}


def opened(disk: SimulatedDisk) -> Repository:
    repository = Repository.open(disk)
    repository.recover()
    return repository


def lay(disk: SimulatedDisk | PosixDisk, blocks: int = 8, size: int = 5000) -> None:
    with Repository.open(disk) as repository:
        repository.recover()
        repository.incarnation(b"0123456789abcdef")
        half = blocks // 2
        put(repository, {b"a%d" % n: bytes([n]) * size for n in range(half)})
        repository.commit()
        put(repository, {b"b%d" % n: bytes([n]) * size for n in range(blocks - half)}, sequence=2)
        repository.commit()
        remove(repository, [b"other"], sequence=3)


# --- verify ---------------------------------------------------------------------------------------


def other_identity(raw: bytes) -> bytes:
    return encode_repository(bytes(16))


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("gone", None),
        ("empty", lambda raw: b""),
        ("cut off", lambda raw: raw[:-9]),
        ("a flipped bit", lambda raw: raw[:60] + bytes([raw[60] ^ 1]) + raw[61:]),
        ("of another repository", other_identity),
    ],
)
def test_a_bad_identity_is_a_finding_though_the_files_repeat_it(
    what: str, change: Callable[[bytes], bytes] | None
) -> None:
    disk = SimulatedDisk()
    lay(disk)
    with case(FaultClass.DISK_LIES, f"repository.json: {what}"):
        if change is None:
            disk.vanish(REPOSITORY_FILE)
        else:
            disk.replace_contents(REPOSITORY_FILE, change(disk.contents(REPOSITORY_FILE)))
        with Repository.open(disk, read_only=True) as repository:
            found = repository.verify()
        assert [one.file for one in found.findings] == [REPOSITORY_FILE]
        assert found.blocks == 8
        with opened(disk) as repository:
            assert repository.verify(all_blocks=True).findings == [], "the writer repairs it"


@settings(max_examples=25, deadline=None)
@given(blocks=st.integers(1, 12), parts=st.integers(1, 9), bad=st.integers(0, 11))
def test_so_many_samples_cover_everything_once(blocks: int, parts: int, bad: int) -> None:
    """Each block is read by exactly one of the runs, and the run that reads a bad one says so."""
    disk = SimulatedDisk()
    lay(disk, blocks)
    with opened(disk) as repository:
        rows = repository.catalog.live_rows()
        table = repository.catalog.take(rows)
        at = bad % blocks
        pack = next(p for p in repository.packs() if p.sequence == int(table.pack[at]))
        data = bytearray(disk.contents(pack.name))
        data[int(table.pack_offset[at]) + 17] ^= 0x10
    disk.replace_contents(pack.name, bytes(data))
    with case(FaultClass.DISK_LIES, f"block {at} of {blocks} flipped, verify in {parts} samples"):
        with Repository.open(disk, read_only=True) as repository:
            runs = [repository.verify(sample=Sample(n + 1, parts)) for n in range(parts)]
        assert sum(run.blocks for run in runs) == blocks
        assert sum(run.bytes for run in runs) == 5000 * blocks
        findings = [finding for run in runs for finding in run.findings]
        assert [(one.file, one.blocks) for one in findings] == [(pack.name, 1)]


def test_a_pack_that_only_an_older_snapshot_names_is_missed() -> None:
    disk = SimulatedDisk()
    with opened(disk) as repository:
        put(repository, {b"a": b"1" * 5000})
        repository.commit()
        remove(repository, [b"a"], sequence=5)
        repository.commit()
    name = f"packs/{disk.list('packs')[0]}"
    disk.remove(name)
    with (
        Repository.open(disk, read_only=True) as repository,
        case(FaultClass.DISK_LIES, "a pack of an older snapshot is gone"),
    ):
        assert [one.file for one in repository.verify(all_blocks=True).findings] == [name]
        assert repository.verify().findings == []
        assert [one.file for one in repository.verify(1).findings] == [name]


def test_a_journal_file_that_goes_while_it_is_looked_for_is_no_finding() -> None:
    """A writer that starts writes again what it read, and deletes the old files."""
    disk = SimulatedDisk()
    lay(disk)
    name = f"journal/{disk.list('journal')[-1]}"
    with Repository.open(disk, read_only=True) as repository:

        def vanish(operation: Operation) -> int:
            if operation.kind == "open" and operation.name == name and name[8:] in names(disk):
                disk.fault = None
                disk.remove(name)
            return 0

        disk.fault = vanish
        found = repository.verify()
        assert name[8:] not in names(disk)
        assert found.findings == []


def names(disk: SimulatedDisk) -> list[str]:
    return list(disk.list("journal"))


def test_reading_changes_nothing_on_the_disk() -> None:
    disk = SimulatedDisk()
    lay(disk)
    damaged = f"packs/{disk.list('packs')[0]}"
    data = disk.contents(damaged)
    for broken in (data, data[:-PAGE_BYTES] + bytes(PAGE_BYTES), data[: PAGE_BYTES * 2 + 5]):
        disk.replace_contents(damaged, broken)
        first = len(disk.operations)
        with Repository.open(disk, read_only=True) as repository:
            repository.recover()
            repository.generations()
            repository.show(2)
            found = repository.verify(all_blocks=True)
            repository.verify(sample=Sample(1, 2))
            repository.prune(dry_run=True, move_unreadable=True)
        assert bool(found.findings) == (broken is not data)
        did = {operation.kind for operation in disk.operations[first:]}
        assert did <= READING


def test_a_tree_that_may_not_be_written_can_be_verified() -> None:
    """As somebody who may only read it: not even the pin needs more."""
    root = Path(tempfile.mkdtemp(prefix="snapd-read-only-", dir="/tmp"))
    disk = PosixDisk(root)
    lay(disk)
    disk.close()
    verify_count(root)  # imports everything before rights are given up
    files = sorted(root.rglob("*"))
    before = {path: path.read_bytes() for path in files if path.is_file()}
    for path in [root, *files]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        child = os.fork()
        if child == 0:
            os._exit(verify_as_nobody(root))
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 8
        assert {path: path.read_bytes() for path in before} == before
        assert sorted(root.rglob("*")) == files
    finally:
        for path in [root, *files]:
            path.chmod(0o755 if path.is_dir() else 0o644)
        for path in reversed(files):
            path.rmdir() if path.is_dir() else path.unlink()
        root.rmdir()


def verify_count(root: Path) -> int:
    """Blocks that a whole verify reads; 255 if it finds anything."""
    disk = PosixDisk(root)
    with Repository.open(disk, read_only=True) as repository:
        repository.recover()
        found = repository.verify(all_blocks=True)
    disk.close()
    return 255 if found.findings else found.blocks


def verify_as_nobody(root: Path) -> int:
    try:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        return verify_count(root)
    except BaseException:  # noqa: BLE001 - a child of a test must not run the test's own handlers
        return 254


# --- quarantine -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("blocks", "size"), [(300, 4096), (70, 2**20)])
def test_a_flood_of_bad_blocks_fills_the_quarantine_to_its_bounds(blocks: int, size: int) -> None:
    disk = SimulatedDisk()
    with opened(disk) as repository, case(FaultClass.DISK_LIES, f"{blocks} bad blocks of {size}"):
        writer = repository.begin_pack()
        append(writer, {b"k%d" % n: np.random.default_rng(n).bytes(size) for n in range(blocks)})
        rows = writer.seal()
        copied = sum(repository.reject(part) for part in np.array_split(rows, 7))
        names = disk.list("quarantine")
        used = sum(len(disk.contents(f"quarantine/{name}")) for name in names)
        assert copied == len(names) <= QUARANTINE_FILES_MAX
        assert used <= QUARANTINE_BYTES_MAX
        assert len(names) == QUARANTINE_FILES_MAX or used + size > QUARANTINE_BYTES_MAX
        assert contents_of(repository) == {}
        repository.commit()
        found = repository.verify(all_blocks=True)
        assert (found.quarantine_files, found.quarantine_bytes) == (len(names), used)
    with Repository.open(disk) as repository:
        assert repository.recover().quarantine_files == len(names)
        assert repository.reject(np.empty(0, np.int64)) == 0


def test_the_same_bad_block_is_copied_once() -> None:
    disk = SimulatedDisk()
    with opened(disk) as repository:
        rows = put(repository, {b"bad": b"x" * 5000})
        assert repository.reject(rows) == 1
        assert repository.reject(rows) == 0
        assert len(disk.list("quarantine")) == 1
