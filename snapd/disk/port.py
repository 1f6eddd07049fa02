"""The disk port: every file system call that snapd makes on a repository goes through it.

Two implementations: `snapd.disk.posix` (O_DIRECT where the file system has it) and
`snapd.disk.simulated` (loses unsynced data at a crash, from a seed). One contract suite runs on
both. All names are relative to the root that the disk was opened on; absolute names, `..` and
symbolic links are refused with `DiskError`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from typing_extensions import Buffer

DISK_ALIGNMENT = 4096
"""Offsets, lengths and memory addresses of direct I/O are multiples of this, in bytes."""


@dataclass(frozen=True, slots=True)
class DiskUsage:
    """Bytes of the file system that holds the root."""

    capacity_bytes: int
    free_bytes: int
    """Free for this process, as `statvfs` counts it (f_bavail)."""
    reserved_bytes: int = 0
    """Free, and kept from this process by the file system (f_bfree less f_bavail)."""


@runtime_checkable
class DiskFile(Protocol):
    """An open file. Every method raises `DiskError`; after a failed write or sync the file is
    poisoned and every later call on it raises, because the kernel may have dropped the data."""

    def write(self, buffers: Sequence[Buffer], offset: int) -> None:
        """Write all buffers one after another at `offset`, whole, retrying short writes.

        On a direct file the offset and each buffer's address and length must be multiples of
        `DISK_ALIGNMENT`. The bytes are durable only after `sync`.
        """

    def read(self, buffers: Sequence[Buffer], offset: int) -> int:
        """Fill the buffers from `offset`; returns the bytes read, fewer only at the end of file."""

    def sync(self) -> None:
        """Make the file's bytes and size durable (not its name: see `Disk.sync_directory`)."""

    def size(self) -> int:
        """Length in bytes."""

    def close(self) -> None:
        """Close; idempotent. Closing makes nothing durable."""


@runtime_checkable
class DiskLock(Protocol):
    """A lock that the kernel releases when its holder dies."""

    def release(self) -> None:
        """Give it up; idempotent."""


@runtime_checkable
class Disk(Protocol):
    """A directory tree. Every method raises `DiskError` unless it says otherwise."""

    def open(self, name: str, mode: str, *, direct: bool = False) -> DiskFile:
        """Open a file: mode "r" reads, "x" creates (an existing name is an error), "a" opens or
        creates for reading and writing without truncating. `direct` asks for O_DIRECT; a file
        system without it gets buffered writes and one warning."""

    def list(self, name: str) -> Sequence[str]:
        """Names in a directory, sorted. A directory that does not exist is empty."""

    def make_directory(self, name: str) -> None:
        """Make a directory (its parents exist); one that exists is left as it is."""

    def rename(self, source: str, target: str) -> None:
        """Rename, replacing the target; durable after both directories are synced."""

    def remove(self, name: str) -> None:
        """Remove a file; durable after its directory is synced."""

    def sync_directory(self, name: str) -> None:
        """Make the names in a directory durable ("" is the root)."""

    def usage(self) -> DiskUsage:
        """Capacity and free space."""

    def lock(self, name: str, *, shared: bool = False) -> DiskLock:
        """Take the lock on a file (made if missing), without waiting. Raises `LockHeldError`."""
