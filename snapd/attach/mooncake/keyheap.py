"""`KeyHeap`: a key for each slot, in one heap of bytes that is written over and compacted."""

from __future__ import annotations

import numpy as np

from snapd.blocks import KeyColumn
from snapd.blocks.keys import I64, U8, Bools, equal_ranges, gather_ranges

_HEAP_BYTES = 1 << 16
"""Bytes to begin with; it doubles."""


class KeyHeap:
    """Keys by slot; an empty slot has the empty key. Not thread-safe: its owner holds a lock."""

    __slots__ = ("_end", "_heap", "_held", "_length", "_start")

    def __init__(self, slots: int) -> None:
        self._heap: U8 = np.zeros(_HEAP_BYTES, np.uint8)
        self._end = 0
        self._held = 0
        """Bytes below `_end` that some slot still needs."""
        self._start: I64 = np.zeros(slots, np.int64)
        self._length: I64 = np.zeros(slots, np.int64)

    @property
    def heap_bytes(self) -> int:
        """Bytes of the heap, used or not."""
        return len(self._heap)

    def put(self, slots: I64, keys: KeyColumn) -> None:
        """Keys for empty slots, each named once."""
        needed = int(keys.offsets[-1] - keys.offsets[0])
        self._make_room(needed)
        lengths = keys.lengths
        self._heap[self._end : self._end + needed] = keys.heap[keys.offsets[0] : keys.offsets[-1]]
        self._start[slots] = self._end + np.cumsum(lengths) - lengths
        self._length[slots] = lengths
        self._end += needed
        self._held += needed

    def drop(self, slots: I64) -> None:
        """Empty these slots, each named once."""
        self._held -= int(self._length[slots].sum())
        self._length[slots] = 0
        if self._held == 0:
            self._end = 0

    def take(self, slots: I64) -> KeyColumn:
        """The keys of these slots, in order."""
        lengths = self._length[slots]
        return KeyColumn.from_lengths(
            gather_ranges(self._heap, self._start[slots], lengths), lengths
        )

    def equal(self, slots: I64, other: KeyColumn, rows: I64) -> Bools:
        """Whether the key of `slots[i]` is key `rows[i]` of `other`, bool [n]."""
        return equal_ranges(
            (self._heap, self._start[slots], self._length[slots]),
            (other.heap, other.offsets[:-1][rows], other.lengths_of(rows)),
        )

    def _make_room(self, needed: int) -> None:
        if self._end + needed <= len(self._heap):
            return
        size = len(self._heap)
        # Half of it is free after this, so the work is shared by as many bytes as it moves.
        while size < 2 * (self._held + needed):
            size *= 2
        slots = np.flatnonzero(self._length)
        keys = self.take(slots)
        self._heap = np.zeros(size, np.uint8)
        self._heap[: self._held] = keys.heap
        self._start[slots] = keys.offsets[:-1]
        self._end = self._held
