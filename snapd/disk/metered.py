"""`MeteredDisk`: any disk, with the bytes counted that go to it.

A budget on writes is only as true as its meter. Counted at the port, nothing is forgotten: blocks
and indexes, manifests, journals, copies made by compaction, and packs that failed half-way.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from typing_extensions import Buffer

from snapd.disk.port import Disk, DiskFile, DiskLock, DiskUsage


class MeteredDisk:
    """A `Disk` over another one. Safe to use from several threads."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._lock = threading.Lock()
        self._bytes_written = 0

    @property
    def bytes_written(self) -> int:
        """Bytes given to `DiskFile.write` so far, whether the write succeeded or not."""
        with self._lock:
            return self._bytes_written

    def open(self, name: str, mode: str, *, direct: bool = False) -> DiskFile:
        """Open a file; see `Disk.open`. Files that are only read need no meter."""
        file = self._disk.open(name, mode, direct=direct)
        return file if mode == "r" else MeteredFile(file, self)

    def list(self, name: str) -> Sequence[str]:
        """Names in a directory, sorted."""
        return self._disk.list(name)

    def make_directory(self, name: str) -> None:
        """Make a directory unless it is there."""
        self._disk.make_directory(name)

    def rename(self, source: str, target: str) -> None:
        """Rename a file, replacing the target."""
        self._disk.rename(source, target)

    def remove(self, name: str) -> None:
        """Remove a file."""
        self._disk.remove(name)

    def sync_directory(self, name: str) -> None:
        """Make the names in a directory durable."""
        self._disk.sync_directory(name)

    def usage(self) -> DiskUsage:
        """Capacity and free space."""
        return self._disk.usage()

    def lock(self, name: str, *, shared: bool = False) -> DiskLock:
        """Take the lock on a file."""
        return self._disk.lock(name, shared=shared)

    def count(self, amount: int) -> None:
        """For `MeteredFile`: so many bytes are about to be written."""
        with self._lock:
            self._bytes_written += amount


class MeteredFile:
    """A `DiskFile` over another one."""

    def __init__(self, file: DiskFile, meter: MeteredDisk) -> None:
        self._file = file
        self._meter = meter

    def write(self, buffers: Sequence[Buffer], offset: int) -> None:
        """Write all buffers at `offset`, whole."""
        # Before the write: what a failing disk has taken of it is not known afterwards.
        self._meter.count(sum(memoryview(buffer).nbytes for buffer in buffers))
        self._file.write(buffers, offset)

    def read(self, buffers: Sequence[Buffer], offset: int) -> int:
        """Fill the buffers from `offset`."""
        return self._file.read(buffers, offset)

    def sync(self) -> None:
        """Make the file's bytes and size durable."""
        self._file.sync()

    def size(self) -> int:
        """Length in bytes."""
        return self._file.size()

    def close(self) -> None:
        """Close; idempotent."""
        self._file.close()
