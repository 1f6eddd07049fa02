"""`SegmentView`: a segment as its clients and the daemon see it."""

from __future__ import annotations

import os

import numpy as np
import numpy.typing as npt

from snapd.blocks.keys import I64, Bools, KeyColumn
from snapd.errors import SegmentError
from snapd.formats.segment import (
    HEADER_BYTES,
    Geometry,
    Slots,
    decode_header,
    valid_slots,
)
from snapd.segment.locks import try_lock, unlock
from snapd.segment.mapping import SegmentMapping


class SegmentView:
    """A mapping of a segment that some store owns.

    The mapping is writable, because clients copy blocks into the data area; they write nothing
    else. Everything read from here may change under the reader: take copies, and compare a slot's
    state and sequence again after having used what it names.
    """

    def __init__(self, path: str, segment_id: bytes) -> None:
        """Open and map the segment at `path`, which must be the one with this id (16 bytes).

        Raises SegmentError when it is not there or is another one, CorruptError or
        NewerFormatError when its header does not decode.
        """
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise SegmentError(f"cannot open segment {path}: {error.strerror}") from error
        try:
            geometry = decode_header(os.pread(self._descriptor, HEADER_BYTES, 0))
            if geometry.segment_id != segment_id:
                raise SegmentError(f"{path} is another segment now: connect to its store again")
            if os.fstat(self._descriptor).st_size < geometry.file_bytes:
                raise SegmentError(f"{path} is shorter than its header says")
            self._mapping = SegmentMapping(self._descriptor, geometry)
        except BaseException:
            os.close(self._descriptor)
            raise
        self._closed = False

    @property
    def geometry(self) -> Geometry:
        """Where everything is."""
        return self._mapping.geometry

    @property
    def data(self) -> memoryview:
        """The whole file, uint8; `Reserved.offsets` and `Located.offsets` are positions in it."""
        return self._mapping.data

    @property
    def slots(self) -> Slots:
        """The live slot table, `SLOT_DTYPE` [slots]: shared memory, checked by nobody."""
        return self._mapping.slots

    @property
    def heat(self) -> npt.NDArray[np.void]:
        """The live heat table, `HEAT_DTYPE` [slots]: shared memory, advisory."""
        return self._mapping.heat

    @property
    def epoch(self) -> int:
        """The segment's epoch as it is now. Raises CorruptError."""
        return self._mapping.read_state().epoch

    def read_slots(self, rows: I64 | None = None) -> tuple[Slots, Bools]:
        """Copies of the slots at `rows` (all without), and which of them are whole, bool [n].

        A slot that the store is just changing is not whole; nor is one with a flipped bit.
        """
        if rows is None:
            copy = self._mapping.slots.copy()
        elif len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(self.slots):
            raise SegmentError(f"slot {int(rows.max())} is not in the table of {len(self.slots)}")
        else:
            copy = self._mapping.slots[rows]
        return copy, valid_slots(copy)

    def keys_of(self, slots: Slots) -> KeyColumn:
        """The keys that these records name, unverified (see `read_blocks`).

        Raises CorruptError if one lies outside the key heap.
        """
        return self._mapping.keys_of(slots)

    def read_blocks(self, rows: I64) -> tuple[Slots, KeyColumn, Bools]:
        """Slots and keys of `rows`, and which of them are whole and belong together, bool [n].

        A key belongs to its slot when it has the slot's hash and the slot did not change while
        the key was copied. Costs a hash a key: ask for what is new.
        """
        slots, good = self.read_slots(rows)
        good &= slots["key_length"] > 0
        keys = self.keys_of(np.where(good, slots, np.zeros(1, slots.dtype)))
        again, whole = self.read_slots(rows)
        good &= whole & (again["sequence"] == slots["sequence"])
        good &= again["state"] == slots["state"]
        good &= keys.hashes() == slots["key_hash"]
        return slots, keys, good

    def hold_writer(self, writer: int) -> None:
        """Hold the lock of this writer number, before the first `PutStart` or `FillStart`.

        It is held until `release_writer`, or until this process and its forked children have
        unmapped the segment. Raises SegmentError if another open file has it.
        """
        if not try_lock(self._descriptor, self.geometry.writer_lock_base + writer):
            raise SegmentError(f"another process holds the lock of writer {writer}")

    def release_writer(self, writer: int) -> None:
        """Give the lock up: this process will not write into that writer's blocks any more."""
        unlock(self._descriptor, self.geometry.writer_lock_base + writer)

    def close(self) -> None:
        """Unmap and close; idempotent. Views that others still hold keep the memory, and locks."""
        if not self._closed:
            self._closed = True
            self._mapping.close()
            os.close(self._descriptor)
