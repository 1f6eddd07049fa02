"""Whole transfers out of system calls that stop short, under the real disk's code."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from snapd.disk import PosixDisk
from snapd.disk import posix as posix_module
from snapd.errors import DiskError

PAGE = 4096


def pages(data: bytes) -> memoryview:
    """A page-aligned copy."""
    buffer = memoryview(mmap.mmap(-1, len(data)))
    buffer[:] = data
    return buffer


Vectored = Callable[[int, Sequence[memoryview], int], int]


def shortened(real: Vectored, lengths: list[int], unit: int = 1) -> Vectored:
    """The real system call, which reports at most so many bytes in each call; then any number.

    It moves whole units, since a direct call for less may be refused by the device.
    """

    def call(descriptor: int, views: Sequence[memoryview], offset: int) -> int:
        reported = lengths.pop(0) if lengths else 1 << 30
        if reported < 0:
            raise OSError(-reported, os.strerror(-reported))
        left = -(-reported // unit) * unit
        cut = []
        for view in views:
            cut.append(view[:left])
            left -= cut[-1].nbytes
        return min(reported, real(descriptor, [view for view in cut if view.nbytes], offset))

    return call


@pytest.mark.parametrize("lengths", [[1], [1, 1, 1], [4095], [4096, 5], [5000, 1, 8191]])
def test_buffered_transfers_go_on_where_the_kernel_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lengths: list[int]
) -> None:
    data = bytes(range(256)) * 64
    file = PosixDisk(tmp_path).open("f", "x")
    monkeypatch.setattr(posix_module.os, "pwritev", shortened(os.pwritev, [*lengths]))
    monkeypatch.setattr(posix_module.os, "preadv", shortened(os.preadv, [*lengths]))
    file.write([data[:100], data[100:9000], data[9000:]], 7)
    first, second = bytearray(3000), bytearray(len(data))
    assert file.read([first, second], 7) == len(data)
    assert bytes(first + second)[: len(data)] == data
    assert (tmp_path / "f").read_bytes() == bytes(7) + data


@pytest.mark.parametrize("lengths", [[4096], [8192, 4096], [4608], [8192 + 512, 4096 + 512]])
def test_direct_transfers_go_on_from_the_last_whole_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lengths: list[int]
) -> None:
    data = os.urandom(8 * PAGE)
    file = PosixDisk(tmp_path).open("f", "x", direct=True)
    source, target = pages(data), pages(bytes(8 * PAGE))
    # What the kernel moved of a page in part is moved again, so the calls see whole pages only.
    monkeypatch.setattr(posix_module.os, "pwritev", shortened(os.pwritev, [*lengths], PAGE))
    file.write([source[:PAGE], source[PAGE:]], PAGE)
    assert (tmp_path / "f").read_bytes() == bytes(PAGE) + data
    monkeypatch.setattr(posix_module.os, "preadv", shortened(os.preadv, [*lengths], PAGE))
    assert file.read([target[:PAGE], target[PAGE:]], PAGE) == 8 * PAGE
    assert bytes(target) == data


def test_a_direct_read_that_stops_at_a_bad_sector_is_an_error_and_not_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "f").write_bytes(bytes(8 * PAGE))
    file = PosixDisk(tmp_path).open("f", "r", direct=True)
    target = pages(bytes(8 * PAGE))
    for lengths in ([PAGE + 512, 512], [512], [PAGE, -errno.EIO]):
        monkeypatch.setattr(posix_module.os, "preadv", shortened(os.preadv, lengths, PAGE))
        with pytest.raises(DiskError) as caught:
            file.read([target], 0)
        assert caught.value.errno == errno.EIO
        monkeypatch.undo()
    assert file.read([target], 0) == 8 * PAGE


def test_a_write_that_fails_half_way_poisons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = PosixDisk(tmp_path).open("f", "x")
    monkeypatch.setattr(posix_module.os, "pwritev", shortened(os.pwritev, [10, -errno.ENOSPC]))
    with pytest.raises(DiskError) as caught:
        file.write([bytes(100)], 0)
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(DiskError, match="given up"):
        file.sync()


def test_a_write_without_progress_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = PosixDisk(tmp_path).open("f", "x")
    monkeypatch.setattr(posix_module.os, "pwritev", lambda *_: 0)
    with pytest.raises(DiskError, match="no progress"):
        file.write([bytes(100)], 0)
