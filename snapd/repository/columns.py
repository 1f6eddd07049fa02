"""`RowColumns`: the rows of a catalog as dense columns that grow and shrink."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from snapd.blocks import BlockTable, KeyColumn
from snapd.blocks.keys import I64, U8, Bools
from snapd.blocks.table import DTYPES
from snapd.repository.numbers import GONE, RowNumbers

Column = npt.NDArray[Any]

_ABSENT = frozenset({"slot", "slot_sequence", "offset"})
"""Columns of a listing of a segment: a catalog holds none, so they cost no memory."""
_OWN: dict[str, np.dtype[np.generic]] = {
    "state": np.dtype(np.uint8),
    "committed": np.dtype(np.bool_),
}
"""Columns that a catalog has beside those of a block table."""
_CAPACITY_MIN = 1024
_GATHERED_ROWS = 1 << 18
"""Rows looked up at a time, which bounds the memory of temporary columns."""


class RowColumns:
    """Rows by place, 0 to `len`, and the numbers that they are known by outside.

    What `at_places`, `table` and slices give are views. A row that moves does so into new arrays,
    so a view keeps the rows that it had; values in it may change until then.
    """

    def __init__(self) -> None:
        self.numbers = RowNumbers()
        self._columns: dict[str, Column] = {
            name: np.empty(0, dtype)
            for name, dtype in (DTYPES | _OWN).items()
            if name not in _ABSENT
        }
        self._heap: U8 = np.empty(0, np.uint8)
        self._offsets: I64 = np.zeros(1, np.int64)
        self._table: BlockTable | None = None

    def __len__(self) -> int:
        return self.numbers.count

    @property
    def table(self) -> BlockTable:
        """All stored rows, by place."""
        if self._table is None:
            rows = len(self)
            columns: dict[str, Column] = {
                name: np.broadcast_to(np.zeros((), dtype), rows)
                if name in _ABSENT
                else self._columns[name][:rows]
                for name, dtype in DTYPES.items()
            }
            keys = KeyColumn(self._heap[: self._offsets[rows]], self._offsets[: rows + 1])
            self._table = BlockTable(keys=keys, **columns)
        return self._table

    def at_places(self, name: str) -> Column:
        """A column by place."""
        return self._columns[name][: len(self)]

    def get(self, name: str, rows: I64 | slice, missing: int = 0) -> Column:
        """A column at these row numbers; `missing` for rows that are not stored."""
        column = self._columns[name]
        if isinstance(rows, slice):
            places = self.numbers.places_of_range(rows)
            if places is not None:
                return column[places]
            rows = np.arange(rows.start, rows.stop)
        result = np.empty(len(rows), column.dtype)
        for at in range(0, len(rows), _GATHERED_ROWS):
            part = slice(at, at + _GATHERED_ROWS)
            where = self.numbers.places(rows[part])
            stored = where != GONE
            if stored.all():
                result[part] = column[where]
            else:
                result[part] = missing
                result[part][stored] = column[where[stored]]
        return result

    def put(self, name: str, rows: I64, values: Column | int) -> None:
        """Set a column at these row numbers; those that are not stored are passed over."""
        places = self.numbers.places(rows)
        stored = places != GONE
        if not stored.all():
            places = places[stored]
            values = values[stored] if isinstance(values, np.ndarray) and values.ndim else values
        self._columns[name][places] = values

    def take(self, rows: I64) -> BlockTable:
        """These rows as a table of their own; one that is not stored is all zeros, without a key
        and of no pack."""
        places = self.numbers.places(rows)
        stored = places != GONE
        if stored.all():
            return self.table.take(places)
        found = self.table.take(places[stored])
        lengths = np.zeros(len(rows), np.int64)
        lengths[stored] = found.keys.lengths
        columns: dict[str, Column] = {}
        for name, dtype in DTYPES.items():
            columns[name] = np.zeros(len(rows), dtype)
            columns[name][stored] = getattr(found, name)
        return BlockTable(keys=KeyColumn.from_lengths(found.keys.heap, lengths), **columns)

    def reserve(self, rows: int, key_bytes: int) -> None:
        """Make room for this many more rows and bytes of keys at once."""
        self._grow_rows(len(self) + rows, exact=True)
        self._grow_heap(int(self._offsets[len(self)]) + key_bytes, exact=True)

    def append(self, blocks: BlockTable) -> I64:
        """Add rows behind the last; their numbers, int64 [n]. The catalog's own columns are 0."""
        first, count = len(self), len(blocks)
        keys = blocks.keys
        heap = keys.heap[keys.offsets[0] : keys.offsets[-1]]
        start = int(self._offsets[first])
        self._grow_rows(first + count)
        self._grow_heap(start + len(heap))
        self._heap[start : start + len(heap)] = heap
        self._offsets[first : first + count + 1] = keys.offsets - keys.offsets[0] + start
        for name, column in self._columns.items():
            column[first : first + count] = 0 if name in _OWN else getattr(blocks, name)
        self._table = None
        return self.numbers.append(count)

    def keep(self, kept: Bools) -> None:
        """Take out the rows whose place is false in `kept`, bool [len]; the others move up.

        Column after column goes into an array of its new size, so that the peak is one above the
        sum; whoever still has a view of the old one keeps only that.
        """
        self._table = None
        rows = len(self)
        keys = KeyColumn(self._heap, self._offsets[: rows + 1]).take(kept)
        self._heap, self._offsets = keys.heap, keys.offsets
        del keys
        for name in self._columns:
            self._columns[name] = self._columns[name][:rows][kept]
        self.numbers.keep(kept)

    def _grow_rows(self, rows: int, *, exact: bool = False) -> None:
        capacity = len(self._columns["state"])
        if rows <= capacity:
            return
        capacity = rows if exact else max(rows, capacity * 3 // 2, _CAPACITY_MIN)
        # One column at a time, so that the peak is one column above the sum.
        used = len(self)
        for name in self._columns:
            self._columns[name] = _enlarged(self._columns[name], capacity, used)
        self._offsets = _enlarged(self._offsets, capacity + 1, used + 1)
        self._table = None

    def _grow_heap(self, key_bytes: int, *, exact: bool = False) -> None:
        capacity = len(self._heap)
        if key_bytes > capacity:
            capacity = key_bytes if exact else max(key_bytes, capacity * 3 // 2)
            self._heap = _enlarged(self._heap, capacity, int(self._offsets[len(self)]))
            self._table = None


def _enlarged(array: Column, capacity: int, used: int) -> Column:
    """A copy with room for `capacity` items; pages that are not used yet cost no memory."""
    result = np.empty(capacity, array.dtype)
    result[:used] = array[:used]
    return result
