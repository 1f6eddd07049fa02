"""`SimulatedDisk`: a disk in memory that forgets, at a crash, whatever was not synced.

The model is harsher than any one file system and allows everything that POSIX does not forbid:

- Each 512-byte or 4-KiB piece of an unsynced write survives a crash or does not, on its own, so
  writes are torn and reordered. The length of the file ends anywhere between what was synced and
  what was written.
- Each unsynced creation, rename and removal of a name survives or does not, on its own. The target
  of a rename is always the old file or the new one; the source may be back even so.
- Data that was there when a sync failed is not made durable by a later sync that succeeds.

Beyond what a good medium may do, it can be asked for what a bad one does: lose or misdirect a
write, report a sync that did not happen, flip bits, lose names, or put pages in wrong places.

Everything follows from the seed and the sequence of calls. Every call has a number, so that a test
can crash before or after each, make it fail, or `fork` the disk there and try many endings.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Sequence

from snapd.disk.machine import Effect, Fault, Machine, Operation, Side, SimulatedCrash, failure
from snapd.disk.medium import (
    DIRECTORY,
    KEEPS_ALL,
    KEEPS_DATA,
    KEEPS_NAMES,
    KEEPS_NAMES_AND_SIZES,
    LOSES_ALL,
    Inode,
    Loss,
    NameTable,
)
from snapd.disk.names import split_name
from snapd.disk.port import DiskUsage
from snapd.disk.simulated_file import SimulatedFile, SimulatedLock, flip_bit
from snapd.errors import DiskError, LockHeldError

__all__ = [
    "KEEPS_ALL",
    "KEEPS_DATA",
    "KEEPS_NAMES",
    "KEEPS_NAMES_AND_SIZES",
    "LOSES_ALL",
    "Effect",
    "Fault",
    "Loss",
    "Operation",
    "Side",
    "SimulatedCrash",
    "SimulatedDisk",
    "SimulatedFile",
    "SimulatedLock",
]

_MEDIUM_DIGEST_BYTES = 16


class SimulatedDisk(Machine):
    """A `Disk` in memory. `seed` decides what a crash leaves behind.

    Beyond `capacity_bytes` a write fails with ENOSPC, beyond `quota_bytes` with EDQUOT.
    """

    def __init__(
        self, seed: int = 0, *, capacity_bytes: int = 1 << 40, quota_bytes: int | None = None
    ) -> None:
        super().__init__(seed)
        self.capacity_bytes = capacity_bytes
        self.quota_bytes = quota_bytes
        self.copies_on_write = False
        """Whether overwriting takes new room, as on btrfs and ZFS."""
        self.bytes_read = 0
        self.bytes_written = 0
        self.open_files = 0
        """Files that were opened and not closed in this life of the machine."""
        self._names = NameTable()
        self._locks: dict[str, list[SimulatedLock]] = {}

    # --- the port -----------------------------------------------------------------------------

    def open(self, name: str, mode: str, *, direct: bool = False) -> SimulatedFile:
        """Open a file, see `Disk.open`."""
        path = self._path(name)
        creates = mode != "r" and path not in self._names.seen
        with self._operation("create" if creates else "open", path):
            inode = self._names.seen.get(path)
            if inode is DIRECTORY:
                raise DiskError(f"{path} is a directory", errno.EISDIR)
            if mode == "x" and inode is not None:
                raise DiskError(f"{path} exists", errno.EEXIST)
            if inode is None and mode == "r":
                raise DiskError(f"{path} does not exist", errno.ENOENT)
            inode = inode or self.inode_of(path)
        return SimulatedFile(self, inode, path, writable=mode != "r", direct=direct)

    def list(self, name: str) -> Sequence[str]:
        """Names in a directory, sorted."""
        path = "/".join(split_name(name))
        with self._operation("list", path):
            return self._names_in(path)

    def make_directory(self, name: str) -> None:
        """Make a directory unless it is there."""
        path = self._path(name)
        with self._operation("mkdir", path):
            found = self._names.seen.get(path)
            if found is None:
                self._names.change(None, path, DIRECTORY)
            elif found is not DIRECTORY:
                raise DiskError(f"{path} is a file", errno.ENOTDIR)

    def rename(self, source: str, target: str) -> None:
        """Rename a file, replacing the target."""
        old, new = self._path(source), self._path(target)
        with self._operation("rename", f"{old} -> {new}"):
            inode = self._file(old)
            if self._names.seen.get(new) is DIRECTORY:
                raise DiskError(f"{new} is a directory", errno.EISDIR)
            self._names.change(old, new, inode)

    def remove(self, name: str) -> None:
        """Remove a file."""
        path = self._path(name)
        with self._operation("remove", path):
            self._names.change(path, None, self._file(path))

    def sync_directory(self, name: str) -> None:
        """Make the names in a directory durable."""
        path = "/".join(split_name(name))
        with self._operation("syncdir", path) as (_, effect):
            if path and self._names.seen.get(path) is not DIRECTORY:
                raise DiskError(f"{path} does not exist", errno.ENOENT)
            if not effect.lie:
                self._names.sync(path)

    def usage(self) -> DiskUsage:
        """Capacity, and what is free of it."""
        with self._operation("usage", ""):
            return DiskUsage(self.capacity_bytes, max(0, self.capacity_bytes - self._used()))

    def lock(self, name: str, *, shared: bool = False) -> SimulatedLock:
        """Lock a name, whose file is made if it is missing; a crash releases it."""
        path = self._path(name)
        with self._operation("lock", path) as (operation, _):
            if self.is_read_only and not (shared and path in self._names.seen):
                raise failure(operation, errno.EROFS)
            held = self._locks.setdefault(path, [])
            if any(not (shared and other.shared) for other in held):
                raise LockHeldError(f"{path} is locked by another process: stop it first")
            self.inode_of(path)
            lock = SimulatedLock(held, shared=shared)
            held.append(lock)
            return lock

    # --- power --------------------------------------------------------------------------------

    def crash(self, loss: Loss | None = None, *, flips: int = 0) -> None:
        """Lose power and come back: of everything unsynced, what `loss` leaves survives (by
        default a seeded choice). `flips` bits of what is there then are wrong.

        Files and locks from before are dead. Crash points and faults are taken away.
        """
        with self._mutex:
            self._names.lose(loss or Loss.drawn(self._random), self._random)
            self._locks.clear()
            self.open_files = 0
            self._restart()
            filled = sorted(path for path, one in self._names.seen.items() if one.cached)
            for _ in range(flips if filled else 0):
                self.flip(self._random.choice(filled), self._random.getrandbits(40))

    def fork(self, seed: int) -> SimulatedDisk:
        """Another disk with the same past, unsynced writes and names included, whose chance comes
        from `seed`. Nobody has anything open there. Crash it to see one of the endings."""
        with self._mutex:
            other = SimulatedDisk(
                seed, capacity_bytes=self.capacity_bytes, quota_bytes=self.quota_bytes
            )
            other._names = self._names.copy()
            return other

    def clone(self, seed: int) -> SimulatedDisk:
        """A copy of what is seen now, synced, with its own seed."""
        other = self.fork(seed)
        for inode in other._names.files():
            inode.replace(bytes(inode.cached))
        other._names.settle()
        return other

    # --- the medium, for a test ---------------------------------------------------------------

    def contents(self, name: str) -> bytes:
        """The bytes of a file."""
        return bytes(self._file(self._path(name)).cached)

    def files(self) -> dict[str, bytes]:
        """Every file's bytes by name, sorted."""
        return {
            path: bytes(inode.cached)
            for path, inode in sorted(self._names.seen.items())
            if inode is not DIRECTORY
        }

    def medium_digest(self) -> bytes:
        """16 bytes that stand for all names and bytes that are seen: equal disks, equal digests."""
        digest = hashlib.blake2b(digest_size=_MEDIUM_DIGEST_BYTES)
        for path, inode in sorted(self._names.seen.items()):
            kind = b"/" if inode is DIRECTORY else len(inode.cached).to_bytes(8, "little")
            digest.update(path.encode() + b"\0" + kind)
            digest.update(inode.cached)
        return digest.digest()

    def replace_contents(self, name: str, data: bytes) -> None:
        """Put other bytes into a file, durably, as a failing medium would."""
        self._file(self._path(name)).replace(data)

    def flip(self, name: str, bit: int) -> None:
        """Turn one bit of a file on the medium; bits are counted round the file's end."""
        data = bytearray(self.contents(name))
        flip_bit(data, bit)
        self.replace_contents(name, bytes(data))

    def vanish(self, name: str) -> None:
        """Lose a durable name, as a damaged directory does."""
        self._file(self._path(name))
        del self._names.seen[self._path(name)]
        self._names.settle()

    # --- for files ----------------------------------------------------------------------------

    def inode_of(self, name: str) -> Inode:
        """The file of this name, made if it is missing."""
        path = self._path(name)
        if path not in self._names.seen:
            self._names.change(None, path, Inode())
        return self._file(path)

    def refusal_of(self, length: int) -> int:
        """0, or the errno with which a write of so many bytes fails."""
        used = self._used() + length
        if self.quota_bytes is not None and used > self.quota_bytes:
            return errno.EDQUOT
        return errno.ENOSPC if used > self.capacity_bytes else 0

    # --- inside -------------------------------------------------------------------------------

    def _used(self) -> int:
        return sum(len(inode.cached) for inode in self._names.seen.values())

    def _names_in(self, path: str) -> Sequence[str]:
        start = f"{path}/" if path else ""
        below = (one[len(start) :] for one in self._names.seen if one.startswith(start))
        return sorted(one for one in below if "/" not in one)

    def _path(self, name: str) -> str:
        parts = split_name(name)
        if not parts:
            raise DiskError("the root is not a file", errno.EINVAL)
        path = "/".join(parts)
        parent = "/".join(parts[:-1])
        if parent and self._names.seen.get(parent) is not DIRECTORY:
            raise DiskError(f"{parent} does not exist", errno.ENOENT)
        return path

    def _file(self, path: str) -> Inode:
        inode = self._names.seen.get(path)
        if inode is None or inode is DIRECTORY:
            raise DiskError(f"{path} does not exist", errno.ENOENT)
        return inode
