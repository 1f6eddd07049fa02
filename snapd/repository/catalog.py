"""`Catalog`: every block version in every pack, by a row number for life, with an index by key."""

from __future__ import annotations

import threading
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from snapd.blocks import BlockTable, HashIndex, KeyColumn, is_newer
from snapd.blocks.keys import I64, U8, U64, Bools
from snapd.blocks.table import F32
from snapd.formats.removals import Removals
from snapd.repository.columns import Column, RowColumns
from snapd.repository.numbers import GONE

SHRINK_ROWS_MIN = 4096
"""Forgotten rows below which it is not worth the copying to take them out."""
_CAPACITY_MIN = 1024
_INDEXED_ROWS = 1 << 18
"""Entries put into an index at a time, which bounds the memory of temporary columns."""

Rows = I64 | slice
"""Row numbers, int64 [n], or a stretch of them."""


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


_FORGOTTEN = int(RowState.LOST) + 1
"""State of a row whose pack is deleted and whose memory is not given back yet: lost, to others."""


class Added(NamedTuple):
    """What `Catalog.add` did."""

    rows: I64
    """Row of each block of the table, int64 [n]."""
    superseded: I64
    """Rows that were the newest of their keys and have a newer version now, int64 [m]."""


class Catalog:
    """Block versions by row. A row keeps its number for as long as this object lives, and no other
    row ever gets it; the memory of a row goes when its pack is deleted.

    So who holds a number over a time in which packs may go (a slot's row, a plan to load) can ask
    about it at any time: a row that is gone reads as `RowState.LOST`, with zeros in its columns and
    an empty key, and changes to it are passed over. It can be nothing else, and nobody else's.

    One lock, inside, serialises changes and look-ups. `rows` is int64 [n] everywhere, or a slice of
    rows that follow each other, such as `PackInfo.rows`; what a slice gives is a view, in which
    values may change while it is looked at.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.epoch = 0
        """Epoch of the repository: rows of earlier ones are removed."""
        self.ordinal_last = 0
        """Highest ordinal of an incarnation that any row ever had, also of rows that are gone."""
        self._store = RowColumns()
        self._index = HashIndex.allocate(_CAPACITY_MIN)
        self._indexed = 0
        self._forgotten = 0

    def __len__(self) -> int:
        """Rows in memory, dead ones included."""
        return len(self._store)

    # --- looking ------------------------------------------------------------------------------

    @property
    def rows_end(self) -> int:
        """The number that the next row gets: every row has one below it."""
        return self._store.numbers.end

    def rows(self) -> I64:
        """Every row in memory, dead ones included, int64, ascending."""
        with self.lock:
            return self._store.numbers.numbers(np.arange(len(self._store)))

    def live_rows(self) -> I64:
        """Rows that are live, int64, ascending."""
        with self.lock:
            live = self._store.at_places("state") == RowState.LIVE
            return self._store.numbers.numbers(np.flatnonzero(live))

    def live_totals(self) -> tuple[int, int]:
        """How many rows are live, and their sizes in bytes added up."""
        with self.lock:
            live = self._store.at_places("state") == RowState.LIVE
            return int(live.sum()), int(self._store.at_places("size").sum(where=live))

    def live_totals_by_fingerprint(self) -> dict[int, tuple[int, int]]:
        """`live_totals` of each fingerprint id that has live rows, most bytes first."""
        with self.lock:
            live = self._store.at_places("state") == RowState.LIVE
            ids = self._store.at_places("fingerprint")[live]
            sizes = self._store.at_places("size")[live]
        blocks = np.bincount(ids)
        # As floats sums are exact up to 2^53, 8 PiB.
        totals = np.bincount(ids, weights=sizes)
        used = np.flatnonzero(blocks)
        order = used[np.argsort(-totals[used], kind="stable")]
        return {one: (int(blocks[one]), int(totals[one])) for one in order.tolist()}

    def column(self, name: str, rows: Rows) -> Column:
        """A column of `BlockTable` at these rows."""
        with self.lock:
            return self._store.get(name, rows)

    def state_of(self, rows: Rows) -> U8:
        """`RowState` of each row, uint8 [n]; a copy."""
        with self.lock:
            raw = self._store.get("state", rows, missing=RowState.LOST)
            state: U8 = np.minimum(raw, np.uint8(RowState.LOST))
            return state

    def is_live(self, rows: Rows) -> Bools:
        """Which rows are live, bool [n]; a copy."""
        with self.lock:
            live: Bools = self._store.get("state", rows, missing=RowState.LOST) == RowState.LIVE
            return live

    def is_committed(self, rows: Rows) -> Bools:
        """Which rows the newest manifest has live, as far as `set_committed` said, bool [n]."""
        with self.lock:
            committed: Bools = self._store.get("committed", rows)
            return committed

    def take(self, rows: I64) -> BlockTable:
        """These rows as a table of their own."""
        with self.lock:
            return self._store.take(rows)

    def find(self, keys: KeyColumn, hashes: U64) -> I64:
        """The newest row of each key, dead or alive, int64 [n]; -1 where the key is unknown."""
        with self.lock:
            places = self._find(keys, hashes)
            known = np.flatnonzero(places >= 0)
            places[known] = self._store.numbers.numbers(places[known])
            return places

    def find_versions(self, blocks: BlockTable) -> I64:
        """The row of the newest copy of each of these versions, dead or alive, int64 [n]; -1 where
        the newest row of the key is of another version, or there is none."""
        with self.lock:
            places = self._find(blocks.keys, blocks.key_hash)
            known = np.flatnonzero(places >= 0)
            table, at = self._store.table, places[known]
            same = (
                (table.epoch[at] == blocks.epoch[known])
                & (table.incarnation[at] == blocks.incarnation[known])
                & (table.sequence[at] == blocks.sequence[known])
            )
            rows = np.full(len(blocks), -1, np.int64)
            rows[known[same]] = self._store.numbers.numbers(at[same])
            return rows

    def newest_copies(self, rows: I64) -> I64:
        """The row of the newest copy of the version in each row, int64 [n]; the row itself where it
        is that, or where nothing is known of it any more."""
        with self.lock:
            found = self.find_versions(self._store.take(rows))
            return np.where(found >= 0, found, rows)

    # --- changing -----------------------------------------------------------------------------

    def reserve(self, rows: int, key_bytes: int) -> None:
        """Make room for this many more rows and bytes of keys at once."""
        with self.lock:
            self._store.reserve(rows, key_bytes)
            self._grow_index(self._indexed + rows)

    def add(self, blocks: BlockTable, live: Bools | None = None) -> Added:
        """Append the blocks of a pack. `live` bool [n] says which were live in the manifest that
        names the pack; None, that it was sealed after it, or just now.

        Of each key only the newest version stays live, whatever the order in which packs come. A
        second copy of a version (from compaction) takes over from the first. Rows of epochs that
        have ended are dead from the start.
        """
        with self.lock:
            first = len(self._store)
            rows = self._store.append(blocks)
            if len(blocks):
                self.ordinal_last = max(self.ordinal_last, int(blocks.incarnation.max()))
            state = np.zeros(len(rows), np.uint8)
            if live is not None:
                state[~live] = RowState.RETIRED
            newest = newest_versions(blocks)
            state[~newest] = RowState.SUPERSEDED
            superseded = self._enter(blocks, first, state, np.flatnonzero(newest), live)
            state[blocks.epoch < np.uint32(self.epoch)] = RowState.REMOVED
            self._store.at_places("state")[first:] = state
            return Added(rows, self._store.numbers.numbers(superseded))

    def remove(self, removals: Removals) -> I64:
        """Kill every version that the removals cover; returns the rows that were live."""
        with self.lock:
            found = self._find(removals.keys, removals.key_hash)
            known = np.flatnonzero(found >= 0)
            places = found[known]
            table = self._store.table
            newer = is_newer(
                (table.epoch[places], table.incarnation[places], table.sequence[places]),
                (removals.epoch[known], removals.incarnation[known], removals.sequence[known]),
            )
            return self._kill(np.unique(places[~newer]))

    def remove_all(self, epoch: int) -> I64:
        """Begin an epoch: every row of an earlier one dies; returns the rows that were live."""
        with self.lock:
            self.epoch = max(self.epoch, epoch)
            state = self._store.at_places("state")
            old = self._store.at_places("epoch") < np.uint32(self.epoch)
            return self._kill(np.flatnonzero(old & (state != _FORGOTTEN)))

    def set_live(self, rows: I64, live: bool) -> Bools:
        """Evict rows from the live set, or bring evicted ones back; bool [n], which rows are so
        now. What was superseded, removed, retired or lost stays dead."""
        before, after = (
            (RowState.EVICTED, RowState.LIVE) if live else (RowState.LIVE, RowState.EVICTED)
        )
        with self.lock:
            self._store.put("state", rows[self.state_of(rows) == before], after)
            result: Bools = self.state_of(rows) == after
            return result

    def set_lost(self, rows: I64) -> None:
        """Kill rows whose bytes are gone or bad."""
        with self.lock:
            forgotten = self._store.get("state", rows, missing=_FORGOTTEN) == _FORGOTTEN
            self._store.put("state", rows[~forgotten], RowState.LOST)

    def set_heat(self, rows: I64, heat: F32) -> None:
        """Set the heat of rows."""
        with self.lock:
            self._store.put("heat", rows, heat)

    def cool(self, factor: float) -> None:
        """Multiply the heat of every row."""
        with self.lock:
            self._store.at_places("heat")[:] *= np.float32(factor)

    def set_committed(self, rows: I64) -> None:
        """A manifest is durable that has exactly these rows live."""
        with self.lock:
            self._store.at_places("committed")[:] = False
            self._store.put("committed", rows, 1)

    # --- leaving ------------------------------------------------------------------------------

    def forget(self, rows: I64) -> None:
        """Take rows of a pack that is deleted out of the index: they are lost. Their memory goes
        with the next `shrink`."""
        with self.lock:
            places = self._store.numbers.places(rows)
            places = places[places != GONE]
            state = self._store.at_places("state")
            self._forgotten += int((state[places] != _FORGOTTEN).sum())
            state[places] = _FORGOTTEN
            hashes = self._store.at_places("key_hash")[places]
            self._indexed -= self._index.remove(hashes, places)

    def shrink(self, rows_min: int = SHRINK_ROWS_MIN) -> int:
        """Give back the memory of forgotten rows, if they are at least `rows_min` and a quarter of
        all; returns how many rows went.

        The quarter bounds what this costs: each row is moved at most three times as often as rows
        leave. One column is copied at a time, so the peak is small.
        """
        with self.lock:
            forgotten = self._forgotten
            if not forgotten or forgotten < rows_min or 4 * forgotten < len(self):
                return 0
            kept = self._store.at_places("state") != _FORGOTTEN
            self._renumber_index(kept)
            self._store.keep(kept)
            self._forgotten = 0
            return forgotten

    # --- inside -------------------------------------------------------------------------------

    def _find(self, keys: KeyColumn, hashes: U64) -> I64:
        """As `find`, with places instead of rows: the index holds places, which fit 32 bits."""
        known = self._store.table.keys
        return self._index.find(hashes, lambda query, place: known.equal(place, keys, query))

    def _kill(self, places: I64) -> I64:
        """These rows are removed; the numbers of those that were live."""
        state = self._store.at_places("state")
        was_live = places[state[places] == RowState.LIVE]
        state[places] = RowState.REMOVED
        return self._store.numbers.numbers(was_live)

    def _enter(
        self, blocks: BlockTable, first: int, state: U8, newest: I64, live: Bools | None
    ) -> I64:
        """Put the newest versions of a table, whose rows are at places from `first` on, into the
        index, each against the row that is there.

        Changes `state` [n] of the table's rows and the state of rows that were there; returns the
        places of rows that were superseded by a newer version.
        """
        keys = blocks.keys if len(newest) == len(blocks) else blocks.keys.take(newest)
        old = self._find(keys, blocks.key_hash[newest])
        fresh = newest[old < 0]
        self._grow_index(self._indexed + len(fresh))
        self._index.insert(blocks.key_hash[fresh], first + fresh)
        self._indexed += len(fresh)

        new, old = newest[old >= 0], old[old >= 0]
        if not len(new):
            return old
        table, states = self._store.table, self._store.at_places("state")
        new_version = (blocks.epoch[new], blocks.incarnation[new], blocks.sequence[new])
        old_version = (table.epoch[old], table.incarnation[old], table.sequence[old])
        older = is_newer(old_version, new_version)
        newer = is_newer(new_version, old_version)
        state[new[older]] = RowState.SUPERSEDED
        copy = ~older & ~newer
        if live is None:
            # A copy is no news about its version: if that was dead, it still is.
            state[new[copy]] = states[old[copy]]
        winner = ~older
        if live is not None:
            # A manifest names the original and not the copy, because it was committed while the
            # copy's pack could not be read. The original is the one that counts.
            behind = copy & (state[new] != RowState.LIVE) & (states[old] == RowState.LIVE)
            state[new[behind]] = RowState.SUPERSEDED
            winner &= ~behind
        states[old[winner]] = RowState.SUPERSEDED
        self._index.replace(blocks.key_hash[new[winner]], old[winner], first + new[winner])
        return old[newer]

    def _grow_index(self, entries: int) -> None:
        """Keep the index at most half full; entries are put again into one twice the size."""
        if 2 * entries <= self._index.entries.size:
            return
        places, _ = self._index.numbers()
        self._index = HashIndex.allocate(max(2 * len(places), entries))
        self._insert_again(places)

    def _renumber_index(self, kept: Bools) -> None:
        """Put all entries again, into an index of the right size, with the places that rows have
        once only the `kept` ones are left."""
        places, _ = self._index.numbers()
        self._index = HashIndex.allocate(max(_CAPACITY_MIN, 3 * len(places) // 2))
        moved = np.cumsum(kept, dtype=np.int64)
        self._insert_again(places, moved)

    def _insert_again(self, places: I64, moved: I64 | None = None) -> None:
        hashes = self._store.at_places("key_hash")
        for at in range(0, len(places), _INDEXED_ROWS):
            part = places[at : at + _INDEXED_ROWS]
            self._index.insert(hashes[part], part if moved is None else moved[part] - 1)


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
