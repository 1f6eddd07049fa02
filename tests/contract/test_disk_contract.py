"""One suite for every disk: what the repository relies on."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest

from snapd.disk import DISK_ALIGNMENT, Disk, DiskFile, DiskLock, PosixDisk
from snapd.disk.metered import MeteredDisk
from snapd.disk.simulated import SimulatedDisk
from snapd.errors import DiskError, LockHeldError


def aligned(data: bytes) -> memoryview:
    """A page-aligned copy of `data`, padded with zeros to whole pages."""
    pages = -(-len(data) // DISK_ALIGNMENT) * DISK_ALIGNMENT
    buffer = memoryview(mmap.mmap(-1, max(pages, DISK_ALIGNMENT)))
    buffer[: len(data)] = data
    return buffer[:pages]


@pytest.fixture(params=["posix", "simulated", "metered"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Disk:
    if request.param == "posix":
        return PosixDisk(tmp_path)
    disk = SimulatedDisk(7)
    return MeteredDisk(disk) if request.param == "metered" else disk


def test_both_satisfy_the_port(disk: Disk) -> None:
    assert isinstance(disk, Disk)
    file = disk.open("f", "x")
    assert isinstance(file, DiskFile)
    assert isinstance(disk.lock("l"), DiskLock)


def test_bytes_come_back(disk: Disk) -> None:
    file = disk.open("f", "x")
    file.write([b"hello ", b"", memoryview(b"world")], 3)
    file.sync()
    assert file.size() == 14
    first, second = bytearray(5), bytearray(20)
    assert file.read([first, second], 0) == 14
    assert bytes(first + second[:9]) == b"\0\0\0hello world"
    file.close()
    file.close()
    with pytest.raises(DiskError):
        file.size()


def test_direct_file_takes_more_buffers_than_one_system_call(disk: Disk) -> None:
    file = disk.open("f", "x", direct=True)
    pages = [aligned(bytes([n % 251]) * DISK_ALIGNMENT) for n in range(1500)]
    file.write(pages, DISK_ALIGNMENT)
    file.sync()
    back = aligned(bytes(1500 * DISK_ALIGNMENT))
    views = [back[n * 4096 : (n + 1) * 4096] for n in range(1500)]
    assert file.read(views, DISK_ALIGNMENT) == len(back)
    assert bytes(back) == b"".join(pages)


def test_direct_read_stops_at_an_end_that_is_not_aligned(disk: Disk) -> None:
    plain = disk.open("f", "x")
    plain.write([b"x" * 5000], 0)
    plain.sync()
    back = aligned(bytes(3 * DISK_ALIGNMENT))
    direct = disk.open("f", "r", direct=True)
    assert direct.read([back[:4096], back[4096:8192], back[8192:]], 0) == 5000
    assert bytes(back[:5000]) == b"x" * 5000


def test_reading_past_the_end_gives_nothing(disk: Disk) -> None:
    file = disk.open("f", "x")
    assert file.read([bytearray(10)], 100) == 0


def test_modes(disk: Disk) -> None:
    with pytest.raises(DiskError):
        disk.open("f", "r")
    disk.open("f", "a").write([b"abc"], 0)
    with pytest.raises(DiskError):
        disk.open("f", "x")
    again = disk.open("f", "a")
    assert again.size() == 3
    with pytest.raises(DiskError):
        disk.open("f", "r").write([b"abc"], 0)


def test_a_failed_write_poisons_the_file(disk: Disk) -> None:
    disk.open("f", "x").write([b"abc"], 0)
    file = disk.open("f", "r")
    with pytest.raises(DiskError):
        file.write([b"x"], 0)
    if isinstance(disk, PosixDisk):
        for call in (file.sync, file.size, lambda: file.read([bytearray(1)], 0)):
            with pytest.raises(DiskError, match="given up"):
                call()


def test_directories_and_names(disk: Disk) -> None:
    assert list(disk.list("packs")) == []
    disk.make_directory("packs")
    disk.make_directory("packs")
    disk.sync_directory("")
    disk.open("packs/b", "x")
    disk.open("packs/a.tmp", "x").write([b"new"], 0)
    disk.open("packs/a", "x").write([b"old"], 0)
    disk.rename("packs/a.tmp", "packs/a")
    disk.sync_directory("packs")
    assert list(disk.list("packs")) == ["a", "b"]
    assert list(disk.list("")) == ["packs"]
    back = bytearray(3)
    disk.open("packs/a", "r").read([back], 0)
    assert bytes(back) == b"new"
    disk.remove("packs/b")
    assert list(disk.list("packs")) == ["a"]
    for missing in (lambda: disk.remove("packs/b"), lambda: disk.rename("packs/b", "packs/c")):
        with pytest.raises(DiskError):
            missing()
    with pytest.raises(DiskError):
        disk.sync_directory("nowhere")
    with pytest.raises(DiskError):
        disk.open("nowhere/f", "x")
    with pytest.raises(DiskError):
        disk.open("packs", "a")


@pytest.mark.parametrize("name", ["/etc/passwd", "../f", "a/../f", ".", "a//b", "a/", "x\0", ""])
def test_names_that_leave_the_root_are_refused(disk: Disk, name: str) -> None:
    disk.make_directory("a")
    for call in (
        lambda: disk.open(name, "a"),
        lambda: disk.remove(name),
        lambda: disk.make_directory(name),
        lambda: disk.rename("f", name),
        lambda: disk.lock(name),
    ):
        with pytest.raises(DiskError):
            call()


def test_locks(disk: Disk) -> None:
    first = disk.lock("lock", shared=True)
    second = disk.lock("lock", shared=True)
    with pytest.raises(LockHeldError, match="lock"):
        disk.lock("lock")
    first.release()
    first.release()
    with pytest.raises(LockHeldError):
        disk.lock("lock")
    second.release()
    exclusive = disk.lock("lock")
    with pytest.raises(LockHeldError):
        disk.lock("lock", shared=True)
    exclusive.release()
    disk.lock("lock").release()


def test_a_lock_makes_its_file(disk: Disk) -> None:
    lock = disk.lock("lock")
    assert list(disk.list("")) == ["lock"]
    lock.release()
    assert list(disk.list("")) == ["lock"]


def test_usage_is_sane(disk: Disk) -> None:
    usage = disk.usage()
    assert 0 < usage.free_bytes <= usage.capacity_bytes
