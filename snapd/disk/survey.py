"""What a directory's file system is like: mount, device, direct I/O, speed. Leaves nothing behind:
its files have no name."""

from __future__ import annotations

import mmap
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from snapd.disk.port import DISK_ALIGNMENT

_CHUNK_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Mount:
    """The mount that a path is below."""

    kind: str
    device: str
    options: frozenset[str]
    number: int
    """`st_dev` of the path."""


def nearest(path: str) -> Path:
    """The path, or the first of its parents that is a directory."""
    found = Path(path).absolute()
    while not found.is_dir():
        found = found.parent
    return found


def mount_of(path: Path) -> Mount:
    """The mount that holds `path`, which must exist. Raises OSError."""
    real, number = path.resolve(strict=True), path.stat().st_dev
    below = [
        part for part in psutil.disk_partitions(all=True) if real.is_relative_to(part.mountpoint)
    ]
    if not below:
        return Mount("unknown", "unknown", frozenset(), number)
    # Of mounts on one point the last hides the others.
    best = max(enumerate(below), key=lambda one: (len(Path(one[1].mountpoint).parts), one[0]))[1]
    return Mount(best.fstype, best.device, frozenset(best.opts.split(",")), number)


def is_rotational(number: int) -> bool | None:
    """Whether the disk behind `st_dev` turns, by /sys (block(5), queue/rotational); None where it
    does not say, as for network and memory file systems."""
    device = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").resolve()
    for folder in (device, device.parent):  # a partition's queue is its disk's
        with suppress(OSError):
            return (folder / "queue" / "rotational").read_text().strip() == "1"
    return None


@contextmanager
def _nameless(directory: Path, flags: int) -> Iterator[int]:
    """A descriptor of a new file that is gone when it is closed. Raises OSError."""
    try:
        descriptor = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC | flags, 0o600)
    except OSError:  # not every file system has these
        made, name = tempfile.mkstemp(prefix=".snapd-doctor-", dir=directory)
        os.close(made)
        try:
            descriptor = os.open(name, os.O_RDWR | os.O_CLOEXEC | flags)
        finally:
            os.unlink(name)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def write_problem(directory: Path) -> str:
    """Why no file can be made in a directory; empty if one can."""
    try:
        with _nameless(directory, 0):
            return ""
    except OSError as error:
        return error.strerror or str(error)


def opens_direct(directory: Path) -> bool:
    """Whether a file opens with O_DIRECT. Raises OSError when none opens at all."""
    with _nameless(directory, 0):
        pass
    try:
        with _nameless(directory, os.O_DIRECT):
            return True
    except OSError:
        return False


def measure(directory: Path, amount: int, seconds_max: float) -> tuple[float, float]:
    """Bytes a second of sequential writing and reading, with direct I/O where there is any: at most
    `amount` bytes, and about `seconds_max` for each. Raises OSError."""
    flags = os.O_DIRECT if opens_direct(directory) else 0
    buffer = mmap.mmap(-1, _CHUNK_BYTES)
    assert _CHUNK_BYTES % DISK_ALIGNMENT == 0
    with buffer, _nameless(directory, flags) as file:
        buffer.write(os.urandom(1 << 16) * (_CHUNK_BYTES >> 16))
        started, written = time.monotonic(), 0
        while written < amount and time.monotonic() - started < seconds_max:
            written += os.pwritev(file, [buffer], written)
        os.fdatasync(file)
        write_seconds = time.monotonic() - started
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        started, seen = time.monotonic(), 0
        while seen < written and time.monotonic() - started < seconds_max:
            seen += os.preadv(file, [buffer], seen)
        read_seconds = time.monotonic() - started
    return written / max(write_seconds, 1e-9), seen / max(read_seconds, 1e-9)
