"""`TracedHeat`: what clients' look-ups say about blocks, for everybody who puts blocks in order.

A block of a page that was traced is as hot as the page, whatever reads of its own the store
counted: so K and V, and all ranks' parts, come and go together. Blocks of other pages, and those
whose keys name no page, keep the heat that their store gives them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np

from snapd.attach.port import Source
from snapd.blocks import BlockTable, KeyColumn, page_ids
from snapd.blocks.keys import I64, U64
from snapd.blocks.table import F32
from snapd.plans.pageheat import UNKNOWN_DEPTH, PageHeat, PageRanks, Touches
from snapd.repository import Catalog

PAGES_MAX = 1 << 20
"""Most pages that heat is kept of: 50 MB."""

_ROWS_AT_A_TIME = 1 << 16


class HasCatalog(Protocol):
    """A repository; its catalog is read once it has been recovered."""

    @property
    def catalog(self) -> Catalog:
        """Every block on disk."""


class TracedHeat:
    """Used by the receiver, the flusher and the warm-up at once. Costs nothing until somebody
    traces: then 16 bytes for each block on disk and 48 for each page."""

    def __init__(
        self,
        repository: HasCatalog,
        *,
        pages_max: int = PAGES_MAX,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock` is one that is not set back."""
        self._repository = repository
        self._clock = clock
        self._lock = threading.Lock()
        self._pages = PageHeat(pages_max)
        self._has_begun = False
        self._row_page: U64 = np.empty(0, np.uint64)
        """Pages of the catalog's rows, ascending, so that they are looked up in order."""
        self._row: I64 = np.empty(0, np.int64)
        self._rows_end = 0
        """Rows from this one on have not been looked at."""

    @property
    def pages(self) -> int:
        """Pages that heat is known of."""
        return len(self._pages)

    @property
    def half_life_seconds(self) -> float:
        """In which a look-up loses half its weight now."""
        return self._pages.half_life_seconds

    def fold(self, touches: Touches) -> None:
        """Count look-ups, which were made by now on the clock of this object."""
        with self._lock:
            now = self._clock()
            if not self._has_begun:
                self._begin(now)
            self._pages.fold(touches, now)
            self._pages.forget_cold(now)

    def ranks(self, keys: KeyColumn, own_heat: F32) -> PageRanks:
        """What decides the order of n blocks; `own_heat` float32 [n] is what their store says."""
        if not self.pages:
            return _untraced(own_heat)
        pages = page_ids(keys)
        with self._lock:
            return self._pages.ranks(pages, own_heat, self._clock())

    def ranks_of_slots(self, source: Source, slots: I64) -> PageRanks:
        """As `ranks`, of what is in slots of a store; what cannot be described has its own heat."""
        own = source.heat(slots)
        if not self.pages:
            return _untraced(own)
        result = _untraced(own)
        for at in range(0, len(slots), _ROWS_AT_A_TIME):
            part = slots[at : at + _ROWS_AT_A_TIME]
            table = source.describe(part)
            place = at + np.flatnonzero(np.isin(part, table.slot))
            ranks = self.ranks(table.keys, own[place])
            result.heat[place], result.depth[place] = ranks.heat, ranks.depth
            result.page[place] = ranks.page
        return result

    def heat_of_slots(self, source: Source, slots: I64) -> F32:
        """The heat of what is in slots of a store, float32 [n]."""
        return self.ranks_of_slots(source, slots).heat

    def warmed(self, table: BlockTable) -> BlockTable:
        """The same blocks with the heat that they have for the disk."""
        if not self.pages:
            return table
        return table.with_columns(heat=self.ranks(table.keys, table.heat).heat)

    def update_catalog(self) -> None:
        """Give every block on disk whose page was traced the heat of its page."""
        if not self.pages:
            return
        with self._lock:
            now = self._clock()
            self._pages.forget_cold(now)
            self._follow_rows()
            own = np.full(len(self._row), -1.0, np.float32)
            heat = self._pages.ranks(self._row_page, own, now).heat
            known = np.flatnonzero(heat >= 0)
            self._repository.catalog.set_heat(self._row[known], heat[known])

    # --- inside; the caller holds the lock ----------------------------------------------------

    def _begin(self, now: float) -> None:
        """Pages begin where what the manifest kept left them."""
        self._has_begun = True
        self._follow_rows()
        catalog = self._repository.catalog
        live = catalog.is_live(self._row)
        self._pages.seed(self._row_page[live], catalog.column("heat", self._row[live]), now)

    def _follow_rows(self) -> None:
        """Look at the rows that are new in the catalog; drop those that are gone from it when
        they are many."""
        catalog = self._repository.catalog
        if len(self._row) > 2 * len(catalog):
            kept = np.isin(self._row, catalog.rows())
            self._row_page, self._row = self._row_page[kept], self._row[kept]
        new = catalog.rows()
        new = new[np.searchsorted(new, self._rows_end) :]
        if not len(new):
            return
        self._rows_end = int(new[-1]) + 1
        pages = np.concatenate([page_ids(keys) for keys in _keys_of(catalog, new)])
        page = np.concatenate([self._row_page, pages[pages != 0]])
        row = np.concatenate([self._row, new[pages != 0]])
        order = np.argsort(page, kind="stable")
        self._row_page, self._row = page[order], row[order]


def _keys_of(catalog: Catalog, rows: I64) -> Iterator[KeyColumn]:
    for at in range(0, len(rows), _ROWS_AT_A_TIME):
        yield catalog.take(rows[at : at + _ROWS_AT_A_TIME]).keys


def _untraced(own_heat: F32) -> PageRanks:
    rows = len(own_heat)
    depth = np.full(rows, UNKNOWN_DEPTH, np.int64)
    return PageRanks(own_heat.astype(np.float32, copy=True), depth, np.zeros(rows, np.uint64))
