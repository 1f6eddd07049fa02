"""`SimulatedDisk`: a disk in memory that forgets, at a crash, whatever was not synced.

The model is harsher than any one file system and allows everything that POSIX does not forbid:

- Each 512-byte or 4-KiB piece of an unsynced write survives a crash or does not, on its own, so
  writes are torn and reordered. The length of the file ends anywhere between what was synced and
  what was written.
- Each unsynced creation, rename and removal of a name survives or does not, on its own; a rename
  is one step, so that its target is always the old file or the new one.
- Data that was there when a sync failed is not made durable by a later sync that succeeds.

Everything follows from the seed and the sequence of calls. Every call has a number, so that a test
can crash before or after each, or make it fail.
"""

from __future__ import annotations

import errno
import os
import random
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from typing_extensions import Buffer

from snapd.disk.names import split_name
from snapd.disk.port import DISK_ALIGNMENT, DiskUsage
from snapd.errors import DiskError, LockHeldError

GRANULARITIES_BYTES = (512, 4096)
"""Pieces in which unsynced writes survive or not; one is drawn for each crash."""

MUTATIONS = frozenset({"create", "write", "sync", "rename", "remove", "mkdir", "syncdir"})
"""Kinds of operation that change the disk, or what a crash leaves of it."""


class SimulatedCrash(BaseException):
    """The machine stopped. Not an `Exception`: no handler of the code under test may catch it.

    Every later call raises it too, until `SimulatedDisk.crash` has brought the machine back.
    """


@dataclass(frozen=True, slots=True)
class Operation:
    """One call on the disk. `kind`: create, open, read, write, sync, rename, remove, mkdir,
    syncdir, list, lock."""

    number: int
    kind: str
    name: str


Fault = Callable[[Operation], int]
"""Asked before each operation: 0 lets it run, an errno makes it fail."""


@dataclass(slots=True, eq=False)
class _Inode:
    """A file's contents: as the page cache shows them, and as the medium holds them."""

    cached: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, bytes]] = field(default_factory=list)
    """Writes since the last sync."""
    doomed: list[tuple[int, bytes]] = field(default_factory=list)
    """Writes that a failed sync has dropped: on the medium by luck only."""


_DIRECTORY = _Inode()
"""Stands for every directory in the table of names."""


@dataclass(slots=True, eq=False)
class _NameChange:
    """A change of names that is not durable until every directory in `unsynced` was synced."""

    unlinked: str | None
    linked: str | None
    inode: _Inode
    unsynced: set[str]

    def apply(self, names: dict[str, _Inode]) -> None:
        if self.unlinked is not None and names.get(self.unlinked) is self.inode:
            del names[self.unlinked]
        if self.linked is not None:
            names[self.linked] = self.inode


class SimulatedDisk:
    """A `Disk` in memory. `seed` decides what a crash leaves behind."""

    def __init__(self, seed: int = 0, *, capacity_bytes: int = 1 << 40) -> None:
        self.seed = seed
        self.capacity_bytes = capacity_bytes
        self.operations: list[Operation] = []
        """Every operation so far, in order; `operations[n].number` is n."""
        self.counts: Counter[str] = Counter()
        """Operations so far, by kind."""
        self.bytes_read = 0
        self.bytes_written = 0
        self.fault: Fault | None = None
        self.crash_before: int | None = None
        """Number of the operation before which the machine stops."""
        self.crash_after: int | None = None
        """Number of the operation after which it stops."""
        self._random = random.Random(seed)
        self._names: dict[str, _Inode] = {}
        self._durable_names: dict[str, _Inode] = {}
        self._changes: list[_NameChange] = []
        self._locks: dict[str, list[SimulatedLock]] = {}
        self._down = False
        self._life = 0
        self._mutex = threading.RLock()

    # --- the port -----------------------------------------------------------------------------

    def open(self, name: str, mode: str, *, direct: bool = False) -> SimulatedFile:
        """Open a file, see `Disk.open`."""
        path = self._path(name)
        with self._mutex:
            creates = mode != "r" and path not in self._names
            with self._operation("create" if creates else "open", path):
                inode = self._names.get(path)
                if inode is _DIRECTORY:
                    raise DiskError(f"{path} is a directory", errno.EISDIR)
                if mode == "x" and inode is not None:
                    raise DiskError(f"{path} exists", errno.EEXIST)
                if inode is None:
                    if mode == "r":
                        raise DiskError(f"{path} does not exist", errno.ENOENT)
                    inode = _Inode()
                    self._change(None, path, inode)
                return SimulatedFile(
                    self, inode, path, writable=mode != "r", direct=direct, life=self._life
                )

    def list(self, name: str) -> Sequence[str]:
        """Names in a directory, sorted."""
        path = "/".join(split_name(name))
        with self._mutex, self._operation("list", path):
            start = f"{path}/" if path else ""
            below = (one[len(start) :] for one in self._names if one.startswith(start))
            return sorted(one for one in below if "/" not in one)

    def make_directory(self, name: str) -> None:
        """Make a directory unless it is there."""
        path = self._path(name)
        with self._mutex, self._operation("mkdir", path):
            found = self._names.get(path)
            if found is None:
                self._change(None, path, _DIRECTORY)
            elif found is not _DIRECTORY:
                raise DiskError(f"{path} is a file", errno.ENOTDIR)

    def rename(self, source: str, target: str) -> None:
        """Rename a file, replacing the target."""
        old, new = self._path(source), self._path(target)
        with self._mutex, self._operation("rename", f"{old} -> {new}"):
            inode = self._file(old)
            if self._names.get(new) is _DIRECTORY:
                raise DiskError(f"{new} is a directory", errno.EISDIR)
            self._change(old, new, inode)

    def remove(self, name: str) -> None:
        """Remove a file."""
        path = self._path(name)
        with self._mutex, self._operation("remove", path):
            self._change(path, None, self._file(path))

    def sync_directory(self, name: str) -> None:
        """Make the names in a directory durable."""
        path = "/".join(split_name(name))
        with self._mutex, self._operation("syncdir", path):
            if path and self._names.get(path) is not _DIRECTORY:
                raise DiskError(f"{path} does not exist", errno.ENOENT)
            for change in self._changes:
                change.unsynced.discard(path)
            # Only a prefix can be folded in: a later change may overwrite an earlier doubtful one.
            while self._changes and not self._changes[0].unsynced:
                self._changes.pop(0).apply(self._durable_names)

    def usage(self) -> DiskUsage:
        """Capacity, and what is free of it."""
        with self._mutex:
            used = sum(len(inode.cached) for inode in self._names.values())
            return DiskUsage(self.capacity_bytes, max(0, self.capacity_bytes - used))

    def lock(self, name: str, *, shared: bool = False) -> SimulatedLock:
        """Lock a name; a crash releases it."""
        path = self._path(name)
        with self._mutex, self._operation("lock", path):
            held = self._locks.setdefault(path, [])
            if any(not (shared and other.shared) for other in held):
                raise LockHeldError(f"{path} is locked by another process: stop it first")
            lock = SimulatedLock(held, shared=shared)
            held.append(lock)
            return lock

    # --- faults -------------------------------------------------------------------------------

    def crash(self) -> None:
        """Lose power and come back: a seeded choice of everything unsynced is lost.

        Files and locks from before are dead. Crash points and faults are taken away.
        """
        with self._mutex:
            granularity = self._random.choice(GRANULARITIES_BYTES)
            share = self._random.choice((0.0, 0.1, 0.5, 0.9, 1.0))
            names = dict(self._durable_names)
            for change in self._changes:
                if not change.unsynced or self._random.random() < share:
                    change.apply(names)
            names = {path: inode for path, inode in names.items() if _parents_exist(path, names)}
            for inode in {id(inode): inode for inode in names.values()}.values():
                if inode is not _DIRECTORY:
                    self._lose_unsynced(inode, granularity, share)
            self._names, self._durable_names = names, dict(names)
            self._changes.clear()
            self._locks.clear()
            self._down, self._life = False, self._life + 1
            self.fault = self.crash_before = self.crash_after = None

    def fail(self, number: int, code: int = errno.EIO) -> None:
        """Make the operation of this number fail with an errno."""
        self.fault = lambda operation: code if operation.number == number else 0

    def fail_kind(self, kind: str, nth: int = 0, code: int = errno.EIO) -> None:
        """Make the nth operation of this kind from now on (0 is the next) fail with an errno."""
        target = self.counts[kind] + nth

        def fault(operation: Operation) -> int:
            hit = operation.kind == kind and self.counts[kind] - 1 == target
            return code if hit else 0

        self.fault = fault

    def contents(self, name: str) -> bytes:
        """The bytes of a file, for a test."""
        return bytes(self._file(self._path(name)).cached)

    def replace_contents(self, name: str, data: bytes) -> None:
        """Put other bytes into a file, durably, as a failing medium would."""
        inode = self._file(self._path(name))
        inode.cached, inode.durable = bytearray(data), bytearray(data)
        inode.pending.clear()
        inode.doomed.clear()

    def clone(self, seed: int) -> SimulatedDisk:
        """A copy of what is on the medium now, synced, with its own seed."""
        other = SimulatedDisk(seed, capacity_bytes=self.capacity_bytes)
        for path, inode in self._names.items():
            if inode is _DIRECTORY:
                other._names[path] = _DIRECTORY
            else:
                other._names[path] = _Inode(bytearray(inode.cached), bytearray(inode.cached))
        other._durable_names = dict(other._names)
        return other

    # --- inside -------------------------------------------------------------------------------

    def _operation(self, kind: str, name: str) -> _Running:
        if self._down:
            raise SimulatedCrash
        operation = Operation(len(self.operations), kind, name)
        if self.crash_before == operation.number:
            self._down = True
            raise SimulatedCrash
        self.operations.append(operation)
        self.counts[kind] += 1
        return _Running(self, operation)

    def _fault_of(self, operation: Operation) -> int:
        return self.fault(operation) if self.fault is not None else 0

    def _path(self, name: str) -> str:
        parts = split_name(name)
        if not parts:
            raise DiskError("the root is not a file", errno.EINVAL)
        path = "/".join(parts)
        parent = "/".join(parts[:-1])
        if parent and self._names.get(parent) is not _DIRECTORY:
            raise DiskError(f"{parent} does not exist", errno.ENOENT)
        return path

    def _file(self, path: str) -> _Inode:
        inode = self._names.get(path)
        if inode is None or inode is _DIRECTORY:
            raise DiskError(f"{path} does not exist", errno.ENOENT)
        return inode

    def _change(self, unlinked: str | None, linked: str | None, inode: _Inode) -> None:
        parents = {path.rpartition("/")[0] for path in (unlinked, linked) if path is not None}
        change = _NameChange(unlinked, linked, inode, parents)
        change.apply(self._names)
        self._changes.append(change)

    def _lose_unsynced(self, inode: _Inode, granularity: int, share: float) -> None:
        kept = bytearray(inode.durable)
        longest = max([len(kept), *(at + len(data) for at, data in inode.doomed + inode.pending)])
        for at, data in inode.doomed + inode.pending:
            first = at
            while first < at + len(data):
                last = min((first // granularity + 1) * granularity, at + len(data))
                if self._random.random() < share:
                    kept.extend(bytes(max(0, last - len(kept))))
                    kept[first:last] = data[first - at : last - at]
                first = last
        if longest > len(inode.durable):
            length = self._random.choice(
                (len(kept), longest, self._random.randint(len(inode.durable), longest))
            )
            kept = kept[:length].ljust(length, b"\0")
        inode.cached, inode.durable = bytearray(kept), bytearray(kept)
        inode.pending.clear()
        inode.doomed.clear()


class _Running:
    """An operation while it runs: fails it on entry if asked to, crashes on exit if asked to."""

    def __init__(self, disk: SimulatedDisk, operation: Operation) -> None:
        self._disk = disk
        self.operation = operation

    def __enter__(self) -> None:
        code = self._disk._fault_of(self.operation)
        # Writes and syncs fail inside, because a failed one has effects of its own.
        if code and self.operation.kind not in {"write", "sync"}:
            raise _failure(self.operation, code)

    def __exit__(self, *exception: object) -> None:
        if self._disk.crash_after == self.operation.number:
            self._disk._down = True
            raise SimulatedCrash


class SimulatedFile:
    """An open file of a `SimulatedDisk`."""

    def __init__(
        self,
        disk: SimulatedDisk,
        inode: _Inode,
        path: str,
        *,
        writable: bool,
        direct: bool,
        life: int,
    ) -> None:
        self._disk = disk
        self._inode = inode
        self._path = path
        self._writable = writable
        self._life = life
        self._poison: str | None = None
        self._closed = False
        self.direct = direct

    def write(self, buffers: Sequence[Buffer], offset: int) -> None:
        """Write all buffers at `offset`; a failure leaves a seeded part of them behind."""
        views = [memoryview(buffer).cast("B") for buffer in buffers]
        with self._disk._mutex:
            self._check()
            if not self._writable:
                raise DiskError(f"{self._path} is open for reading", errno.EBADF)
            self._check_alignment(views, offset)
            data = b"".join(views)
            running = self._disk._operation("write", self._path)
            with running:
                code = self._disk._fault_of(running.operation)
                if not code and self._disk.usage().free_bytes < len(data):
                    code = errno.ENOSPC
                if code:
                    data = data[: self._disk._random.randint(0, len(data))]
                self._put(data, offset)
                if code:
                    raise self._poisoned(running.operation, code)

    def read(self, buffers: Sequence[Buffer], offset: int) -> int:
        """Fill the buffers from `offset`."""
        views = [memoryview(buffer).cast("B") for buffer in buffers]
        with self._disk._mutex:
            self._check()
            self._check_alignment(views, offset)
            done = 0
            with self._disk._operation("read", self._path):
                for view in views:
                    piece = bytes(self._inode.cached[offset + done : offset + done + view.nbytes])
                    view[: len(piece)] = piece
                    done += len(piece)
            self._disk.bytes_read += done
            return done

    def sync(self) -> None:
        """Make what was written durable; after a failure it never becomes so."""
        with self._disk._mutex:
            self._check()
            running = self._disk._operation("sync", self._path)
            with running:
                code = self._disk._fault_of(running.operation)
                if code:
                    self._inode.doomed += self._inode.pending
                    self._inode.pending.clear()
                    raise self._poisoned(running.operation, code)
                for offset, data in self._inode.pending:
                    _put(self._inode.durable, data, offset)
                self._inode.pending.clear()

    def size(self) -> int:
        """Length in bytes."""
        with self._disk._mutex:
            self._check()
            return len(self._inode.cached)

    def close(self) -> None:
        """Close; idempotent."""
        self._closed = True

    def _put(self, data: bytes, offset: int) -> None:
        if data:
            _put(self._inode.cached, data, offset)
            self._inode.pending.append((offset, data))
            self._disk.bytes_written += len(data)

    def _check(self) -> None:
        if self._disk._down or self._life != self._disk._life:
            raise SimulatedCrash
        if self._closed:
            raise DiskError(f"{self._path} is closed", errno.EBADF)
        if self._poison is not None:
            raise DiskError(f"{self._path} is given up: {self._poison}", errno.EIO)

    def _check_alignment(self, views: Sequence[memoryview], offset: int) -> None:
        if not self.direct:
            return
        addresses = (np.frombuffer(view, np.uint8).ctypes.data for view in views if view.nbytes)
        numbers = [offset, *(view.nbytes for view in views), *addresses]
        if any(number % DISK_ALIGNMENT for number in numbers):
            raise DiskError(f"unaligned direct I/O on {self._path}", errno.EINVAL)

    def _poisoned(self, operation: Operation, code: int) -> DiskError:
        failure = _failure(operation, code)
        self._poison = str(failure)
        return failure


class SimulatedLock:
    """A held lock of a `SimulatedDisk`."""

    def __init__(self, held: list[SimulatedLock], *, shared: bool) -> None:
        self._held = held
        self.shared = shared

    def release(self) -> None:
        """Give it up; idempotent."""
        if self in self._held:
            self._held.remove(self)


def _put(target: bytearray, data: bytes, offset: int) -> None:
    """Store `data` at `offset`, filling a gap before it with zeros."""
    if len(target) < offset:
        target.extend(bytes(offset - len(target)))
    target[offset : offset + len(data)] = data


def _parents_exist(path: str, names: dict[str, _Inode]) -> bool:
    parent = path.rpartition("/")[0]
    return not parent or (names.get(parent) is _DIRECTORY and _parents_exist(parent, names))


def _failure(operation: Operation, code: int) -> DiskError:
    text = f"cannot {operation.kind} {operation.name}: {os.strerror(code)}"
    return DiskError(text, code)
