"""`Space`: slots, data extents and key extents, reserved together and given back together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from snapd.blocks.keys import I64
from snapd.formats.segment import Geometry, Slots, SlotState, data_units, key_units
from snapd.segment.extents import ExtentAllocator, SortedExtents
from snapd.store.book import SlotBook


class Growth(Protocol):
    """How much of the data area may be handed out (`snapd.segment.DataGrowth`)."""

    @property
    def allocated_units(self) -> int:
        """Units, from the start of the data area, that have memory behind them."""

    def wait_for(self, units: int) -> None:
        """Block until so many are there, or all. Raises SegmentError."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """Space for n blocks, int64 [n] each: slot numbers, data and key heap starts in units.

    -1 in all three where there was none.
    """

    slots: I64
    extents: I64
    key_offsets: I64

    def put(self, rows: I64, others: Reservation) -> None:
        """Take over what was reserved later for these rows."""
        self.slots[rows] = others.slots
        self.extents[rows] = others.extents
        self.key_offsets[rows] = others.key_offsets


class Space:
    """What is free. `book` must hold only slots that passed the audit."""

    def __init__(
        self,
        book: SlotBook,
        geometry: Geometry,
        growth: Growth,
        data: SortedExtents,
        keys: SortedExtents,
    ) -> None:
        """`data` and `keys`: what the slots hold of the data area and of the key heap."""
        self._book = book
        self._geometry = geometry
        self._growth = growth
        self._frontier = growth.allocated_units
        self._data = ExtentAllocator()
        self._keys = ExtentAllocator()
        self._withheld: tuple[I64, I64] | None = None
        self.withheld_until_gone: set[int] = set()
        self._data.release(*data.gaps(self._frontier))
        self._keys.release(*keys.gaps(geometry.key_units))

    @property
    def capacity_units(self) -> int:
        """Units of the data area that blocks may have: all but what is withheld."""
        return self._geometry.data_units - self._withheld_units

    @property
    def usable_units(self) -> int:
        """Units that have memory behind them."""
        return self._frontier

    @property
    def used_units(self) -> int:
        """Units that hold blocks or wait for late writers."""
        return self._frontier - self._data.free_units - self._withheld_units

    @property
    def _withheld_units(self) -> int:
        # Not counted as used: no eviction could bring a store below its watermark then.
        return 0 if self._withheld is None else int(self._withheld[1].sum())

    @property
    def free_key_units(self) -> int:
        """Free units of the key heap."""
        return self._keys.free_units

    def is_short_of(self, units: I64) -> bool:
        """Whether extents of these lengths may not be found in what is free."""
        total, largest = int(units.sum()), int(units.max(initial=0))
        return self._data.free_units < total or self._data.longest() < largest

    def taken_beside(self, starts: I64, lengths: I64) -> tuple[I64, I64]:
        """What is neither free nor in these extents, as (starts, lengths)."""
        free, their_lengths = self._data.extents()
        known = SortedExtents(
            np.concatenate([starts, free]), np.concatenate([lengths, their_lengths])
        )
        return known.gaps(self._frontier)

    def withhold_gaps(self, writers: frozenset[int]) -> None:
        """Keep everything that is free now from use until none of these writers is left.

        A slot that was damaged may have been the reservation of one of them.
        """
        starts, lengths = self._data.extents()
        self._data = ExtentAllocator()
        self._withheld = starts, lengths
        self.withheld_until_gone = set(writers)

    def writers_gone(self, writers: set[int]) -> None:
        """These late writers are proven to be gone."""
        self.withheld_until_gone -= writers
        if self._withheld is not None and not self.withheld_until_gone:
            self._data.release(*self._withheld)
            self._withheld = None

    def reserve(self, units: I64, name_units: I64) -> Reservation:
        """Space for blocks of `units` (0 for a cold one) with keys of `name_units`, as far as it
        is free. Waits for the segment's growth rather than failing. Raises SegmentError."""
        count = len(units)
        slots, extents, names = (np.full(count, -1, np.int64) for _ in range(3))
        taken = self._book.take(count)
        some = len(taken)
        wants_data = np.flatnonzero(units[:some] > 0)
        extents[:some] = 0
        extents[wants_data] = self._allocate(units[wants_data])
        names[:some] = self._keys.allocate(name_units[:some])
        good = (extents >= 0) & (names >= 0)
        slots[:some] = taken
        bad = np.flatnonzero(~good)
        self._release(self._data, extents[bad], units[bad])
        self._release(self._keys, names[bad], name_units[bad])
        self._book.give_back(slots[bad][slots[bad] >= 0])
        for column in (slots, extents, names):
            column[bad] = -1
        return Reservation(slots, extents, names)

    def free(self, rows: I64) -> None:
        """Give slots back with their data and keys."""
        records = self._book.records[rows]
        self.free_data(records)
        self._keys.release(records["key_offset"].astype(np.int64), key_units(records["key_length"]))
        self._book.free(rows)

    def free_data(self, records: Slots) -> None:
        """Give back the data extents of those records that have one."""
        holds = np.isin(records["state"], (SlotState.WRITING, SlotState.PUBLISHED))
        held = records[holds]
        self._data.release(held["extent"].astype(np.int64), data_units(held["size"]))

    def _allocate(self, units: I64) -> I64:
        starts = self._data.allocate(units)
        while (starts < 0).any() and self._frontier < self._geometry.data_units:
            missing = np.flatnonzero(starts < 0)
            self._growth.wait_for(self._frontier + int(units[missing].sum()))
            grown = self._growth.allocated_units
            self._data.release(np.array([self._frontier]), np.array([grown - self._frontier]))
            self._frontier = grown
            starts[missing] = self._data.allocate(units[missing])
        return starts

    @staticmethod
    def _release(allocator: ExtentAllocator, starts: I64, lengths: I64) -> None:
        real = (starts >= 0) & (lengths > 0)
        allocator.release(starts[real], lengths[real])
