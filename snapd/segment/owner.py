"""`Segment`: a segment as its store sees it: made or adopted, locked, the only writer of slots."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import logging
import os
import secrets
import stat
import threading

import numpy as np

from snapd.blocks.keys import U64
from snapd.config import event
from snapd.errors import CorruptError, LockHeldError, SegmentError, SettingError
from snapd.formats.segment import (
    HEADER_BYTES,
    HEADER_DTYPE,
    STATE_DTYPE,
    STATE_OFFSETS,
    STORE_LOCK_BYTE,
    Geometry,
    HeaderState,
    decode_header,
    decode_state,
    encode_header,
    encode_preamble,
    encode_state,
    is_of_a_segment,
    is_unfinished,
)
from snapd.segment.locks import first_held, try_lock, unlock
from snapd.segment.mapping import SegmentMapping
from snapd.segment.tally import Tallies, read_tally

_LOG = logging.getLogger(__name__)

SEQUENCES_RESERVED = 1 << 20
"""Sequences are reserved in the header in steps of this many, ahead of their use."""

WRITERS_RESERVED = 1 << 10
_WRITER_MAX = 0xFFFFFFFF
_STAT_BLOCK_BYTES = 512


class Segment:
    """An open segment under the store's lock.

    `created` says whether it is new; else it was adopted and its slots have to be audited.
    """

    def __init__(self, path: str, descriptor: int, geometry: Geometry, *, created: bool) -> None:
        """Use `open_segment`. `descriptor` holds the lock and is owned from here on."""
        self.path = path
        self.created = created
        self.boot_id = secrets.token_bytes(16)
        self._descriptor = descriptor
        self.mapping = SegmentMapping(descriptor, geometry)
        self._state_lock = threading.Lock()
        state = self.mapping.read_state()
        self._next_sequence = state.sequence_ceiling
        self._next_writer = state.writer_ceiling
        self._state = state
        self.left = read_tally(self.mapping.header, state.boot_id)
        """Tallies of the store before."""
        self.tallies = Tallies(self.mapping.header, self.boot_id)
        self._geometry_page = encode_header(geometry)
        self._change(boot_id=self.boot_id)

    @property
    def geometry(self) -> Geometry:
        """Where everything is."""
        return self.mapping.geometry

    @property
    def descriptor(self) -> int:
        """The open file, for `fallocate`."""
        return self._descriptor

    @property
    def epoch(self) -> int:
        """How many remove-alls there have been."""
        return self._state.epoch

    @property
    def data_allocated_bytes(self) -> int:
        """So much of the data area has memory behind it."""
        return self._state.data_allocated_bytes

    def raise_epoch(self) -> None:
        """Declare every slot of an older epoch dead: the one write that is a remove-all."""
        self._change(epoch=self._state.epoch + 1)

    def note_allocated(self, data_allocated_bytes: int) -> None:
        """Record how far the data area has memory behind it. Called from another thread."""
        self._change(data_allocated_bytes=data_allocated_bytes)

    @property
    def in_doubt(self) -> bool:
        """Whether free space may belong to a reservation whose slot was damaged."""
        return bool(self._state.in_doubt)

    def note_doubt(self, *, in_doubt: bool) -> None:
        """Record that for the next adoption, which does not find the damaged slot any more."""
        if in_doubt != self.in_doubt:
            self._change(in_doubt=int(in_doubt))

    def take_sequences(self, count: int) -> U64:
        """`count` new sequences, rising, uint64 [count]; none is ever handed out twice.

        The ceiling is in the header before the first sequence below it is used, so that an
        adoption, which starts from the ceiling, skips some and repeats none.
        """
        first = self._next_sequence
        self._next_sequence += count
        if self._next_sequence > self._state.sequence_ceiling:
            self._change(sequence_ceiling=self._next_sequence + SEQUENCES_RESERVED)
        return np.arange(first, self._next_sequence, dtype=np.uint64)

    def take_writer(self) -> int:
        """A number for a new writer, one whose lock nobody holds."""
        while True:
            writer = self._next_writer
            self._next_writer = writer % _WRITER_MAX + 1
            if self._next_writer > self._state.writer_ceiling or self._next_writer == 1:
                self._change(writer_ceiling=min(self._next_writer + WRITERS_RESERVED, _WRITER_MAX))
            if self.writer_is_gone(writer):
                return writer

    def writer_is_gone(self, writer: int) -> bool:
        """Whether nobody can write for this writer any more: no open file holds its lock."""
        return first_held(self._descriptor, self.geometry.writer_lock_base + writer) is None

    def held_writers(self) -> frozenset[int]:
        """All writers whose lock somebody holds."""
        base = self.geometry.writer_lock_base
        held: set[int] = set()
        ranges = [(base, _WRITER_MAX + 1)]
        while ranges:
            start, length = ranges.pop()
            found = first_held(self._descriptor, start, length) if length > 0 else None
            if found is None:
                continue
            first, count = max(found[0], start), found[1] or 1
            held.update(range(first - base, first - base + count))
            # The kernel names any lock in the range, so both sides of it are still to be asked.
            ranges.append((start, first - start))
            ranges.append((first + count, start + length - first - count))
        return frozenset(held)

    def heal_header(self) -> bool:
        """Write the header again where somebody else wrote into it; says whether.

        The tallies are not looked at: a wrong one costs doubt, never a byte.
        """
        with self._state_lock:
            record = np.frombuffer(encode_state(self._state), np.uint8)
            fixed = np.frombuffer(self._geometry_page, np.uint8, HEADER_DTYPE.itemsize)
            parts = ((0, fixed), *((offset, record) for offset in STATE_OFFSETS))
            damaged = False
            for offset, expected in parts:
                found = self.mapping.header[offset : offset + len(expected)]
                if not np.array_equal(found, expected):
                    found[:] = expected
                    damaged = True
        return damaged

    def close(self) -> None:
        """Unmap and give the lock up; the segment stays. Idempotent."""
        if self._descriptor >= 0:
            # Said, not left to the unmapping: a view that somebody still holds keeps the file open.
            unlock(self._descriptor, STORE_LOCK_BYTE)
            self.mapping.close()
            os.close(self._descriptor)
            self._descriptor = -1

    def _change(self, **changes: int | bytes) -> None:
        """Renew the header's state. A kill in between leaves one copy whole: the old or the new.

        Both copies are written each time: with a single new copy, a flipped bit in it would bring
        the old one back, and with it an older epoch.
        """
        with self._state_lock:
            new = dataclasses.replace(
                self._state,
                generation=self._state.generation + 1,
                **changes,  # type: ignore[arg-type]
            )
            record = np.frombuffer(encode_state(new), np.uint8)
            for offset in STATE_OFFSETS:
                self.mapping.header[offset : offset + STATE_DTYPE.itemsize] = record
            self._state = new


def open_segment(
    path: str, data_bytes: int, slot_count: int, *, group_shared: bool = False
) -> Segment:
    """Adopt the segment at `path`, or make a new one of this geometry; mode 0600, or 0660 with
    `group_shared`.

    A segment of another geometry is adopted as it is, with a warning. One whose header is damaged
    is moved aside to `<path>.bad` and a new one made. A file that is neither a segment nor empty
    is left alone. Raises SettingError for such a file, LockHeldError while another store has it,
    NewerFormatError for a newer layout, SegmentError when there is not enough shared memory.
    """
    while True:
        descriptor = _open_locked(path)
        try:
            page = os.pread(descriptor, HEADER_BYTES, 0)
            if not page or is_of_a_segment(page):
                _set_mode(path, descriptor, 0o660 if group_shared else 0o600)
            if not page or is_unfinished(page):
                return _create(path, descriptor, data_bytes, slot_count)
            _refuse_other_files(path, page)
            try:
                return _adopt(path, descriptor, page, data_bytes, slot_count)
            except CorruptError as error:
                reason = str(error)
            _refuse_other_files(path + ".bad", _first_page(path + ".bad"))
        except BaseException:
            os.close(descriptor)
            raise
        # The file may still be mapped by late writers: it is renamed, never written to again.
        os.rename(path, path + ".bad")
        os.close(descriptor)
        event(_LOG, logging.ERROR, "segment damaged", path=path, moved_to=path + ".bad", why=reason)


def _refuse_other_files(path: str, page: bytes) -> None:
    """Raises SettingError unless a file that begins with `page` is a segment, or empty."""
    if page and not is_of_a_segment(page):
        raise SettingError(
            f"{path} is not a segment of snapd: it is left alone; set another segment_path, or "
            "move the file away"
        )


def _set_mode(path: str, descriptor: int, mode: int) -> None:
    """Who may map the segment. Raises SegmentError if it belongs to somebody else."""
    if stat.S_IMODE(os.fstat(descriptor).st_mode) == mode:
        return
    try:
        os.fchmod(descriptor, mode)
    except OSError as error:
        raise SegmentError(
            f"cannot set the mode of segment {path} to {mode:#o}: {error.strerror}; "
            "set group_shared as its owner did"
        ) from error


def _first_page(path: str) -> bytes:
    """The first page of a file; b"" where there is none."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise SegmentError(f"cannot read {path}: {error.strerror}; move it away") from error
    try:
        return os.pread(descriptor, HEADER_BYTES, 0)
    except OSError as error:
        raise SegmentError(f"cannot read {path}: {error.strerror}; move it away") from error
    finally:
        os.close(descriptor)


def _open_locked(path: str) -> int:
    while True:
        try:
            # Anybody may leave a link in /dev/shm; what it leads to is none of our files.
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            descriptor = os.open(path, flags, 0o600)
        except OSError as error:
            why = (
                f"segment {path} is not a regular file: set another segment_path"
                if error.errno == errno.ELOOP
                else f"cannot open segment {path}: {error.strerror}; check segment_path"
            )
            raise SegmentError(why) from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            # A failed start removes its segment, and a device must not be removed.
            os.close(descriptor)
            raise SegmentError(f"segment {path} is not a regular file: set another segment_path")
        if not try_lock(descriptor, STORE_LOCK_BYTE):
            os.close(descriptor)
            raise LockHeldError(f"another store holds {path}: stop it, or set segment_path")
        # Between open and lock its last owner may have moved the file aside.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        os.close(descriptor)


def _adopt(path: str, descriptor: int, page: bytes, data_bytes: int, slot_count: int) -> Segment:
    geometry = decode_header(page)
    decode_state(page)
    found = os.fstat(descriptor)
    if found.st_size < geometry.file_bytes:
        raise CorruptError(f"segment {path} is shorter than its header says")
    if found.st_blocks * _STAT_BLOCK_BYTES < geometry.data_offset:
        # A segment's tables are allocated when it is made; holes cost nothing to whoever makes
        # them, and all memory to whoever reads tables of that size.
        raise CorruptError(f"segment {path} has holes where its tables are")
    wanted = Geometry.plan(geometry.segment_id, data_bytes, slot_count)
    if wanted != geometry:
        event(
            _LOG,
            logging.WARNING,
            "segment has another size than the settings; adopted as it is",
            path=path,
            data_bytes=geometry.data_bytes,
            data_bytes_set=wanted.data_bytes,
            slots=geometry.slot_count,
            slots_set=wanted.slot_count,
            way_out="stop the store and remove the segment to resize it",
        )
    return Segment(path, descriptor, geometry, created=False)


def _create(path: str, descriptor: int, data_bytes: int, slot_count: int) -> Segment:
    """Make a segment in an empty file, or in one whose making was cut short.

    The first 16 bytes, which say whose file it is, come first and the rest of the header last:
    killed in between, the next start knows that it may begin again, and a file of zeros that is
    not ours is never taken for one. The data area gets its memory afterwards
    (`snapd.segment.growth`).
    """
    geometry = Geometry.plan(secrets.token_bytes(16), data_bytes, slot_count)
    try:
        preamble = encode_preamble()
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, preamble, 0)
        _check_room(path, geometry.file_bytes)
        os.ftruncate(descriptor, geometry.file_bytes)
        os.posix_fallocate(descriptor, 0, geometry.data_offset)
        page = bytearray(encode_header(geometry))
        state = encode_state(HeaderState(1, 1, 0, bytes(16), 0, 1))
        for offset in STATE_OFFSETS:
            page[offset : offset + len(state)] = state
        os.pwrite(descriptor, page, 0)
    except OSError as error:
        os.unlink(path)
        raise SegmentError(
            f"cannot make segment {path} of {geometry.file_bytes} bytes: {error.strerror}"
        ) from error
    except SegmentError:
        os.unlink(path)
        raise
    return Segment(path, descriptor, geometry, created=True)


def _check_room(path: str, file_bytes: int) -> None:
    """Raises SegmentError unless the whole segment fits; gives a damaged old one up if need be."""
    directory = os.path.dirname(path) or "."
    free = _free_bytes(directory)
    if free < file_bytes and is_of_a_segment(_first_page(path + ".bad")):
        os.unlink(path + ".bad")
        event(_LOG, logging.WARNING, "damaged segment removed for space", path=path + ".bad")
        free = _free_bytes(directory)
    if free < file_bytes:
        raise SegmentError(
            f"{directory} has {free} bytes free, the segment needs {file_bytes}: enlarge it "
            f"(mount -o remount,size=..., or an emptyDir with medium Memory and a larger "
            f"sizeLimit), or set MOONCAKE_GLOBAL_SEGMENT_SIZE lower"
        )


def _free_bytes(directory: str) -> int:
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize
