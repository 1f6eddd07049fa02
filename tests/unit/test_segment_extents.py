"""Extents: nothing is handed out twice, nothing is lost, pieces become whole again."""

from __future__ import annotations

import numpy as np
import pytest

from snapd.segment.extents import ExtentAllocator, SortedExtents

SEED = 4711


def lengths_of(*values: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array(values, np.int64)


def full(capacity: int) -> ExtentAllocator:
    allocator = ExtentAllocator()
    allocator.release(lengths_of(0), lengths_of(capacity))
    return allocator


def test_extents_never_overlap_and_none_is_lost_under_churn() -> None:
    generator = np.random.default_rng(SEED)
    capacity = 5000
    allocator = full(capacity)
    owner = np.full(capacity, -1)
    held: dict[int, tuple[int, int]] = {}
    for step in range(600):
        if generator.random() < 0.55:
            wanted = generator.choice([1, 1, 1, 4, 7, 64, 300], generator.integers(1, 20))
            for start, length in zip(
                allocator.allocate(wanted.astype(np.int64)).tolist(), wanted.tolist(), strict=True
            ):
                if start >= 0:
                    assert (owner[start : start + length] == -1).all(), (SEED, step)
                    owner[start : start + length] = step
                    held[start] = (start, length)
        elif held:
            chosen = generator.choice(list(held), min(len(held), 12), replace=False).tolist()
            gone = [held.pop(start) for start in chosen]
            for start, length in gone:
                owner[start : start + length] = -1
            allocator.release(*(lengths_of(*part) for part in zip(*gone, strict=True)))
        assert allocator.free_units == int((owner == -1).sum())
    rest = list(held.values())
    if rest:
        allocator.release(*(lengths_of(*part) for part in zip(*rest, strict=True)))
    assert allocator.longest() == capacity


def test_a_large_extent_is_found_in_merged_neighbours() -> None:
    allocator = full(64)
    starts = allocator.allocate(np.ones(64, np.int64))
    assert sorted(starts.tolist()) == list(range(64))
    assert allocator.allocate(lengths_of(1)).tolist() == [-1]
    allocator.release(starts[:32], np.ones(32, np.int64))
    assert (allocator.allocate(lengths_of(32)) >= 0).all()
    assert allocator.free_units == 0


def test_a_huge_gap_is_cut_without_listing_its_pieces() -> None:
    allocator = full(2**31)
    assert allocator.allocate(np.full(4, 3)).tolist() == [0, 3, 6, 9]
    assert allocator.free_units == 2**31 - 12


def test_releasing_twice_is_noticed() -> None:
    allocator = full(16)
    start = allocator.allocate(lengths_of(4))
    allocator.release(start, lengths_of(4))
    allocator.release(start, lengths_of(4))
    with pytest.raises(AssertionError, match="twice"):
        allocator.longest()


def test_gaps_and_overlaps_against_a_bitmap() -> None:
    generator = np.random.default_rng(SEED)
    for _ in range(200):
        count, capacity = int(generator.integers(0, 12)), 60
        starts = generator.integers(0, 50, count)
        lengths = generator.integers(1, 10, count)
        depth = np.zeros(capacity, np.int64)
        for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
            depth[start : start + length] += 1
        extents = SortedExtents(starts, lengths)
        free = np.zeros(capacity, np.bool_)
        for start, length in zip(*(part.tolist() for part in extents.gaps(capacity)), strict=True):
            free[start : start + length] = True
        assert (free == (depth == 0)).all()
        shared = [
            bool((depth[s : s + n] > 1).any())
            for s, n in zip(starts.tolist(), lengths.tolist(), strict=True)
        ]
        assert SortedExtents.overlapping(starts, lengths).tolist() == shared
        assert extents.overlap == any(shared)
