"""The client and a real store against a dictionary, with the store killed in between.

The store has room for everything, so that nothing is evicted, and leases that outlast the test.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from client_store import StoreProcess
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

KEYS = [f"key{number}" for number in range(6)]
SIZES = [1, 100, 4095, 4096, 4097, 20_000]
KILLS_MAX = 2
"""A start of the store takes a third of a second."""

keys = st.sampled_from(KEYS)
key_lists = st.lists(keys, min_size=1, max_size=8)
values = st.builds(
    lambda byte, size: bytes([byte]) * size, st.integers(1, 255), st.sampled_from(SIZES)
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreProcess]:
    directory: Path = tmp_path_factory.mktemp("client-model")
    with StoreProcess(directory, lease_sec=3600) as process:
        yield process


class ClientModel(RuleBasedStateMachine):
    """`model` is what the store must hold; `leased` the keys that it must not remove unforced, as
    far as that is known: a restart may forget leases."""

    store: StoreProcess

    @initialize()
    def begin(self) -> None:
        self.client = self.store.client()
        self.client.remove_all(force=True)
        self.model: dict[str, bytes] = {}
        self.leased: set[str] = set()
        self.forgotten: set[str] = set()
        self.kills = 0
        self.memory = np.zeros(9 * max(SIZES), np.uint8)
        self.client.register_buffer(self.memory.ctypes.data, len(self.memory))

    def teardown(self) -> None:
        self.client.close()

    @rule(key=keys, value=values)
    def put(self, key: str, value: bytes) -> None:
        assert self.client.put(key, value) == 0
        self.model.setdefault(key, value)

    @rule(pairs=st.lists(st.tuples(keys, values), min_size=1, max_size=8))
    def put_batch(self, pairs: list[tuple[str, bytes]]) -> None:
        names, contents = [key for key, _ in pairs], [value for _, value in pairs]
        assert self.client.put_batch(names, contents) == 0
        for key, value in pairs:
            self.model.setdefault(key, value)

    @rule(key=keys, value=values)
    def put_from(self, key: str, value: bytes) -> None:
        self.memory[: len(value)] = np.frombuffer(value, np.uint8)
        assert self.client.put_from(key, self.memory.ctypes.data, len(value)) == 0
        self.model.setdefault(key, value)

    @rule(key=keys, value=values, cuts=st.lists(st.integers(0, 20_000), max_size=4))
    def put_parts(self, key: str, value: bytes, cuts: list[int]) -> None:
        assert self.client.put_parts(key, *split(value, cuts)) == 0
        self.model.setdefault(key, value)

    @rule(pairs=st.lists(st.tuples(keys, values), min_size=1, max_size=4), gap=st.integers(0, 100))
    def put_from_several_places(self, pairs: list[tuple[str, bytes]], gap: int) -> None:
        addresses, sizes, reached = [], [], self.memory.ctypes.data
        for _, value in pairs:
            parts = split(value, [len(value) // 3, len(value) // 2])
            sizes.append(list(map(len, parts)))
            addresses.append([])
            for part in parts:
                addresses[-1].append(reached)
                ctypes.memmove(reached, part, len(part))
                reached += len(part) + gap
        names = [key for key, _ in pairs]
        codes = self.client.batch_put_from_multi_buffers(names, addresses, sizes)
        assert codes == [0] * len(pairs)
        for key, value in pairs:
            self.model.setdefault(key, value)

    @rule(pairs=st.dictionaries(keys, values, min_size=1, max_size=4))
    def upsert_batch(self, pairs: dict[str, bytes]) -> None:
        assert self.client.upsert_batch(list(pairs), list(pairs.values())) == 0
        self.model.update(pairs)
        self.forgotten |= self.leased & pairs.keys()
        self.leased -= pairs.keys()

    @rule(key=keys, value=values)
    def upsert(self, key: str, value: bytes) -> None:
        assert self.client.upsert(key, value) == 0
        self.model[key] = value
        self.forgotten |= self.leased & {key}
        self.leased.discard(key)

    @rule(names=key_lists)
    def get_batch(self, names: list[str]) -> None:
        assert self.client.get_batch(names) == [self.model.get(key, b"") for key in names]
        self.lease(names)

    @rule(names=key_lists, capacity=st.sampled_from(SIZES))
    def batch_get_into(self, names: list[str], capacity: int) -> None:
        addresses = [self.memory.ctypes.data + row * capacity for row in range(len(names))]
        codes = self.client.batch_get_into(names, addresses, [capacity] * len(names))
        for row, (key, code) in enumerate(zip(names, codes, strict=True)):
            value = self.model.get(key)
            if value is None:
                assert code == -704
            elif len(value) > capacity:
                assert code == -600
            else:
                start = row * capacity
                assert self.memory[start : start + code].tobytes() == value
        self.lease(names)

    @rule(names=key_lists)
    def batch_get_buffer(self, names: list[str]) -> None:
        got = [handle and bytes(handle) for handle in self.client.batch_get_buffer(names)]
        assert got == [self.model.get(key) for key in names]
        self.lease(names)

    @rule(names=key_lists, cut=st.integers(1, 3), gap=st.integers(0, 100))
    def get_into_several_places(self, names: list[str], cut: int, gap: int) -> None:
        sizes = [len(self.model.get(key, b"x")) for key in names]
        parts = [[size // cut, size - size // cut] for size in sizes]
        starts = np.cumsum([0, *(size + 2 * gap for size in sizes)])[:-1].tolist()
        places = [[start, start + a + gap] for start, (a, _) in zip(starts, parts, strict=True)]
        base = self.memory.ctypes.data
        addresses = [[base + place for place in row] for row in places]
        codes = self.client.batch_get_into_multi_buffers(names, addresses, parts)
        for key, code, row, lengths in zip(names, codes, places, parts, strict=True):
            pieces = [
                self.memory[at : at + n].tobytes() for at, n in zip(row, lengths, strict=True)
            ]
            assert code == len(self.model[key]) if key in self.model else code == -704
            assert key not in self.model or b"".join(pieces) == self.model[key]
        self.lease(names)

    @rule(names=key_lists, source=st.integers(0, 5000), size=st.integers(0, 5000))
    def get_ranges(self, names: list[str], source: int, size: int) -> None:
        targets = [[row * size] for row in range(len(names))]
        count = len(names)
        ((codes),) = self.client.get_into_ranges(
            [self.memory.ctypes.data], [names], [targets], [[[source]] * count], [[[size]] * count]
        )
        for key, (code,), (target,) in zip(names, codes, targets, strict=True):
            value = self.model.get(key)
            if value is None:
                assert code == -704
            elif source + size > len(value):
                assert code == -600
            else:
                assert code == size
                assert self.memory[target : target + size].tobytes() == value[source:][:size]
        self.lease(names)

    @rule(digits=st.sets(st.integers(0, 5), min_size=1), force=st.booleans())
    def remove_by_regex(self, digits: set[int], force: bool) -> None:
        pattern = f"^key[{''.join(map(str, sorted(digits)))}]$"
        matching = {f"key{digit}" for digit in digits} & self.model.keys()
        unsure = matching & self.forgotten - self.leased
        gone = set(matching if force else matching - self.leased - unsure)
        count = self.client.remove_by_regex(pattern, force)
        if not force and unsure:
            there = self.client.batch_is_exist(sorted(unsure))
            gone |= {key for key, code in zip(sorted(unsure), there, strict=True) if not code}
            self.lease(sorted(unsure - gone))
        assert count == len(gone)
        self.drop(sorted(gone))

    @rule(names=key_lists)
    def exist(self, names: list[str]) -> None:
        assert self.client.batch_is_exist(names) == [int(key in self.model) for key in names]
        self.lease(names)

    @rule(key=keys)
    def size(self, key: str) -> None:
        expected = len(self.model[key]) if key in self.model else -704
        assert self.client.get_size(key) == expected

    @rule(key=keys, force=st.booleans())
    def remove(self, key: str, force: bool) -> None:
        code = self.client.remove(key, force)
        if key not in self.model:
            assert code == -704
        elif force or key not in self.leased | self.forgotten:
            assert code == 0
        elif key in self.leased:
            assert code == -706
        else:
            assert code in (0, -706)
        if code == 0:
            self.drop([key])

    @rule()
    def remove_all(self) -> None:
        assert self.client.remove_all(force=True) == len(self.model)
        self.drop(list(self.model))

    @precondition(lambda self: self.kills < KILLS_MAX)
    @rule()
    def kill(self) -> None:
        self.kills += 1
        self.store.restart()
        self.forgotten |= self.leased
        self.leased.clear()

    def lease(self, names: list[str]) -> None:
        self.leased |= set(names) & self.model.keys()

    def drop(self, names: list[str]) -> None:
        for key in names:
            del self.model[key]
            self.leased.discard(key)
            self.forgotten.discard(key)


def split(value: bytes, cuts: list[int]) -> list[bytes]:
    """The value in parts, some of them empty."""
    ends = sorted(min(cut, len(value)) for cut in cuts)
    return [value[a:b] for a, b in pairwise([0, *ends, len(value)])]


def test_the_store_holds_what_a_dictionary_would(store: StoreProcess) -> None:
    ClientModel.store = store
    run_state_machine_as_test(
        ClientModel, settings=settings(max_examples=8, stateful_step_count=40)
    )


@pytest.mark.long
def test_the_store_holds_what_a_dictionary_would_for_long(store: StoreProcess) -> None:
    ClientModel.store = store
    run_state_machine_as_test(
        ClientModel, settings=settings(max_examples=300, stateful_step_count=60)
    )
