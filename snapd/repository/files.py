"""Reading and writing whole sealed files through the disk port."""

from __future__ import annotations

import errno
import mmap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from typing_extensions import Buffer

from snapd.disk import Disk, DiskFile
from snapd.errors import CorruptError, DiskError
from snapd.formats.sealed import (
    PAGE_BYTES,
    FileHeader,
    FileTrailer,
    decode_header,
    decode_trailer,
    padded,
)
from snapd.repository.names import TEMPORARY

INDEX_BYTES_MAX = 1 << 31
"""Longest index that is read into memory."""


@dataclass(frozen=True, slots=True)
class SealedFile:
    """A sealed file of this repository whose trailer was verified, and its header as well unless
    `problem` says otherwise."""

    name: str
    trailer: FileTrailer
    file_bytes: int
    problem: str = ""
    """What is wrong with the header. It costs nothing: the trailer repeats every field of it."""

    @property
    def header(self) -> FileHeader:
        """Who the file is."""
        return self.trailer.header


@contextmanager
def opened(disk: Disk, name: str, *, direct: bool = False) -> Iterator[DiskFile]:
    """A file for reading, closed at the end."""
    file = disk.open(name, "r", direct=direct)
    try:
        yield file
    finally:
        file.close()


def aligned_buffer(length: int) -> memoryview:
    """Page-aligned zeros in private memory, at least one page: `length` rounded up.

    Raises DiskError when there is not so much memory, which only a forged length asks for.
    """
    try:
        return memoryview(mmap.mmap(-1, max(PAGE_BYTES, padded(length))))
    except (OSError, OverflowError) as error:
        raise DiskError(f"cannot get {length} bytes of memory: {error}", errno.ENOMEM) from error


def aligned_copy(data: bytes) -> memoryview:
    """`data` in page-aligned memory; its length is a multiple of a page already."""
    buffer = aligned_buffer(len(data))
    buffer[: len(data)] = data
    return buffer[: len(data)]


def read_exactly(file: DiskFile, length: int, offset: int, name: str) -> memoryview:
    """`length` bytes at `offset`, both multiples of a page. Raises CorruptError if cut off."""
    buffer = aligned_buffer(length)[:length]
    got = file.read([buffer], offset)
    if got != length:
        raise CorruptError(f"{name} ends at {offset + got}, in the middle of what it should hold")
    return buffer


def read_header(disk: Disk, name: str, magic: bytes) -> FileHeader:
    """The verified header of a file. Raises CorruptError, NewerFormatError or DiskError."""
    with opened(disk, name) as file:
        return decode_header(bytes(read_exactly(file, PAGE_BYTES, 0, name)), magic)


def read_sealed(disk: Disk, name: str, magic: bytes, repository_id: bytes) -> SealedFile:
    """Header and trailer of a sealed file of this repository; a bad header is no error.

    Raises CorruptError, NewerFormatError or DiskError.
    """
    with opened(disk, name) as file:
        return _read_ends(file, name, magic, repository_id)


def check_version(disk: Disk, name: str, magic: bytes) -> None:
    """Raises NewerFormatError if one of the ends of a file says that it is newer, and DiskError if
    it cannot be read. Damage is no error here."""
    with opened(disk, name) as file:
        with suppress(CorruptError):
            decode_header(bytes(read_exactly(file, PAGE_BYTES, 0, name)), magic)
            return
        size = file.size()
        with suppress(CorruptError):
            tail = read_exactly(file, PAGE_BYTES, max(0, size - PAGE_BYTES), name)
            decode_trailer(bytes(tail), magic, size)


def read_index(
    disk: Disk, name: str, magic: bytes, repository_id: bytes, *, direct: bool = False
) -> tuple[SealedFile, memoryview]:
    """A sealed file and the bytes of its index, whose digest is not checked yet.

    `direct` reads from the medium, not from the page cache: to see what was really written. A bad
    header is `SealedFile.problem`, no error. Raises CorruptError, NewerFormatError or DiskError.
    """
    with opened(disk, name, direct=direct) as file:
        sealed = _read_ends(file, name, magic, repository_id)
        trailer = sealed.trailer
        if trailer.index_bytes > INDEX_BYTES_MAX:
            raise CorruptError(f"{name} has an index of {trailer.index_bytes} bytes")
        return sealed, read_exactly(file, trailer.index_bytes, trailer.index_offset, name)


def publish(disk: Disk, file: DiskFile, name: str, directory: str) -> None:
    """Give a written file its name, for good.

    The bytes are synced before the rename, so the name never stands for a part of them; the
    directory is synced before this returns, so the name survives a crash from then on. A crash in
    between leaves the temporary name, or the whole file under its own: both are safe.
    """
    file.sync()
    file.close()
    disk.rename(name + TEMPORARY, name)
    disk.sync_directory(directory)


def write_durably(disk: Disk, name: str, directory: str, pieces: Sequence[Buffer]) -> None:
    """Write a small file as a whole and publish it. Raises DiskError and leaves no trace then,
    unless the disk refuses that too."""
    file = disk.open(name + TEMPORARY, "x")
    try:
        file.write(pieces, 0)
        publish(disk, file, name, directory)
    except DiskError:
        discard(disk, file, name)
        raise


def discard(disk: Disk, file: DiskFile, name: str) -> None:
    """Give up a file that is being written. What cannot be removed now is removed by recovery."""
    file.close()
    with suppress(DiskError):
        disk.remove(name + TEMPORARY)


def _read_ends(file: DiskFile, name: str, magic: bytes, repository_id: bytes) -> SealedFile:
    """The trailer is the end to trust: it was written last, says where the index is and what it
    must be, and repeats the header, which is there for the eyes of people and tools. So a header
    that is bad, or of another file, costs nothing as long as the trailer is of this repository and,
    which the caller checks, of this name."""
    size = file.size()
    if size < 2 * PAGE_BYTES or size % PAGE_BYTES:
        raise CorruptError(f"{name} is {size} bytes long: cut off, or never finished")
    head = bytes(read_exactly(file, PAGE_BYTES, 0, name))
    tail = bytes(read_exactly(file, PAGE_BYTES, size - PAGE_BYTES, name))
    problem = ""
    header: FileHeader | None = None
    try:
        header = decode_header(head, magic)
    except CorruptError as error:
        problem = f"{error}; the trailer serves instead"
    trailer = decode_trailer(tail, magic, size)
    if trailer.header.repository_id != repository_id:
        raise CorruptError(f"{name} belongs to another repository")
    if header not in {None, trailer.header}:
        problem = "the header is of another file; the trailer serves instead"
    return SealedFile(name, trailer, size, problem)
