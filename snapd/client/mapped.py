"""`MappedSegment`: the segment as the connections of one process share it."""

from __future__ import annotations

import threading
from collections import Counter

import numpy as np

from snapd.blocks.keys import I64, U64, Bools
from snapd.client.memory import address_of
from snapd.errors import ProtocolError
from snapd.formats.segment import (
    DATA_UNIT_BYTES,
    SLOT_SEAL_WORD,
    SLOT_SEQUENCE_WORD,
    SLOT_WORDS,
    SlotState,
    data_units,
    slot_words,
)
from snapd.segment.pages import populate
from snapd.segment.view import SegmentView

_POPULATE_BYTES = 2 * 2**20
"""Page tables are filled in pieces of this size."""

_STATE_MASK = np.uint64(0xFF)
"""The state is the first byte of its word."""


class MappedSegment:
    """One mapping, counted by its users, and the writers' locks that are held through it.

    Locks belong to the open file behind the mapping, so a lock that two connections hold (a store
    may hand a number out again after a restart) is one lock: it is given up with the last holder.
    """

    def __init__(self, path: str, segment_id: bytes) -> None:
        """Map. Raises what `SegmentView` raises."""
        self.segment_id = segment_id
        self._view = SegmentView(path, segment_id)
        geometry = self._view.geometry
        self._data_start, self._end = geometry.data_offset, geometry.file_bytes
        self._words: U64 = slot_words(self._view.slots)
        self._base = address_of(self._words) - geometry.slots_offset
        self._populated: Bools = np.zeros(-(-self._end // _POPULATE_BYTES), np.bool_)
        self._users = 1
        self._writers: Counter[int] = Counter()
        self._lock = threading.Lock()

    @property
    def data_bytes(self) -> int:
        """Length of the data area."""
        return self._end - self._data_start

    def addresses(self, offsets: U64, sizes: U64) -> list[int]:
        """Addresses of n extents of the data area, with page tables filled.

        Raises ProtocolError if one lies outside the data area or is not aligned.
        """
        starts: I64 = offsets.astype(np.int64)
        lengths: I64 = data_units(sizes) * DATA_UNIT_BYTES
        inside = (starts >= self._data_start) & (lengths <= self._end - starts)
        inside &= sizes <= self._end  # first of all: a length made of more would wrap around
        if not bool((inside & (starts % DATA_UNIT_BYTES == 0)).all()):
            raise ProtocolError("the store named memory outside its data area")
        self._populate(starts, starts + lengths)
        addresses: list[int] = (starts + self._base).tolist()
        return addresses

    def holds(self, slots: I64, sequences: U64) -> Bools:
        """Whether each slot is published with this sequence right now, bool [n].

        The word with the state is loaded first. A slot is freed by clearing that word and sealed by
        storing it, so that a published state followed by the old sequence proves that the old
        version was still there at the first load; the other way round, a block published in
        between could pair its state with its predecessor's sequence.

        Raises ProtocolError if a slot is outside the table.
        """
        if len(slots) and int(slots.max()) >= len(self._words):
            raise ProtocolError(f"slot {int(slots.max())} is outside the table")
        states = self._words[slots, SLOT_SEAL_WORD] & _STATE_MASK
        current = self._words[slots, SLOT_SEQUENCE_WORD]
        result: Bools = (states == SlotState.PUBLISHED) & (current == sequences)
        return result

    def hold_writer(self, writer: int) -> None:
        """Hold a writer's lock. Raises SegmentError if another process has it."""
        with self._lock:
            if self._writers[writer] == 0:
                self._view.hold_writer(writer)
            self._writers[writer] += 1

    def release_writer(self, writer: int) -> None:
        """End one `hold_writer`; its copies must have ended."""
        with self._lock:
            self._writers[writer] -= 1
            if self._writers[writer] == 0:
                del self._writers[writer]
                self._view.release_writer(writer)

    def acquire(self) -> MappedSegment:
        """Count one more user."""
        with self._lock:
            self._users += 1
        return self

    def release(self) -> None:
        """One user less; the last one unmaps."""
        with self._lock:
            self._users -= 1
            last = self._users == 0
        if last:
            self.forget()

    def forget(self) -> None:
        """Unmap. In a child of `fork` this gives no lock up: they belong to the open file, which
        the parent still has."""
        self._words = np.empty((0, SLOT_WORDS), np.uint64)
        self._view.close()

    def _populate(self, starts: I64, ends: I64) -> None:
        """Fill the page tables of these ranges, where that has not been done yet.

        A kernel that cannot is no error: its page faults are only slower.
        """
        first, last = starts // _POPULATE_BYTES, (ends - 1) // _POPULATE_BYTES
        if self._populated[first].all() and (first == last).all():
            return
        pieces = _pieces(first, last + 1)
        missing = np.unique(pieces[~self._populated[pieces]])
        for piece in missing.tolist():
            length = min(_POPULATE_BYTES, self._end - piece * _POPULATE_BYTES)
            populate(self._base + piece * _POPULATE_BYTES, length)
        self._populated[missing] = True


def _pieces(first: I64, last: I64) -> I64:
    """All numbers of the half-open ranges [first, last), one after another, int64."""
    counts = last - first
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    pieces: I64 = np.arange(total) + np.repeat(first - (ends - counts), counts)
    return pieces
