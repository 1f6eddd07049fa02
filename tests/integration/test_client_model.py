"""The client and a real store against a dictionary, with the store killed in between.

The store has room for everything, so that nothing is evicted, and leases that outlast the test.
"""

from __future__ import annotations

from collections.abc import Iterator
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
        self.memory = np.zeros(8 * max(SIZES), np.uint8)

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
