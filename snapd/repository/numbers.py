"""`RowNumbers`: numbers that rows keep for life, whatever happens to their place in memory."""

from __future__ import annotations

import numpy as np

from snapd.blocks.keys import I64, Bools

GONE = -1
"""Place of a row that is not stored, or never was."""


class RowNumbers:
    """Which number the row at each place of a dense array has. Numbers rise and are never reused.

    Places are in the order of numbers, and rows leave in long runs (whole packs), so a few ranges
    say it all: range k begins with number `_first[k]` at place `_place[k]`. As long as nothing was
    taken out there is one range and numbers are places.
    """

    __slots__ = ("_first", "_place", "count", "end")

    def __init__(self) -> None:
        self.count = 0
        """Rows stored."""
        self.end = 0
        """The next number: all given ones are below it."""
        self._first: I64 = np.zeros(1, np.int64)
        self._place: I64 = np.zeros(1, np.int64)

    @property
    def dense(self) -> bool:
        """Whether every number is its own place."""
        return self.count == self.end

    def append(self, rows: int) -> I64:
        """Numbers of so many new rows behind the last one, int64 [rows]."""
        begin = self.end
        if rows and not self._continues():
            self._first = np.append(self._first, begin)
            self._place = np.append(self._place, self.count)
        self.count += rows
        self.end += rows
        return np.arange(begin, begin + rows)

    def places(self, numbers: I64) -> I64:
        """Where these rows are, int64 [n]; `GONE` for those that are not stored."""
        if not len(numbers):
            return numbers
        assert numbers.dtype.kind == "i", "row numbers, not a mask"
        if self.dense:
            if int(numbers.min()) >= 0 and int(numbers.max()) < self.count:
                return numbers
            return np.where((numbers >= 0) & (numbers < self.count), numbers, GONE)
        if not self.count:
            return np.full(len(numbers), GONE, np.int64)
        at = np.searchsorted(self._first, numbers, side="right") - 1
        places = numbers - self._first[at] + self._place[at]
        inside = (at >= 0) & (places < np.append(self._place[1:], self.count)[at])
        return np.where(inside, places, GONE)

    def places_of_range(self, numbers: slice) -> slice | None:
        """Where a stretch of rows is, if it is stored as a whole; else None."""
        if self.dense:
            inside = numbers.start >= 0 and numbers.stop <= self.count
            return numbers if inside else None
        if numbers.start == numbers.stop:
            return slice(0, 0)
        first, last = self.places(np.array([numbers.start, numbers.stop - 1])).tolist()
        whole = first != GONE and last - first == numbers.stop - 1 - numbers.start
        return slice(first, last + 1) if whole else None

    def numbers(self, places: I64) -> I64:
        """Numbers of the rows at these places, int64 [n]; each place is below `count`."""
        if self.dense or not len(places):
            return places
        at = np.searchsorted(self._place, places, side="right") - 1
        numbers: I64 = places - self._place[at] + self._first[at]
        return numbers

    def keep(self, kept: Bools) -> None:
        """Take out the rows whose place is false in `kept`, bool [count]; the others move up."""
        begins = kept.copy()
        begins[1:] &= ~kept[:-1]
        heads = self._place[self._place < self.count]
        begins[heads] = kept[heads]
        starts = np.flatnonzero(begins)
        del begins
        # What is kept before each start, without a sum over all rows at once.
        stretches = np.add.reduceat(kept, starts, dtype=np.int64) if len(starts) else starts
        self._first = self.numbers(starts)
        self._place = np.cumsum(stretches) - stretches
        self.count = int(stretches.sum())

    def _continues(self) -> bool:
        """Whether the next row follows the last one both in number and in place."""
        if not self.count:
            self._first, self._place = self._first[:0], self._place[:0]
            return False
        return int(self._first[-1] + self.count - self._place[-1]) == self.end
