"""`Catalog`: every block version in every pack, as one growing table with an index by key."""

from __future__ import annotations

import threading
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from snapd.blocks import BlockTable, HashIndex, KeyColumn, is_newer
from snapd.blocks.keys import I64, U8, U64, Bools
from snapd.blocks.table import DTYPES, F32
from snapd.formats.removals import Removals

_ABSENT = frozenset({"slot", "slot_sequence", "offset"})
"""Columns of a listing of a segment: a catalog holds none, so they cost no memory."""
_CAPACITY_MIN = 1024
Column = npt.NDArray[Any]


class RowState(IntEnum):
    """Whether a version is live, and if not, why."""

    LIVE = 0
    EVICTED = 1
    """Left the live set although nothing newer exists; live again if the same bytes come back."""
    SUPERSEDED = 2
    """There is a newer version, or a newer copy of this one. Never live again."""
    REMOVED = 3
    """Removed, or of an epoch that has ended. Never live again."""
    RETIRED = 4
    """Not live in the manifest that it was recovered from; why is not known. Never live again."""
    LOST = 5
    """Its bytes or its pack are gone or bad. Never live again."""


class Added(NamedTuple):
    """What `Catalog.add` did."""

    rows: I64
    """Row of each block of the table, int64 [n]."""
    superseded: I64
    """Rows that were the newest of their keys and have a newer version now, int64 [m]."""


class Catalog:
    """n block versions; a row keeps its number for as long as this object lives.

    One lock, inside, serialises changes and look-ups. The arrays that `table`, `live` and `state`
    give are views: rows do not move, values in them may change while they are looked at.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.epoch = 0
        """Epoch of the repository: rows of earlier ones are removed."""
        self._rows = 0
        self._columns: dict[str, Column] = {
            name: np.empty(0, dtype) for name, dtype in DTYPES.items() if name not in _ABSENT
        }
        self._state: U8 = np.empty(0, np.uint8)
        self._heap: U8 = np.empty(0, np.uint8)
        self._offsets: I64 = np.zeros(1, np.int64)
        self._index = HashIndex.allocate(_CAPACITY_MIN)
        self._indexed = 0
        self._table: BlockTable | None = None

    def __len__(self) -> int:
        return self._rows

    @property
    def table(self) -> BlockTable:
        """All rows, dead ones included."""
        with self.lock:
            if self._table is None:
                rows = self._rows
                columns: dict[str, Column] = {
                    name: np.broadcast_to(np.zeros((), dtype), rows)
                    if name in _ABSENT
                    else self._columns[name][:rows]
                    for name, dtype in DTYPES.items()
                }
                keys = KeyColumn(self._heap[: self._offsets[rows]], self._offsets[: rows + 1])
                self._table = BlockTable(keys=keys, **columns)
            return self._table

    @property
    def state(self) -> U8:
        """`RowState` of each row, uint8 [n]."""
        with self.lock:
            return self._state[: self._rows]

    @property
    def live(self) -> Bools:
        """Which rows are live, bool [n]; a copy."""
        result: Bools = self.state == RowState.LIVE
        return result

    def take(self, rows: I64 | Bools) -> BlockTable:
        """These rows as a table of their own."""
        return self.table.take(rows)

    def find(self, keys: KeyColumn, hashes: U64) -> I64:
        """The newest row of each key, dead or alive, int64 [n]; -1 where the key is unknown."""
        with self.lock:
            known = self.table.keys
            return self._index.find(hashes, lambda query, row: known.equal(row, keys, query))

    def reserve(self, rows: int, key_bytes: int) -> None:
        """Make room for this many more rows and bytes of keys at once."""
        with self.lock:
            self._grow_rows(self._rows + rows, exact=True)
            self._grow_heap(int(self._offsets[self._rows]) + key_bytes, exact=True)
            self._grow_index(self._indexed + rows)

    def add(self, blocks: BlockTable, live: Bools | None = None) -> Added:
        """Append the blocks of a pack. `live` bool [n] says which were live in the manifest that
        names the pack; None, that it was sealed after it, or just now.

        Of each key only the newest version stays live, whatever the order in which packs come. A
        second copy of a version (from compaction) takes over from the first. Rows of epochs that
        have ended are dead from the start.
        """
        with self.lock:
            rows = self._append(blocks)
            state = np.zeros(len(rows), np.uint8)
            if live is not None:
                state[~live] = RowState.RETIRED
            newest = newest_versions(blocks)
            state[~newest] = RowState.SUPERSEDED
            superseded = self._enter(blocks, rows, state, np.flatnonzero(newest), live)
            state[blocks.epoch < np.uint32(self.epoch)] = RowState.REMOVED
            self._state[rows] = state
            return Added(rows, superseded)

    def remove(self, removals: Removals) -> I64:
        """Kill every version that the removals cover; returns the rows that were live."""
        with self.lock:
            found = self.find(removals.keys, removals.key_hash)
            known = np.flatnonzero(found >= 0)
            rows = found[known]
            table = self.table
            newer = is_newer(
                (table.epoch[rows], table.incarnation[rows], table.sequence[rows]),
                (removals.epoch[known], removals.incarnation[known], removals.sequence[known]),
            )
            rows = np.unique(rows[~newer])
            was_live: I64 = rows[self._state[rows] == RowState.LIVE]
            self._state[rows] = RowState.REMOVED
            return was_live

    def remove_all(self, epoch: int) -> I64:
        """Begin an epoch: every row of an earlier one dies; returns the rows that were live."""
        with self.lock:
            self.epoch = max(self.epoch, epoch)
            old = np.flatnonzero(self.table.epoch < np.uint32(self.epoch))
            was_live: I64 = old[self._state[old] == RowState.LIVE]
            self._state[old] = RowState.REMOVED
            return was_live

    def set_live(self, rows: I64, live: bool) -> Bools:
        """Evict rows from the live set, or bring evicted ones back; bool [n], which rows are so
        now. What was superseded, removed, retired or lost stays dead."""
        before, after = (
            (RowState.EVICTED, RowState.LIVE) if live else (RowState.LIVE, RowState.EVICTED)
        )
        with self.lock:
            change = rows[self._state[rows] == before]
            self._state[change] = after
            result: Bools = self._state[rows] == after
            return result

    def set_lost(self, rows: I64) -> None:
        """Kill rows whose bytes are gone or bad."""
        with self.lock:
            self._state[rows] = RowState.LOST

    def set_heat(self, rows: I64, heat: F32) -> None:
        """Set the heat of rows."""
        with self.lock:
            self._columns["heat"][rows] = heat

    def forget(self, rows: I64) -> None:
        """Take rows of a deleted pack out of the index; their numbers stay taken."""
        with self.lock:
            self._state[rows] = RowState.LOST
            self._indexed -= self._index.remove(self.table.key_hash[rows], rows)

    # --- inside -------------------------------------------------------------------------------

    def _enter(
        self, blocks: BlockTable, rows: I64, state: U8, newest: I64, live: Bools | None
    ) -> I64:
        """Put the newest versions of a table into the index, each against the row that is there.

        Changes `state` [n] of the table's rows and the state of rows that were there; returns the
        rows that were superseded by a newer version.
        """
        keys = blocks.keys if len(newest) == len(blocks) else blocks.keys.take(newest)
        old = self.find(keys, blocks.key_hash[newest])
        fresh = newest[old < 0]
        self._grow_index(self._indexed + len(fresh))
        self._index.insert(blocks.key_hash[fresh], rows[fresh])
        self._indexed += len(fresh)

        new, old = newest[old >= 0], old[old >= 0]
        if not len(new):
            return old
        table = self.table
        new_version = (blocks.epoch[new], blocks.incarnation[new], blocks.sequence[new])
        old_version = (table.epoch[old], table.incarnation[old], table.sequence[old])
        older = is_newer(old_version, new_version)
        newer = is_newer(new_version, old_version)
        state[new[older]] = RowState.SUPERSEDED
        copy = ~older & ~newer
        if live is None:
            # A copy is no news about its version: if that was dead, it still is.
            state[new[copy]] = self._state[old[copy]]
        winner = ~older
        self._state[old[winner]] = RowState.SUPERSEDED
        self._index.replace(blocks.key_hash[new[winner]], old[winner], rows[new[winner]])
        return old[newer]

    def _append(self, blocks: BlockTable) -> I64:
        first, count = self._rows, len(blocks)
        keys = blocks.keys
        heap = keys.heap[keys.offsets[0] : keys.offsets[-1]]
        start = int(self._offsets[first])
        self._grow_rows(first + count)
        self._grow_heap(start + len(heap))
        self._heap[start : start + len(heap)] = heap
        self._offsets[first : first + count + 1] = keys.offsets - keys.offsets[0] + start
        for name, column in self._columns.items():
            column[first : first + count] = getattr(blocks, name)
        self._state[first : first + count] = RowState.LOST
        self._rows = first + count
        self._table = None
        return np.arange(first, first + count)

    def _grow_rows(self, rows: int, *, exact: bool = False) -> None:
        capacity = len(self._state)
        if rows <= capacity:
            return
        capacity = rows if exact else max(rows, capacity * 3 // 2, _CAPACITY_MIN)
        # One column at a time, so that the peak is one column above the sum.
        for name in self._columns:
            self._columns[name] = _enlarged(self._columns[name], capacity, self._rows)
        self._state = _enlarged(self._state, capacity, self._rows)
        self._offsets = _enlarged(self._offsets, capacity + 1, self._rows + 1)
        self._table = None

    def _grow_heap(self, key_bytes: int, *, exact: bool = False) -> None:
        capacity = len(self._heap)
        if key_bytes > capacity:
            capacity = key_bytes if exact else max(key_bytes, capacity * 3 // 2)
            self._heap = _enlarged(self._heap, capacity, int(self._offsets[self._rows]))
            self._table = None

    def _grow_index(self, entries: int) -> None:
        """Keep the index at most half full; entries are put again into one twice the size."""
        if 2 * entries <= self._index.entries.size:
            return
        numbers, _ = self._index.numbers()
        size = max(2 * len(numbers), entries)
        self._index = HashIndex.allocate(size)
        self._index.insert(self._columns["key_hash"][numbers], numbers)


def newest_versions(blocks: BlockTable) -> Bools:
    """Which rows are the newest version of their key within the table, bool [n].

    Of equal versions the last one is. Only keys that are there twice cost more than a sort.
    """
    result: Bools = np.ones(len(blocks), np.bool_)
    order = np.argsort(blocks.key_hash, kind="stable")
    ranked = blocks.key_hash[order]
    same = ranked[1:] == ranked[:-1]
    if not bool(same.any()):
        return result
    twice = np.zeros(len(blocks), np.bool_)
    twice[order[1:][same]] = True
    twice[order[:-1][same]] = True
    rows = np.flatnonzero(twice)
    by_version = np.lexsort(
        (rows, blocks.sequence[rows], blocks.incarnation[rows], blocks.epoch[rows])
    )
    newest = {blocks.keys[row]: row for row in rows[by_version].tolist()}
    result[rows] = False
    result[list(newest.values())] = True
    return result


def _enlarged(array: Column, capacity: int, used: int) -> Column:
    """A copy with room for `capacity` items; pages that are not used yet cost no memory."""
    result = np.empty(capacity, array.dtype)
    result[:used] = array[:used]
    return result
