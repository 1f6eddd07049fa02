"""Files and locks of a `SimulatedDisk`."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from typing_extensions import Buffer

from snapd.disk.machine import SimulatedCrash, failure
from snapd.disk.medium import Inode
from snapd.disk.port import DISK_ALIGNMENT
from snapd.disk.transfer import read_whole, write_whole
from snapd.errors import DiskError

if TYPE_CHECKING:
    from snapd.disk.simulated import SimulatedDisk


class SimulatedFile:
    """An open file of a `SimulatedDisk`. Each system call is an operation: one for a read or a
    write, unless it stops short and has to be gone on with."""

    def __init__(
        self,
        disk: SimulatedDisk,
        inode: Inode,
        path: str,
        *,
        writable: bool,
        direct: bool,
    ) -> None:
        self._disk = disk
        self._inode = inode
        self._path = path
        self._writable = writable
        self._life = disk._life
        self._poison: str | None = None
        self._closed = False
        self.direct = direct
        disk.open_files += 1

    def write(self, buffers: Sequence[Buffer], offset: int) -> None:
        """Write all buffers at `offset`; a failure leaves a seeded part of them behind."""
        self._check()
        if not self._writable:
            raise DiskError(f"{self._path} is open for reading", errno.EBADF)
        self._check_alignment(buffers, offset)
        try:
            write_whole(self._pwritev, buffers, offset, direct=self.direct)
        except OSError as error:
            raise self._poisoned(_told("write", self._path, error)) from error
        except DiskError as error:
            raise self._poisoned(error) from None

    def read(self, buffers: Sequence[Buffer], offset: int) -> int:
        """Fill the buffers from `offset`."""
        self._check()
        self._check_alignment(buffers, offset)
        try:
            done = read_whole(self._preadv, buffers, offset, direct=self.direct, size=self.size)
        except OSError as error:
            raise _told("read", self._path, error) from error
        self._disk.bytes_read += done
        return done

    def sync(self) -> None:
        """Make what was written durable; after a failure it never becomes so."""
        self._check()
        with self._disk._operation("sync", self._path) as (operation, effect):
            if effect.code:
                self._inode.drop()
                raise self._poisoned(failure(operation, effect.code))
            if not effect.lie:
                self._inode.sync()

    def size(self) -> int:
        """Length in bytes."""
        self._check()
        with self._disk._operation("size", self._path):
            return len(self._inode.cached)

    def close(self) -> None:
        """Close; idempotent."""
        if not self._closed and self._life == self._disk._life:
            self._disk.open_files -= 1
        self._closed = True

    def _pwritev(self, group: list[memoryview], offset: int) -> int:
        data = b"".join(group)
        with self._disk._operation("write", self._path) as (operation, effect):
            kept = 0 if self._disk.copies_on_write else len(self._inode.cached) - offset
            code = effect.code or self._disk.refusal_of(len(data) - min(len(data), max(0, kept)))
            if code:
                data = data[: self._disk._random.randint(0, len(data))]
            elif effect.short_bytes is not None:
                data = data[: effect.short_bytes]
            inode = self._inode
            if effect.misdirect is not None:
                name, offset = effect.misdirect
                inode = self._disk.inode_of(name)
            if not effect.lie:
                inode.write(data, offset)
                self._disk.bytes_written += len(data)
            if code:
                raise failure(operation, code)
        return len(data)

    def _preadv(self, group: list[memoryview], offset: int) -> int:
        with self._disk._operation("read", self._path) as (_, effect):
            wanted = sum(view.nbytes for view in group)
            if effect.short_bytes is not None:
                wanted = min(wanted, effect.short_bytes)
            data = self._inode.cached[offset : offset + wanted]
            if effect.flip_bit is not None:
                flip_bit(data, effect.flip_bit)
        done = 0
        for view in group:
            piece = data[done : done + view.nbytes]
            view[: len(piece)] = piece
            done += len(piece)
        return done

    def _check(self) -> None:
        if self._disk._down or self._life != self._disk._life:
            raise SimulatedCrash
        if self._closed:
            raise DiskError(f"{self._path} is closed", errno.EBADF)
        if self._poison is not None:
            raise DiskError(f"{self._path} is given up: {self._poison}", errno.EIO)

    def _check_alignment(self, buffers: Sequence[Buffer], offset: int) -> None:
        if not self.direct:
            return
        views = [memoryview(buffer).cast("B") for buffer in buffers]
        addresses = (np.frombuffer(view, np.uint8).ctypes.data for view in views if view.nbytes)
        numbers = [offset, *(view.nbytes for view in views), *addresses]
        if any(number % DISK_ALIGNMENT for number in numbers):
            raise DiskError(f"unaligned direct I/O on {self._path}", errno.EINVAL)

    def _poisoned(self, error: DiskError) -> DiskError:
        self._poison = str(error)
        return error


class SimulatedLock:
    """A held lock of a `SimulatedDisk`."""

    def __init__(self, held: list[SimulatedLock], *, shared: bool) -> None:
        self._held = held
        self.shared = shared

    def release(self) -> None:
        """Give it up; idempotent."""
        if self in self._held:
            self._held.remove(self)


def flip_bit(data: bytearray, bit: int) -> None:
    """Turn one bit, counted round the end; nothing to turn in no bytes."""
    if data:
        at, place = divmod(bit % (8 * len(data)), 8)
        data[at] ^= 1 << place


def _told(kind: str, path: str, error: OSError) -> DiskError:
    code = error.errno or 0
    return DiskError(f"cannot {kind} {path}: {error.strerror or os.strerror(code)}", code)
