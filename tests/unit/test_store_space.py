"""Space: reserved together, given back together, never beyond the memory that is there."""

from __future__ import annotations

import numpy as np

from snapd.formats.segment import SLOT_DTYPE, Geometry
from snapd.segment.extents import SortedExtents
from snapd.segment.tally import Tallies
from snapd.store.book import SlotBook
from snapd.store.space import Space

NOTHING = np.empty(0, np.int64)


class SlowGrowth:
    """Allocates only when somebody waits, and then a little more than asked for."""

    def __init__(self) -> None:
        self.allocated_units = 10
        self.waits = 0

    def wait_for(self, units: int) -> None:
        self.waits += 1
        self.allocated_units = min(units + 3, 100)


def space_of(growth: SlowGrowth, slots: int = 64) -> tuple[Space, SlotBook]:
    geometry = Geometry.plan(bytes(16), 100 * 4096, slots)
    shared = np.zeros(slots, SLOT_DTYPE)
    book = SlotBook(
        shared, shared.copy(), shared["state"].copy(), Tallies(np.zeros(4096, np.uint8), bytes(16))
    )
    nothing = SortedExtents(NOTHING, NOTHING)
    return Space(book, geometry, growth, nothing, nothing), book


def test_extents_are_handed_out_only_where_memory_is() -> None:
    growth = SlowGrowth()
    space, _ = space_of(growth)
    for units in (4, 4, 4, 30, 1, 1, 40):
        got = space.reserve(np.array([units]), np.array([1]))
        assert got.slots[0] >= 0
        assert int(got.extents[0]) + units <= growth.allocated_units
    assert 0 < growth.waits <= 4


def test_what_cannot_be_had_whole_is_not_taken_in_part() -> None:
    growth = SlowGrowth()
    space, book = space_of(growth, slots=8)
    names = space.free_key_units
    got = space.reserve(np.array([60, 60, 5]), np.array([1, 1, 1]))
    assert (got.slots >= 0).tolist() == [True, False, True]
    assert space.used_units == 65
    assert book.free_count == 6
    assert space.free_key_units == names - 2
    got = space.reserve(np.full(10, 1), np.full(10, 1))
    assert (got.slots >= 0).sum() == 6
    assert space.used_units == 71


def test_cold_blocks_take_keys_and_slots_alone() -> None:
    space, book = space_of(SlowGrowth())
    got = space.reserve(np.zeros(3, np.int64), np.full(3, 2))
    assert got.extents.tolist() == [0, 0, 0]
    assert space.used_units == 0
    assert book.free_count == 61
