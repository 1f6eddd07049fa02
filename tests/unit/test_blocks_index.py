"""HashIndex at its limits: full, overfull, one bucket, a million entries, bad geometry."""

import numpy as np
import numpy.typing as npt
import pytest

from snapd.blocks import HashIndex
from snapd.blocks.index import BUCKET_ENTRIES, bucket_count

Index64 = npt.NDArray[np.int64]


def always(queries: Index64, numbers: Index64) -> npt.NDArray[np.bool_]:
    return np.ones(len(numbers), np.bool_)


def same_number(queries: Index64, numbers: Index64) -> npt.NDArray[np.bool_]:
    return queries == numbers


@pytest.mark.parametrize("capacity", [0, 1, 4, 5, 8, 9, 1000, 65_536, 1_000_000])
def test_capacity_fits_at_half_load(capacity: int) -> None:
    buckets = bucket_count(capacity)
    assert buckets & (buckets - 1) == 0
    assert 2 * capacity <= buckets * BUCKET_ENTRIES or capacity == 0
    assert buckets == 1 or buckets * BUCKET_ENTRIES < 4 * capacity


@pytest.mark.parametrize(("rows", "width", "counts"), [(3, 8, 3), (4, 8, 8), (4, 7, 4)])
def test_arrays_of_another_geometry_are_refused(rows: int, width: int, counts: int) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        HashIndex(np.zeros((rows, width), np.uint64), np.zeros(counts, np.uint32))


def test_empty_batches_do_nothing() -> None:
    index = HashIndex.allocate(10)
    no_hashes, no_numbers = np.empty(0, np.uint64), np.empty(0, np.int64)
    index.insert(no_hashes, no_numbers)
    index.replace(no_hashes, no_numbers, no_numbers)
    assert index.remove(no_hashes, no_numbers) == 0
    assert index.find(no_hashes, always).shape == (0,)
    assert not index.entries.any()


def test_a_table_can_be_filled_to_its_last_entry_from_one_home_bucket() -> None:
    index = HashIndex(np.zeros((4, 8), np.uint64), np.zeros(4, np.uint32))
    hashes = np.full(32, 3, np.uint64)  # all at home in the last bucket: the rest wraps around
    numbers = np.arange(32)
    index.insert(hashes, numbers)
    assert index.find(hashes, same_number).tolist() == numbers.tolist()
    assert index.displaced.tolist() == [16, 8, 0, 24]
    assert index.remove(hashes, numbers) == 32
    assert not index.displaced.any()


def test_an_insert_into_a_full_table_says_so_and_loses_nothing() -> None:
    index = HashIndex(np.zeros((2, 8), np.uint64), np.zeros(2, np.uint32))
    hashes = (np.arange(17, dtype=np.uint64) << np.uint64(32)) | np.uint64(1)
    numbers = np.arange(17)
    index.insert(hashes[:16], numbers[:16])
    with pytest.raises(OverflowError, match="full"):
        index.insert(hashes[16:], numbers[16:])
    assert index.find(hashes, always).tolist() == [*range(16), -1]


@pytest.mark.parametrize("number", [-1, 0xFFFFFFFF, 2**40])
def test_a_number_that_an_entry_cannot_hold_is_refused(number: int) -> None:
    index = HashIndex.allocate(4)
    with pytest.raises(OverflowError, match="does not fit"):
        index.insert(np.array([7], np.uint64), np.array([number]))
    assert not index.entries.any()


def test_the_largest_number_comes_back() -> None:
    index = HashIndex.allocate(4)
    hashes, numbers = np.array([2**64 - 1], np.uint64), np.array([0xFFFFFFFE])
    index.insert(hashes, numbers)
    assert index.find(hashes, always).tolist() == [0xFFFFFFFE]
    assert index.remove(hashes, numbers) == 1


def test_replacing_an_entry_that_is_not_there_is_an_error() -> None:
    index = HashIndex.allocate(4)
    index.insert(np.array([5], np.uint64), np.array([1]))
    with pytest.raises(KeyError):
        index.replace(np.array([5], np.uint64), np.array([2]), np.array([3]))


def test_a_removal_named_twice_in_a_batch_counts_once() -> None:
    """Counted twice, it would take the last entry's way-mark away and lose that key."""
    index = HashIndex(np.zeros((2, 8), np.uint64), np.zeros(2, np.uint32))
    hashes, numbers = np.zeros(10, np.uint64), np.arange(10)
    index.insert(hashes, numbers)
    assert index.displaced.tolist() == [2, 0]
    assert index.remove(hashes[:2], np.array([9, 9])) == 1
    assert index.displaced.tolist() == [1, 0]
    assert index.find(hashes, same_number).tolist() == [*range(9), -1]


@pytest.mark.parametrize("spread", [1, 3, 2**63])
def test_filling_an_empty_table_is_inserting(spread: int) -> None:
    hashes = np.random.default_rng(7).integers(0, spread, 60, np.uint64)
    numbers = np.random.default_rng(8).permutation(1000)[:60]
    filled, inserted = HashIndex.allocate(60), HashIndex.allocate(60)
    filled.fill(hashes, numbers)
    inserted.insert(hashes, numbers)
    assert filled.displaced.tolist() == inserted.displaced.tolist()
    expected = numbers
    found = filled.find(hashes, lambda queries, rows: rows == expected[queries])
    assert found.tolist() == expected.tolist()
    assert filled.remove(hashes, numbers) == 60
    assert not filled.entries.any()
    assert not filled.displaced.any()


def test_a_million_entries_are_found_and_only_they() -> None:
    count = 1_000_000
    hashes = np.random.default_rng(11).integers(0, 2**64, 2 * count, np.uint64)
    index = HashIndex.allocate(count)
    for first in range(0, count, 100_000):
        part = slice(first, first + 100_000)
        index.insert(hashes[part], np.arange(count)[part])
    assert np.array_equal(index.find(hashes[:count], same_number), np.arange(count))
    assert (index.find(hashes[count:], lambda q, n: n == q + count) == -1).all()
    assert index.entries.nbytes + index.displaced.nbytes <= 36 * count
