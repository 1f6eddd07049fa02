"""Sharing blocks out over places with bounded room."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from snapd.plans.room import share_out


def test_places_are_filled_one_after_another() -> None:
    sizes = np.array([4, 4, 4, 4, 4], np.uint64)
    assert share_out(sizes, [9, 4]).tolist() == [0, 0, 1, -1, -1]
    assert share_out(sizes, []).tolist() == [-1] * 5
    assert share_out(np.zeros(0, np.uint64), [1]).tolist() == []


def test_a_cold_block_does_not_take_the_room_of_a_hot_one() -> None:
    assert share_out(np.array([10, 1], np.uint64), [9]).tolist() == [-1, -1]


@given(st.lists(st.integers(0, 2**40)), st.lists(st.integers(0, 2**42), max_size=5))
def test_no_place_gets_more_than_it_has_room_for(sizes: list[int], rooms: list[int]) -> None:
    places = share_out(np.array(sizes, np.uint64), rooms)
    for place, room in enumerate(rooms):
        assert sum(np.array(sizes, np.uint64)[places == place].tolist()) <= room
    placed = places[places >= 0]
    assert (np.diff(placed) >= 0).all(), "in their order"
    assert (places[: len(placed)] >= 0).all(), "none after one that found no room"
