"""The store against a dict: put, upsert, remove, remove_all, kill and adopt in any order.

Blocks may vanish by eviction, which the store logs; a key that is there holds exactly the bytes of
the model, and what the model lacks is not there. Slots, index, extents and free lists are checked
against each other after each step.
"""

from __future__ import annotations

import itertools
from contextlib import ExitStack

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from store_kit import LocalStore, checksum_of, content, shared_memory_path

from snapd.formats.segment import SlotState, data_units, key_units, valid_slots
from snapd.segment.tally import read_tally
from snapd.store.unfinished import Unfinished

KEYS = st.integers(0, 30).map(lambda n: b"key-%d" % n * (1 + n % 7))
SIZES = st.sampled_from([1, 4095, 4096, 4097, 20_000, 60_000])
BATCHES = st.lists(st.tuples(KEYS, SIZES), min_size=1, max_size=8)


class StoreMachine(RuleBasedStateMachine):
    """`model` is what must be there unless it was evicted."""

    @initialize()
    def begin(self) -> None:
        self.stack = ExitStack()
        path = self.stack.enter_context(shared_memory_path())
        self.store = LocalStore(path, global_segment_size=1 << 19, segment_blocks_max=64)
        self.stack.callback(self.store.close)
        self.client = self.store.client()
        self.model: dict[bytes, bytes] = {}
        self.unfinished: list[tuple[bytes, bytes, object, object]] = []
        self.contents = itertools.count()
        self.logged = 0

    def teardown(self) -> None:
        if hasattr(self, "stack"):
            self.stack.close()

    def forget_evicted(self) -> None:
        for kind, keys in self.store.events[self.logged :]:
            for key in keys if kind == "evict" else ():
                self.model.pop(key, None)
        self.logged = len(self.store.events)

    @rule(batch=BATCHES, upsert=st.booleans(), pin=st.integers(0, 1))
    def put(self, batch: list[tuple[bytes, int]], upsert: bool, pin: int) -> None:
        blocks = {key: content(next(self.contents), size) for key, size in batch}
        codes = self.client.put(blocks, upsert=upsert, pin=pin)
        before = dict(self.model)
        self.forget_evicted()
        for key, value in blocks.items():
            # A key that was there is not written, unless its block had to go for another one's.
            if codes[key] == 0 and (upsert or key not in before):
                self.model[key] = value

    @rule(batch=BATCHES)
    def reserve(self, batch: list[tuple[bytes, int]]) -> None:
        """A put that stays unfinished for a while."""
        key, size = batch[0]
        value = content(next(self.contents), size)
        codes, slots, sequences, offsets = self.client.reserve([key], [size], upsert=True)
        self.forget_evicted()
        if codes[0] == 0:
            self.client.write(int(offsets[0]), value)
            self.unfinished.append((key, value, slots, sequences))

    @rule()
    def finish(self) -> None:
        if self.unfinished:
            key, value, slots, sequences = self.unfinished.pop(0)
            checksum = checksum_of(value)
            assert self.client.publish(slots, sequences, [checksum]) == [0]
            self.model[key] = value

    @rule(keys=st.lists(KEYS, min_size=1, max_size=5), force=st.booleans())
    def remove(self, keys: list[bytes], force: bool) -> None:
        codes = self.client.remove(keys, force=force)
        for key, code in zip(keys, codes, strict=True):
            if code == 0:
                assert key in self.model
                del self.model[key]
            else:
                assert (code == -704) == (key not in self.model)

    @rule(force=st.booleans())
    def remove_all(self, force: bool) -> None:
        assert self.client.remove_all(force=force) <= len(self.model)
        left = [key for key in self.model if self.client.sizes([key])[0]]
        assert not (force and left)
        self.model = {key: self.model[key] for key in left}

    @rule(keys=st.lists(KEYS, min_size=1, max_size=6))
    def get(self, keys: list[bytes]) -> None:
        assert self.client.get(keys) == [self.model.get(key) for key in keys]

    @rule(seconds=st.sampled_from([1.0, 11.0, 4000.0]))
    def wait(self, seconds: float) -> None:
        self.store.advance(seconds)

    @rule(writer_dies=st.booleans())
    def kill_and_adopt(self, writer_dies: bool) -> None:
        old = self.client
        if writer_dies:
            old.close()
        self.store.restart()
        self.client = self.store.client()
        old.close()
        self.unfinished = []

    @rule()
    def lose_the_connection(self) -> None:
        self.store.drop(self.client)
        self.client = self.store.client()
        self.unfinished = []

    @invariant()
    def keys_are_those_of_the_model(self) -> None:
        if not hasattr(self, "model"):
            return
        keys = [b"key-%d" % n * (1 + n % 7) for n in range(31)]
        expected = [len(self.model.get(key, b"")) for key in keys]
        assert self.client.sizes(keys) == expected

    @invariant()
    def everything_adds_up(self) -> None:
        if not hasattr(self, "model"):
            return
        blocks, book = self.store.blocks, self.store.blocks.book
        shared = self.store.segment.mapping.slots.copy()
        assert valid_slots(shared).all()
        assert (shared.view(np.uint8) == book.records.view(np.uint8)).all()
        assert (book.state == shared["state"]).all()
        assert book.free_count == int((book.state == SlotState.FREE).sum())
        holds = shared[(shared["state"] == SlotState.PUBLISHED) | (shared["state"] == 1)]
        assert blocks.space.used_units == int(data_units(holds["size"]).sum())
        names = int(key_units(shared["key_length"][shared["state"] > 0]).sum())
        assert blocks.space.free_key_units == self.store.segment.geometry.key_units - names
        counts = np.bincount(book.state, minlength=5)
        tally = read_tally(self.store.segment.mapping.header, self.store.segment.boot_id)
        assert tally.unfinished == counts[SlotState.WRITING]
        assert tally.removed == counts[SlotState.REMOVED]
        writing = shared[shared["state"] == SlotState.WRITING]
        assert vars(book.unfinished) == vars(Unfinished(writing))
        numbers, _ = blocks.index.numbers()
        served = np.flatnonzero(book.state == SlotState.PUBLISHED)
        assert sorted(numbers.tolist()) == served.tolist()


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(
    max_examples=settings().max_examples * 4 // 10, stateful_step_count=40
)
