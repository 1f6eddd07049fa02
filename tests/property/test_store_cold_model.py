"""Store and daemon against a dict: removed stays removed, cold comes back as what it was.

`model` is what each key holds; `disk` what the daemon has written of it. The daemon here does what
the real one does in the fewest words: it journals removals, registers what is on its disk, fills
what readers want. Store and daemon are killed at any point between their steps.
"""

from __future__ import annotations

import itertools
import os
from contextlib import ExitStack

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from store_kit import Daemon, LocalStore, column, content, shared_memory_path

from snapd.blocks import hash_keys
from snapd.formats.segment import SlotState
from snapd.wire import messages as m

KEYS = [b"key-%d" % number for number in range(8)]
SOME = st.lists(st.sampled_from(KEYS), min_size=1, max_size=4, unique=True)


class ColdMachine(RuleBasedStateMachine):
    """The segment is large enough that nothing is evicted: what vanishes was lost."""

    @initialize()
    def begin(self) -> None:
        self.stack = ExitStack()
        path = self.stack.enter_context(shared_memory_path())
        self.store = LocalStore(path, global_segment_size=4 << 20, segment_blocks_max=512)
        self.stack.callback(self.store.close)
        self.store.on_put_off = self.journal
        self.client = self.store.client()
        self.daemon: Daemon | None = None
        self.model: dict[bytes, bytes] = {}
        self.disk: dict[bytes, bytes] = {}
        self.disk_epoch = 0
        self.contents = itertools.count()

    def teardown(self) -> None:
        if hasattr(self, "stack"):
            self.stack.close()

    def value(self) -> bytes:
        number = next(self.contents)
        return content(number, 100 + 3000 * (number % 3))

    # --- clients ------------------------------------------------------------------------------

    @rule(keys=SOME)
    def upsert(self, keys: list[bytes]) -> None:
        blocks = {key: self.value() for key in keys}
        assert set(self.client.put(blocks, upsert=True).values()) == {0}
        self.model |= blocks

    @rule(keys=SOME)
    def put(self, keys: list[bytes]) -> None:
        blocks = {key: self.value() for key in keys}
        served = self.client.sizes(keys)
        assert set(self.client.put(blocks).values()) == {0}
        self.model |= {key: blocks[key] for key, size in zip(keys, served, strict=True) if not size}

    @rule(keys=SOME)
    def remove(self, keys: list[bytes]) -> None:
        codes = self.client.remove(keys, force=True)
        for key, code in zip(keys, codes, strict=True):
            if code == 0:
                self.model.pop(key, None)

    @rule()
    def remove_all(self) -> None:
        self.client.remove_all(force=True)
        self.model = {}

    # --- the daemon ---------------------------------------------------------------------------

    def journal(self) -> None:
        """Make removals durable until there are none left."""
        assert self.daemon is not None
        batch = self.daemon.events()
        while batch.kinds:
            kinds = column(batch.kinds, np.uint8).tolist()
            epochs = column(batch.epochs, np.uint32).tolist()
            keys = iter(m.decode_keys(without_empty(batch.keys)).to_list())
            for kind, epoch in zip(kinds, epochs, strict=True):
                if kind == m.EventKind.REMOVE_ALL:
                    self.begin_epoch(epoch)
                else:
                    self.disk.pop(next(keys), None)
            batch = self.daemon.events(batch.number)

    def begin_epoch(self, epoch: int) -> None:
        if epoch > self.disk_epoch:
            self.disk, self.disk_epoch = {}, epoch

    @precondition(lambda self: self.daemon is None)
    @rule(number=st.integers(0, 1), listen=st.booleans())
    def attach(self, number: int, listen: bool) -> None:
        self.daemon = Daemon(self.store, b"daemon-%d" % number)
        self.begin_epoch(self.daemon.epoch)
        self.journal()
        if self.disk:
            known = [
                key
                for key, code in zip(self.disk, self.daemon.register(self.disk)[0], strict=True)
                if code
            ]
        else:
            known = []
        self.daemon.ready()
        # What was put while no daemon was there is newer than the disk: it is written first.
        for key, value in zip(known, self.client.get(known), strict=True):
            if value is not None:
                self.disk[key] = value

    @precondition(lambda self: self.daemon is not None)
    @rule(keys=SOME)
    def flush(self, keys: list[bytes]) -> None:
        assert self.daemon is not None
        self.journal()
        for key, value in zip(keys, self.client.get(keys), strict=True):
            if value is not None:
                self.disk[key] = value

    @precondition(lambda self: self.daemon is not None)
    @rule(keys=SOME, finish=st.booleans())
    def load(self, keys: list[bytes], finish: bool) -> None:
        assert self.daemon is not None
        records = self.store.blocks.book.records
        cold = np.flatnonzero(
            (records["state"] == SlotState.COLD) & np.isin(records["key_hash"], hash_keys(keys))
        )
        names = self.store.segment.mapping.keys_of(records[cold]).to_list()
        chosen = cold.astype(np.uint32), records["sequence"][cold]
        codes, slots, sequences, offsets = self.daemon.fill_start(*chosen)
        good = np.flatnonzero(codes == 0)
        for at in good.tolist():
            self.daemon.write(int(offsets[at]), self.disk[names[at]])
        if finish and len(good):
            named = chosen[0][good], chosen[1][good]
            given = slots[good], sequences[good]
            assert set(self.daemon.fill_end(named, given, [0] * len(good))) == {0}

    # --- faults -------------------------------------------------------------------------------

    @precondition(lambda self: self.daemon is not None)
    @rule()
    def daemon_dies(self) -> None:
        self.store.drop(self.daemon)
        self.daemon = None

    @rule()
    def store_dies(self) -> None:
        if self.daemon is not None:
            self.daemon.close()
        self.daemon = None
        self.client.close()
        self.store.restart()
        self.client = self.store.client()

    @precondition(lambda self: self.daemon is not None)
    @rule()
    def power_cut(self) -> None:
        """Everything dies, and memory with it. What the daemon has must not be out of date."""
        stale = {key for key, value in self.disk.items() if self.model.get(key) != value}
        assert not stale, "removed or replaced, and the disk would bring it back"
        self.daemon.close()  # type: ignore[union-attr]
        self.daemon = None
        self.client.close()
        self.store.kill()
        os.unlink(self.store.path)
        self.store.start()
        self.client = self.store.client()
        self.model, self.disk_epoch = dict(self.disk), 0

    @invariant()
    def no_key_holds_anything_but_its_last_value(self) -> None:
        if not hasattr(self, "model"):
            return
        for key, value in zip(KEYS, self.client.get(KEYS), strict=True):
            assert value in (None, self.model.get(key))
        sizes = self.client.sizes(KEYS)
        for key, size in zip(KEYS, sizes, strict=True):
            assert size in (0, len(self.model.get(key, b"")))

    @invariant()
    def nothing_is_lost(self) -> None:
        if not hasattr(self, "model"):
            return
        records = self.store.blocks.book.records
        there = np.isin(records["state"], (SlotState.PUBLISHED, SlotState.COLD))
        names = self.store.segment.mapping.keys_of(records[there]).to_list()
        assert set(names) >= {key for key in self.model if key not in self.disk}


def without_empty(keys: m.KeyBatch) -> m.KeyBatch:
    """Without the keys of remove-alls, which are empty."""
    lengths = column(keys.lengths, np.uint16)
    return m.KeyBatch(keys.heap, lengths[lengths > 0].tobytes())


TestColdMachine = ColdMachine.TestCase
TestColdMachine.settings = settings(
    max_examples=settings().max_examples * 4 // 10, stateful_step_count=40
)
