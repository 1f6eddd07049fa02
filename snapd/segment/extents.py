"""Extents: runs of units in the data area or in the key heap. Pure: numbers in, numbers out."""

from __future__ import annotations

from array import array
from bisect import bisect_left, insort

import numpy as np
import numpy.typing as npt

from snapd.blocks.keys import I64, Bools

Units = npt.NDArray[np.integer]
"""Starts or lengths of extents, [n], below 2^32."""

_LENGTH_BITS = np.uint64(32)
_LENGTH_MASK = np.uint64(0xFFFFFFFF)


class ExtentAllocator:
    """Free extents in one bin per exact length; best fit; neighbours merged only when needed.

    Blocks of one model are of few sizes, so that nearly every allocation is a pop from the bin of
    its length. When nothing fits, everything free is sorted and merged, once per change.
    """

    def __init__(self) -> None:
        self._bins: dict[int, array[int]] = {}
        self._lengths: list[int] = []
        self._fragmented = False
        self.free_units = 0

    def release(self, starts: I64, lengths: I64) -> None:
        """Make extents free: [n] starts and lengths (above 0) in units, below 2^32."""
        if not len(starts):
            return
        self._fragmented = True
        self.free_units += int(lengths.sum())
        self._file(starts, lengths)

    def allocate(self, lengths: I64) -> I64:
        """The start of an extent for each length (above 0), int64 [n]; -1 where none is left."""
        result = np.full(len(lengths), -1, np.int64)
        if not len(lengths):
            return result
        # Largest first: small ones fit into what is left over.
        for length in np.unique(lengths)[::-1].tolist():
            rows = np.flatnonzero(lengths == length)
            starts = self._take(length, len(rows))
            result[rows[: len(starts)]] = starts
            self.free_units -= length * len(starts)
        return result

    def longest(self) -> int:
        """Length of the longest free extent, in units, after merging."""
        self._merge()
        return self._lengths[-1] if self._lengths else 0

    def extents(self) -> tuple[I64, I64]:
        """All free extents as (starts, lengths), in the order of their starts, merged."""
        return _merged(*self._all())

    def _file(self, starts: I64, lengths: I64) -> None:
        for length in np.unique(lengths).tolist():
            chosen = starts[lengths == length].astype(np.uint32)
            if length not in self._bins:
                self._bins[length] = array("I")
                insort(self._lengths, length)
            self._bins[length].frombytes(chosen.tobytes())

    def _pop(self, length: int, count: int) -> I64:
        """Up to `count` extents of exactly this length."""
        extents = self._bins[length]
        first = max(0, len(extents) - count)
        starts = np.array(extents[first:], np.int64)
        del extents[first:]
        if not extents:
            del self._bins[length]
            del self._lengths[bisect_left(self._lengths, length)]
        return starts

    def _take(self, length: int, count: int) -> I64:
        parts: list[I64] = []
        while count:
            at = bisect_left(self._lengths, length)
            if at == len(self._lengths):
                if not self._merge():
                    break
                continue
            starts = self._split(self._lengths[at], length, count)
            count -= len(starts)
            parts.append(starts)
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def _split(self, width: int, length: int, count: int) -> I64:
        """Up to `count` extents of `length` cut out of free ones of `width`."""
        pieces = min(width // length, count)
        wide = self._pop(width, -(-count // pieces))
        if width == length:
            return wide
        grid = (wide[:, None] + np.arange(pieces) * length).reshape(-1)
        taken, spare = grid[:count], grid[count:]
        if len(spare):  # what is left of the last one, in one piece with its remainder
            rest = int(wide[-1]) + width - int(spare[0])
            self._file(spare[:1], np.array([rest]))
            wide = wide[:-1]
        remainder = width - pieces * length
        if remainder and len(wide):
            self._file(wide + pieces * length, np.full(len(wide), remainder))
        return taken

    def _all(self) -> tuple[I64, I64]:
        if not self._lengths:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        starts = [np.frombuffer(self._bins[length], np.uint32) for length in self._lengths]
        lengths = np.repeat(self._lengths, [len(part) for part in starts])
        return np.concatenate(starts).astype(np.int64), lengths.astype(np.int64)

    def _merge(self) -> bool:
        """Merge neighbours; False if nothing has been released since the last time."""
        if not self._fragmented:
            return False
        starts, lengths = _merged(*self._all())
        self._bins, self._lengths = {}, []
        if len(starts):
            self._file_by_length(starts, lengths)
        self._fragmented = False
        return True

    def _file_by_length(self, starts: I64, lengths: I64) -> None:
        order = np.argsort(lengths, kind="stable")
        widths, firsts = np.unique(lengths[order], return_index=True)
        ends = np.append(firsts[1:], len(order))
        sorted_starts = starts[order].astype(np.uint32)
        for width, first, end in zip(widths.tolist(), firsts.tolist(), ends.tolist(), strict=True):
            self._bins[width] = array("I", sorted_starts[first:end].tobytes())
        self._lengths = widths.tolist()


def _sorted(starts: Units, lengths: Units) -> tuple[I64, I64]:
    """Extents in the order of their starts. One sort of packed words beats an argsort by four."""
    packed = starts.astype(np.uint64) << _LENGTH_BITS
    packed |= lengths.astype(np.uint64)
    packed.sort()
    return (packed >> _LENGTH_BITS).astype(np.int64), (packed & _LENGTH_MASK).astype(np.int64)


def _merged(starts: I64, lengths: I64) -> tuple[I64, I64]:
    """Sorted extents with neighbours joined. Raises AssertionError if two overlap."""
    if not len(starts):
        return starts, lengths
    starts, lengths = _sorted(starts, lengths)
    ends = starts + lengths
    if bool((starts[1:] < ends[:-1]).any()):
        raise AssertionError("an extent was released twice")
    firsts = np.flatnonzero(np.concatenate([np.ones(1, np.bool_), starts[1:] != ends[:-1]]))
    lasts = np.append(firsts[1:], len(starts)) - 1
    return starts[firsts], ends[lasts] - starts[firsts]


class SortedExtents:
    """Extents in the order of their starts: `starts` and `ends`, int64 [n], in units."""

    __slots__ = ("ends", "starts")

    def __init__(self, starts: Units, lengths: Units) -> None:
        self.starts, ordered = _sorted(starts, lengths)
        self.ends = self.starts + ordered

    @property
    def overlap(self) -> bool:
        """Whether two of them share a unit."""
        return bool((self.starts[1:] < self.ends[:-1]).any())

    def gaps(self, capacity: int) -> tuple[I64, I64]:
        """What is free in [0, capacity) beside them, as (starts, lengths)."""
        reach = np.concatenate([np.zeros(1, np.int64), np.maximum.accumulate(self.ends)])
        until = np.append(self.starts, capacity)
        free = until > reach
        return reach[free], (until - reach)[free]

    @staticmethod
    def overlapping(starts: Units, lengths: Units) -> Bools:
        """Which of these extents share a unit with another one, bool [n]."""
        order = np.argsort(starts, kind="stable")
        begin = starts[order].astype(np.int64)
        end = begin + lengths[order]
        result = np.zeros(len(starts), np.bool_)
        if len(starts):
            result[order[1:]] |= begin[1:] < np.maximum.accumulate(end)[:-1]
            result[order[:-1]] |= end[:-1] > begin[1:]
        return result
