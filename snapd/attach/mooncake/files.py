"""`SegmentFile`: a file in shared memory that a store service mounts and that is ours.

    data area, a multiple of the page size, mounted from offset 0 | trailer, never mounted

A file serves one incarnation of a segment: it is made, mounted once, read from, and removed. It is
allocated in full when it is made, so a full /dev/shm is an error here and never a SIGBUS in the
store. Its maker holds a lock on it that the kernel gives up when the process is gone, so that no
other daemon takes it over or removes it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import re
import secrets
import stat

import numpy as np

from snapd.attach.mooncake.record import HALF_BYTES as _HALF_BYTES
from snapd.attach.mooncake.record import (
    TRAILER_BYTES,
    SegmentRecord,
    decode_trailer,
    encode_half,
)
from snapd.blocks.keys import U8
from snapd.errors import CorruptError, LockHeldError, SegmentError
from snapd.segment.locks import try_lock

SHARED_MEMORY = "/dev/shm"  # noqa: S108 - a store service mounts files of this directory only
PAGE_BYTES = mmap.PAGESIZE
_ALLOCATE_BYTES = 256 << 20
_LOCK_BYTE = 1 << 62
"""Far behind every file's end: a lock needs no byte there."""
_KEEP_SIZE, _PUNCH_HOLE = 1, 2
_STEM = re.compile(r"[^/\0]{1,200}")
_LEAF = re.compile(r"\.[0-9a-f]{16}\.mooncake")

_libc = ctypes.CDLL(None, use_errno=True)
_fallocate = _libc.fallocate
_fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


class SegmentFile:
    """An open file, locked and mapped. Reads are safe from several threads; all else is not."""

    def __init__(self, path: str, descriptor: int, size_bytes: int) -> None:
        """Use `create_segment_file` or `open_segment_file`. Owns `descriptor` from here on.

        Raises SegmentError if it cannot be mapped, CorruptError or NewerFormatError if its trailer
        cannot be read.
        """
        self.path = path
        self.name = os.path.basename(path)
        """What a store service is asked to mount."""
        self.size_bytes = size_bytes
        """Of the data area: what may be mounted."""
        self._descriptor = descriptor
        self.record, self._sequence = decode_trailer(
            os.pread(descriptor, TRAILER_BYTES, size_bytes)
        )
        try:
            self._memory = mmap.mmap(descriptor, size_bytes, prot=mmap.PROT_READ)
        except (OSError, ValueError, OverflowError) as error:
            raise SegmentError(f"cannot map {path} of {size_bytes} bytes: {error}") from error
        self.data: U8 = np.frombuffer(self._memory, np.uint8)
        """The data area, uint8 [size_bytes], read-only: only the store and its clients write it."""

    def write_record(self, record: SegmentRecord) -> None:
        """Replace the record. Killed in the middle, the file has the one before.

        Raises SegmentError if the record is too large or cannot be written.
        """
        sequence = self._sequence + 1
        try:
            half = encode_half(record, sequence)
            # The newest whole record is in the other half and stays as it is until this one is
            # whole, which its checksum says. Both are memory: there is nothing to sync.
            at = self.size_bytes + _HALF_BYTES * (sequence % 2)
            if os.pwrite(self._descriptor, half, at) != len(half):
                raise SegmentError(f"cannot write the trailer of {self.path}: it was cut short")
        except (OSError, ValueError) as error:
            raise SegmentError(f"cannot write the trailer of {self.path}: {error}") from error
        self.record, self._sequence = record, sequence

    def punch(self, offset: int, length: int) -> None:
        """Give back the memory of the whole pages inside these bytes of the data area.

        Only for a file that no store has mounted any more, and for bytes that nobody reads again:
        tmpfs puts memory behind a hole that is read through a mapping, and a full one answers with
        SIGBUS.

        Raises SegmentError, also when the bytes are not all in the data area.
        """
        if offset < 0 or length < 0 or offset + length > self.size_bytes:
            raise SegmentError(f"{self.path} has no bytes {offset} to {offset + length}")
        first = -(-offset // PAGE_BYTES) * PAGE_BYTES
        last = (offset + length) // PAGE_BYTES * PAGE_BYTES
        mode = _KEEP_SIZE | _PUNCH_HOLE
        if last > first and _fallocate(self._descriptor, mode, first, last - first) != 0:
            number = ctypes.get_errno()
            raise SegmentError(f"cannot punch a hole into {self.path}: {os.strerror(number)}")

    def allocated_bytes(self) -> int:
        """Memory that the file takes now."""
        return os.fstat(self._descriptor).st_blocks * 512

    def unlink(self) -> None:
        """Remove the name; the memory goes with the last mapping, a store's too. Idempotent."""
        with contextlib.suppress(FileNotFoundError):
            # A file of this name that is not this one was not made by us.
            if os.path.samestat(os.stat(self.path), os.fstat(self._descriptor)):
                os.unlink(self.path)

    def close(self) -> None:
        """Give up lock and mapping; the mapping goes when nobody holds a view. Idempotent."""
        if self._descriptor < 0:
            return
        os.close(self._descriptor)
        self._descriptor = -1
        self.__dict__.pop("data", None)
        with contextlib.suppress(BufferError):
            self._memory.close()


def create_segment_file(stem: str, size_bytes: int, *, group_shared: bool) -> SegmentFile:
    """A new file `<stem>.<16 hex digits>.mooncake`, allocated in full and without a record.

    `size_bytes` is rounded up to whole pages. Raises SegmentError that says what /dev/shm has and
    needs. A process that is killed here leaves a file without a record, which nothing is ever read
    from and the next start removes.
    """
    if not _STEM.fullmatch(stem):
        raise SegmentError(f"{stem!r} cannot begin the name of a file: set another segment_path")
    size_bytes = -(-max(size_bytes, 1) // PAGE_BYTES) * PAGE_BYTES
    path = f"{SHARED_MEMORY}/{stem}.{secrets.token_hex(8)}.mooncake"
    _check_room(size_bytes + TRAILER_BYTES)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        raise SegmentError(f"cannot make {path}: {error.strerror}") from error
    try:
        try_lock(descriptor, _LOCK_BYTE)
        if group_shared:
            os.fchmod(descriptor, 0o660)
        _allocate(descriptor, size_bytes + TRAILER_BYTES)
        return SegmentFile(path, descriptor, size_bytes)
    except OSError as error:
        os.unlink(path)
        os.close(descriptor)
        raise _no_room(size_bytes + TRAILER_BYTES, error.strerror) from error
    except SegmentError:
        os.unlink(path)
        os.close(descriptor)
        raise


def open_segment_file(path: str) -> SegmentFile:
    """A file that an earlier process left, to read from or to go on with.

    Raises CorruptError if it is not one of ours or its trailer is damaged, NewerFormatError if a
    later version wrote it, LockHeldError if another process has it, SegmentError if it cannot be
    opened or mapped. It is left as it is then.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise CorruptError(f"{path} is not a regular file; remove it") from error
        raise SegmentError(f"cannot open {path}: {error.strerror}") from error
    try:
        found = os.fstat(descriptor)
        size_bytes = found.st_size - TRAILER_BYTES
        if not stat.S_ISREG(found.st_mode):
            raise CorruptError(f"{path} is not a regular file; remove it")
        if found.st_uid != os.geteuid():
            # Anybody may make files in /dev/shm, with whatever record.
            raise CorruptError(f"{path} belongs to user {found.st_uid}; it is left alone")
        if size_bytes <= 0 or size_bytes % PAGE_BYTES:
            raise CorruptError(f"{path} has {found.st_size} bytes, which no segment file has")
        if not try_lock(descriptor, _LOCK_BYTE):
            raise LockHeldError(f"another daemon has {path}: give each its own segment_path")
        return SegmentFile(path, descriptor, size_bytes)
    except CorruptError as error:
        os.close(descriptor)
        raise CorruptError(f"{path}: {error}") if path not in str(error) else error from None
    except BaseException:
        os.close(descriptor)
        raise


def leftover_files(stem: str) -> list[str]:
    """Paths of the files in shared memory that have this stem, sorted. Nothing is opened."""
    return sorted(
        f"{SHARED_MEMORY}/{name}"
        for name in os.listdir(SHARED_MEMORY)
        if name.startswith(stem) and _LEAF.fullmatch(name, len(stem))
    )


def free_bytes() -> int:
    """Bytes that shared memory has free."""
    status = os.statvfs(SHARED_MEMORY)
    return status.f_bavail * status.f_frsize


def _check_room(file_bytes: int) -> None:
    # statvfs only tells what was not promised yet; the allocation is what counts.
    if free_bytes() < file_bytes:
        raise _no_room(file_bytes, "it is too small")


def _no_room(file_bytes: int, why: str | None) -> SegmentError:
    return SegmentError(
        f"{SHARED_MEMORY} has {free_bytes()} bytes free, a segment file needs {file_bytes} "
        f"({why}): enlarge it (mount -o remount,size=..., or an emptyDir with medium Memory and a "
        f"larger sizeLimit), or set global_segment_size lower"
    )


def _allocate(descriptor: int, length: int) -> None:
    """Put memory behind every byte. In pieces, each of which a signal can end."""
    os.ftruncate(descriptor, length)
    for offset in range(0, length, _ALLOCATE_BYTES):
        os.posix_fallocate(descriptor, offset, min(_ALLOCATE_BYTES, length - offset))
