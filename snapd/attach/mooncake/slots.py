"""`SlotTable`: the columns of an inventory, and how slots are found, taken and given back."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from snapd.attach.mooncake.keyheap import KeyHeap
from snapd.attach.mooncake.places import NOWHERE
from snapd.blocks import KeyColumn
from snapd.blocks.index import HashIndex
from snapd.blocks.keys import I64, U64, Bools
from snapd.blocks.table import F32, U32


class SlotTable:
    """Columns over `capacity` slots, for the class that gives them a meaning: it holds a lock over
    every call, since nothing here does. A slot is free where its sequence is 0."""

    def __init__(self, capacity: int, clock: Callable[[], float]) -> None:
        self.capacity = capacity
        self.epoch = 0
        """Remove-alls in this session; what is written is of this epoch."""
        self._clock = clock
        self._keys = KeyHeap(capacity)
        self._index = HashIndex.allocate(capacity)
        self._next_sequence = 1
        self._stamp = 0
        self._unused = 0
        """Slots from here on were never used."""
        self._free = np.zeros(capacity, np.int64)
        self._free_count = 0
        self._hash: U64 = np.zeros(capacity, np.uint64)
        self._sequence: U64 = np.zeros(capacity, np.uint64)
        self._fresh: U64 = np.zeros(capacity, np.uint64)
        """The sequence that a cold block is to have when it is published; 0 until `take_cold`."""
        self._stamped: U64 = np.zeros(capacity, np.uint64)
        """When a slot became resident, on the scale of `mark`."""
        self._hashed_at: U64 = np.zeros(capacity, np.uint64)
        self._cold: Bools = np.zeros(capacity, np.bool_)
        self._file: I64 = np.zeros(capacity, np.int64)
        self._offset: U64 = np.zeros(capacity, np.uint64)
        self._size: U64 = np.zeros(capacity, np.uint64)
        self._checksum: U64 = np.zeros(capacity, np.uint64)
        self._epoch: U32 = np.zeros(capacity, np.uint32)
        self._fingerprint: npt.NDArray[np.uint16] = np.zeros(capacity, np.uint16)
        self._group: U32 = np.zeros(capacity, np.uint32)
        self._pin: npt.NDArray[np.uint8] = np.zeros(capacity, np.uint8)
        self._parent: U64 = np.zeros(capacity, np.uint64)
        self._heat: F32 = np.zeros(capacity, np.float32)
        """Heat at the moment `_since`."""
        self._since = np.zeros(capacity, np.float64)

    def _find(self, keys: KeyColumn, hashes: U64) -> I64:
        return self._index.find(
            hashes, lambda queries, slots: self._keys.equal(slots, keys, queries)
        )

    def _is(self, rows: I64, sequences: U64, *, cold: bool) -> Bools:
        same: Bools = (
            (self._sequence[rows] == sequences) & (sequences != 0) & (self._cold[rows] == cold)
        )
        return same

    def _sequences(self, count: int) -> U64:
        first = self._next_sequence
        self._next_sequence += count
        return np.arange(first, first + count, dtype=np.uint64)

    def _next_stamp(self) -> int:
        self._stamp += 1
        return self._stamp

    def _claim(self, count: int) -> I64:
        """At most `count` free slots, int64."""
        recycled = min(count, self._free_count)
        self._free_count -= recycled
        slots = self._free[self._free_count : self._free_count + recycled].copy()
        unused = min(count - recycled, self.capacity - self._unused)
        new = np.arange(self._unused, self._unused + unused, dtype=np.int64)
        self._unused += unused
        return np.concatenate([slots, new])

    def _write(self, slots: I64, keys: KeyColumn, hashes: U64, size: U64, checksum: U64) -> None:
        """Free slots take new blocks, with everything that is not known at its default."""
        self._keys.put(slots, keys)
        self._hash[slots] = hashes
        self._index.insert(hashes, slots)
        self._sequence[slots] = self._sequences(len(slots))
        self._size[slots], self._checksum[slots] = size, checksum
        self._epoch[slots] = self.epoch
        self._since[slots] = self._clock()

    def _release(self, slots: I64) -> None:
        """These slots, each named once, are free."""
        if not len(slots):
            return
        self._index.remove(self._hash[slots], slots)
        self._keys.drop(slots)
        for column in (
            self._sequence,
            self._fresh,
            self._stamped,
            self._hashed_at,
            self._cold,
            self._fingerprint,
            self._group,
            self._pin,
            self._parent,
        ):
            column[slots] = 0
        self._file[slots] = NOWHERE
        self._free[self._free_count : self._free_count + len(slots)] = slots
        self._free_count += len(slots)
