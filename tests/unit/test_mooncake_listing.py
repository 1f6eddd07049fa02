"""What a listing says beside what was known; how much is looked at, and when."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapd.plans.listing import ForeignKeys, diff_listing, oldest_first, seconds_to_next_look

SLOTS = st.sets(st.integers(0, 60), max_size=40)


@given(resident=SLOTS, listed=SLOTS, unknown=st.integers(0, 5), seed=st.integers(0, 2**32))
def test_a_diff_is_that_of_two_sets(
    resident: set[int], listed: set[int], unknown: int, seed: int
) -> None:
    slots = np.array([*listed, *[-1] * unknown], np.int64)
    np.random.default_rng(seed).shuffle(slots)
    known = np.array(sorted(resident), np.int64)
    diff = diff_listing(slots, known)
    assert known[diff.kept].tolist() == sorted(resident & listed)
    assert slots[diff.kept_rows].tolist() == known[diff.kept].tolist()
    assert known[diff.vanished].tolist() == sorted(resident - listed)


def test_the_oldest_look_comes_first_and_bytes_are_bounded() -> None:
    looked = np.array([5, 0, 3, 0, 9], np.uint64)
    sizes = np.full(5, 10, np.uint64)
    assert oldest_first(looked, sizes, bytes_max=30, rows_max=9).tolist() == [1, 2, 3]
    assert oldest_first(looked, sizes, bytes_max=30, rows_max=2).tolist() == [1, 3]
    assert oldest_first(looked, sizes, bytes_max=1, rows_max=9).tolist() == [1]
    assert oldest_first(looked[:0], sizes[:0], bytes_max=1, rows_max=9).tolist() == []


@pytest.mark.parametrize(
    ("poll", "look", "wait"), [(5.0, 0.1, 4.9), (5.0, 0.5, 4.5), (5.0, 2.0, 18.0), (0.1, 0.0, 0.1)]
)
def test_looks_take_at_most_a_tenth_of_the_time(poll: float, look: float, wait: float) -> None:
    assert seconds_to_next_look(poll, look) == pytest.approx(wait)


def test_other_hosts_keys_are_located_in_turn() -> None:
    """However many there are, all of them within a few looks, and a bounded share in each."""
    hashes = np.arange(1, 101, dtype=np.uint64)
    foreign = ForeignKeys()
    first = foreign.to_locate(hashes, rows_min=1, parts=8)
    assert first.all()
    foreign.update(hashes, first, first, look=1)
    assert len(foreign) == 100
    seen = np.zeros(100, np.bool_)
    for look in range(2, 10):
        located = foreign.to_locate(hashes, rows_min=1, parts=8)
        assert located.sum() <= 13
        foreign.update(hashes, located, located, look=look)
        seen |= located
    assert seen.all()


def test_a_foreign_key_that_became_ours_or_went_is_not_foreign_any_more() -> None:
    hashes = np.array([3, 1, 2], np.uint64)
    everything = np.ones(3, np.bool_)
    foreign = ForeignKeys()
    foreign.update(hashes, everything, everything, look=1)
    foreign.update(hashes, everything, np.array([True, False, True]), look=2)
    assert len(foreign) == 2
    assert foreign.to_locate(np.array([1], np.uint64), rows_min=0, parts=8).all()
    foreign.update(hashes[:1], everything[:1], everything[:1], look=3)
    assert len(foreign) == 1
