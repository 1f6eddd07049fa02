"""HashIndex against a dict: crowded buckets, shared tags, kills between any two writes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from snapd.blocks import HashIndex
from snapd.blocks.index import BUCKET_ENTRIES

BUCKETS = 8
CAPACITY = BUCKETS * BUCKET_ENTRIES

# Two home buckets at the end and one in the middle, so that entries spill and wrap; two tags, so
# that most candidates are the wrong key and only `match` can tell.
hashes = st.builds(
    lambda home, tag: (tag << 32) | home, st.sampled_from([3, 6, 7, 7, 7]), st.integers(0, 1)
)

Index64 = npt.NDArray[np.int64]


def new_index() -> HashIndex:
    return HashIndex(np.zeros((BUCKETS, BUCKET_ENTRIES), np.uint64), np.zeros(BUCKETS, np.uint32))


class Keys:
    """Keys by number: what a slot table or a catalog is to the index."""

    def __init__(self) -> None:
        self.hash_of_key: list[int] = []
        self.number_of_key: dict[int, int] = {}
        self.key_of_number: dict[int, int] = {}

    def hash_array(self, keys: list[int]) -> npt.NDArray[np.uint64]:
        return np.array([self.hash_of_key[key] for key in keys], np.uint64)

    def hash_of_numbers(self, numbers: Index64) -> npt.NDArray[np.uint64]:
        return self.hash_array([self.key_of_number[int(number)] for number in numbers])

    def matcher(self, keys: list[int]) -> Callable[[Index64, Index64], npt.NDArray[np.bool_]]:
        def match(queries: Index64, numbers: Index64) -> npt.NDArray[np.bool_]:
            pairs = zip(queries, numbers, strict=True)
            return np.array([self.key_of_number.get(int(n)) == keys[q] for q, n in pairs], np.bool_)

        return match


def exact_counts(index: HashIndex, keys: Keys) -> list[int]:
    """For each bucket, how many entries passed over it, counted one by one."""
    buckets = len(index.displaced)
    counts = [0] * buckets
    numbers, positions = index.numbers()
    for value, place in zip(
        keys.hash_of_numbers(numbers).tolist(), positions.tolist(), strict=True
    ):
        at = value % buckets
        while at != place // BUCKET_ENTRIES:
            counts[at] += 1
            at = (at + 1) % buckets
    return counts


class IndexMachine(RuleBasedStateMachine):
    """Insert, remove and renumber batches; after every step the index answers as the dict does."""

    @initialize()
    def start(self) -> None:
        self.index = new_index()
        self.keys = Keys()
        self.next_number = 0

    def numbers_of(self, keys: list[int]) -> Index64:
        return np.array([self.keys.number_of_key[key] for key in keys], np.int64)

    def some_present(self, picks: list[int]) -> list[int]:
        present = sorted(self.keys.number_of_key)
        return sorted({present[pick % len(present)] for pick in picks}) if present else []

    def number(self, key: int) -> None:
        self.keys.number_of_key[key] = self.next_number
        self.keys.key_of_number[self.next_number] = key
        self.next_number += 1

    @rule(batch=st.lists(hashes, max_size=20))
    def insert(self, batch: list[int]) -> None:
        batch = batch[: CAPACITY - len(self.keys.number_of_key)]
        first = len(self.keys.hash_of_key)
        self.keys.hash_of_key += batch
        added = list(range(first, first + len(batch)))
        for key in added:
            self.number(key)
        self.index.insert(self.keys.hash_array(added), self.numbers_of(added))

    @rule(picks=st.lists(st.integers(0, 63), max_size=25), again=st.booleans())
    def remove(self, picks: list[int], again: bool) -> None:
        gone = self.some_present(picks)
        listed = gone + gone[:2] if again else gone  # a caller may name a key twice in a batch
        removed = self.index.remove(self.keys.hash_array(listed), self.numbers_of(listed))
        assert removed == len(gone)
        for key in gone:
            del self.keys.key_of_number[self.keys.number_of_key.pop(key)]

    @rule(number=st.integers(1000, 2000), value=hashes)
    def remove_what_is_not_there(self, number: int, value: int) -> None:
        assert self.index.remove(np.array([value], np.uint64), np.array([number])) == 0

    @rule(picks=st.lists(st.integers(0, 63), max_size=10))
    def replace(self, picks: list[int]) -> None:
        moved = self.some_present(picks)
        old = self.numbers_of(moved)
        for key in moved:
            del self.keys.key_of_number[self.keys.number_of_key[key]]
            self.number(key)
        self.index.replace(self.keys.hash_array(moved), old, self.numbers_of(moved))

    @rule()
    def clear(self) -> None:
        self.index.clear()
        self.keys.number_of_key.clear()
        self.keys.key_of_number.clear()

    @invariant()
    def every_key_is_found_and_no_other(self) -> None:
        everything = list(range(len(self.keys.hash_of_key)))
        found = self.index.find(
            self.keys.hash_array(everything), self.keys.matcher(everything)
        ).tolist()
        assert found == [self.keys.number_of_key.get(key, -1) for key in everything]

    @invariant()
    def the_audit_lists_every_entry_once(self) -> None:
        numbers, positions = self.index.numbers()
        assert sorted(numbers.tolist()) == sorted(self.keys.key_of_number)
        assert len(set(positions.tolist())) == len(positions)

    @invariant()
    def the_counts_are_exact_without_kills(self) -> None:
        assert self.index.displaced.tolist() == exact_counts(self.index, self.keys)


TestIndexMachine = IndexMachine.TestCase


class KilledError(Exception):
    """The process died here."""


class Power:
    """Counts writes to both arrays and ends the process at one of them."""

    def __init__(self, kill_at: int, seed: int) -> None:
        self.left = kill_at
        self.random = np.random.default_rng(seed)

    def write(self, target: npt.NDArray[np.generic], after: npt.NDArray[np.generic]) -> None:
        """Let `after` reach the memory, or any part of what changed and then no more."""
        self.left -= 1
        changed = np.flatnonzero(target.reshape(-1) != after.reshape(-1))
        if self.left == 0:
            changed = changed[self.random.random(len(changed)) < 0.5]
        flat = target.reshape(-1)
        flat[changed] = after.reshape(-1)[changed]
        if self.left == 0:
            raise KilledError


class KillableArray(np.ndarray):
    """An array whose writes, single or scattered, go through a `Power`."""

    power: Power | None = None

    def __setitem__(self, place: object, value: object) -> None:
        plain = self.view(np.ndarray)
        after = plain.copy()
        after[place] = value
        self._write(plain, after)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        plain = [i.view(np.ndarray) if isinstance(i, KillableArray) else i for i in inputs]
        if method != "at" or inputs[0] is not self:
            return getattr(ufunc, method)(*plain, **kwargs)
        after = plain[0].copy()
        ufunc.at(after, *plain[1:])
        self._write(plain[0], after)
        return None

    def _write(self, plain: npt.NDArray[np.generic], after: npt.NDArray[np.generic]) -> None:
        if self.power is None:
            plain[...] = after
        else:
            self.power.write(plain, after)


def killable(index: HashIndex, power: Power) -> HashIndex:
    """The same memory, as seen by a process that will be killed."""
    entries, displaced = index.entries.view(KillableArray), index.displaced.view(KillableArray)
    entries.power = displaced.power = power
    return HashIndex(entries, displaced)


@given(
    before=st.lists(hashes, min_size=24, max_size=40),
    added=st.lists(hashes, max_size=16),
    removed=st.integers(1, 40),
    in_removal=st.booleans(),
    kill_at=st.integers(1, 5),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_kill_between_or_within_any_two_writes_hides_no_entry(
    *, before: list[int], added: list[int], removed: int, in_removal: bool, kill_at: int, seed: int
) -> None:
    index, keys = new_index(), Keys()
    keys.hash_of_key = before + added
    everything = list(range(len(before) + len(added)))
    keys.number_of_key = {key: key for key in everything}
    keys.key_of_number = {key: key for key in everything}
    old, new = everything[: len(before)], everything[len(before) :]
    index.insert(keys.hash_array(old), np.array(old, np.int64))

    settled, gone = old[:-removed], old[-removed:]  # the last ones in are the ones that spilled
    doomed = killable(index, Power(kill_at, seed))
    try:
        (index if in_removal else doomed).insert(keys.hash_array(new), np.array(new, np.int64))
        doomed.remove(keys.hash_array(gone), np.array(gone, np.int64))
    except KilledError:
        pass

    listed = sorted(index.numbers()[0].tolist())
    assert set(settled) <= set(listed)
    # What has an entry is found, half-inserted and half-removed keys included: no count is too low.
    assert index.find(keys.hash_array(listed), keys.matcher(listed)).tolist() == listed
    # With exact counts nothing else is found.
    index.displaced[:] = exact_counts(index, keys)
    found = index.find(keys.hash_array(everything), keys.matcher(everything)).tolist()
    assert found == [key if key in listed else -1 for key in everything]
    index.remove(keys.hash_array(listed), np.array(listed, np.int64))
    assert not index.displaced.any()
    assert not index.entries.any()


def test_the_killable_array_writes_in_part_and_then_dies() -> None:
    """The instrument itself: without a partial write the property above would prove little."""
    index = new_index()
    many = np.arange(8, dtype=np.uint64)
    with pytest.raises(KilledError):
        killable(index, Power(1, 1)).insert(many, np.arange(8))
    assert 0 < np.count_nonzero(index.entries) < 8
