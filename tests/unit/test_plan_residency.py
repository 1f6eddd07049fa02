"""Bookkeeping of which slot holds which row."""

from __future__ import annotations

import numpy as np

from snapd.plans.residency import REJECTED, Residency, follow


def test_a_slot_answers_only_for_the_version_it_holds() -> None:
    residency = Residency(4)
    slots = np.array([1, 3], np.uint32)
    residency.settle(slots, np.array([10, 11], np.uint64), np.array([7, 8]), cold=False)
    asked = np.array([1, 3, 0, 9], np.uint32)
    rows = residency.rows_of(asked, np.array([10, 99, 0, 5], np.uint64))
    assert rows.tolist() == [7, -1, -1, -1]


def test_rows_follow_their_blocks_and_others_stay() -> None:
    old, new = np.array([7, 3, 9]), np.array([70, 30, 90])
    rows = np.array([3, 4, REJECTED, 9, 7, 100])
    assert follow(rows, old, new).tolist() == [30, 4, REJECTED, 90, 70, 100]
    assert follow(rows, old[:0], new[:0]).tolist() == rows.tolist()
    residency = Residency(6)
    slots = np.arange(6, dtype=np.uint32)
    residency.settle(slots, slots.astype(np.uint64) + 1, rows, cold=True)
    residency.repoint(old, new)
    assert residency.row.tolist() == [30, 4, REJECTED, 90, 70, 100]
    residency.repoint(old[:0], new[:0])
    assert residency.row.tolist() == [30, 4, REJECTED, 90, 70, 100]


def test_held_rows_are_those_of_all_slots_cold_or_not() -> None:
    residency = Residency(5)
    one = np.ones(1, np.uint64)
    residency.settle(np.array([0]), one, np.array([2]), cold=True)
    residency.settle(np.array([1]), one, np.array([0]), cold=False)
    residency.settle(np.array([2]), one, np.array([REJECTED]), cold=False)
    assert sorted(residency.held_rows().tolist()) == [0, 2]
    assert residency.cold_slots().tolist() == [0]
    residency.forget(np.array([0]))
    assert residency.held_rows().tolist() == [0]
    assert residency.not_held(np.array([3, 0, 2])).tolist() == [3, 2]
    assert residency.cold_slots().tolist() == []
