"""Store, daemon and repository together against a dict, with kills of each and power cuts.

The engine, the flusher, the registrar and the repository are the real ones, driven step by step on
a disk that loses at a power cut whatever was not synced. Memory suffices, so nothing is evicted:
what is durable must be there after a power cut, with its last durable bytes, and what was removed
must not.
"""

from __future__ import annotations

import itertools
import os
from contextlib import ExitStack

from daemon_kit import LocalDaemon
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from store_kit import LocalStore, StoreClient, content, shared_memory_path

from snapd.disk.simulated import SimulatedDisk
from snapd.wire import messages as m

NAMES = [b"key-%d" % number for number in range(4)]
KEYS = st.sampled_from(NAMES)
BATCHES = st.dictionaries(KEYS, st.sampled_from([1, 4096, 9000]), min_size=1, max_size=3)


class DaemonMachine(RuleBasedStateMachine):
    """`current` is what the store must serve; `durable` what a power cut must leave."""

    @initialize(seed=st.integers(0, 1000), compacts_while_attaching=st.booleans())
    def begin(self, seed: int, compacts_while_attaching: bool) -> None:
        self.compacts_while_attaching = compacts_while_attaching
        self.stack = ExitStack()
        self.path = self.stack.enter_context(shared_memory_path())
        self.disk = SimulatedDisk(seed)
        self.store = LocalStore(self.path, global_segment_size=1 << 21, lease_sec=0.001)
        self.stack.callback(self.store.close)
        self.client: StoreClient = self.store.client()
        self.daemon: LocalDaemon | None = self._start()
        self.daemon.attach()
        self.current: dict[bytes, bytes] = {}
        self.durable: dict[bytes, bytes] = {}
        self.cold: dict[bytes, bytes] = {}
        """Blocks on disk only that nobody can load while no daemon is there."""
        self.doomed: set[bytes] = set()
        """Keys removed or replaced while no daemon was there to tell the disk."""
        self.store.on_put_off = self.pump
        self.contents = itertools.count()

    def teardown(self) -> None:
        if hasattr(self, "stack"):
            if self.daemon is not None:
                self.daemon.close()
            self.stack.close()

    def pump(self) -> None:
        if self.daemon is not None:
            self.daemon.pump()

    def kill_on_disk(self, keys: set[bytes]) -> None:
        """These keys were removed or replaced: at once for the disk, or when a daemon comes."""
        self.doomed |= keys
        if self.daemon is not None:
            self.settle_model()

    def settle_model(self) -> None:
        """What was removed or replaced without a daemon is so on disk when one has attached."""
        self.durable = {key: self.durable[key] for key in self.durable if key not in self.doomed}
        self.doomed = set()

    # --- what clients do --------------------------------------------------------------------------

    @rule(batch=BATCHES, upsert=st.booleans(), again=st.booleans())
    def put(self, batch: dict[bytes, int], upsert: bool, again: bool) -> None:
        served = dict(zip(NAMES, self.client.exist(NAMES), strict=True))
        blocks = {key: content(next(self.contents), size) for key, size in batch.items()}
        if again:  # the bytes that some pack may have already
            blocks |= {key: self.durable[key] for key in blocks if key in self.durable}
        codes = self.client.put(blocks, upsert=upsert)
        for key, value in blocks.items():
            assert codes[key] == 0
            if upsert or not served[key]:
                if (self.cold | self.current).get(key, value) != value:
                    self.kill_on_disk({key})
                self.cold.pop(key, None)
                self.current[key] = value

    @rule(keys=st.sets(KEYS, min_size=1, max_size=3))
    def remove(self, keys: set[bytes]) -> None:
        request = m.Remove(m.encode_keys(_column(sorted(keys))), force=True)
        self._ask(request)
        self.kill_on_disk(keys)
        for key in keys:
            self.current.pop(key, None)
            self.cold.pop(key, None)

    @rule(key=KEYS)
    def replace_by_removing(self, key: bytes) -> None:
        """The new version gets the very next sequence."""
        self.remove({key})
        self.put({key: 4096}, upsert=False, again=False)

    @rule()
    def remove_all(self) -> None:
        self._ask(m.RemoveAll(force=True))
        self.kill_on_disk(set(NAMES))
        self.current.clear()
        self.cold.clear()

    def _ask(self, request: m.Request) -> None:
        """A request whose reply waits for the daemon's acknowledgement."""
        connection = self.client.connection  # type: ignore[attr-defined]
        reply = self.store.send(connection, request)
        if self.daemon is not None:
            self.daemon.pump()
            reply = reply or self.store.replies.pop(connection, None)
        assert reply is not None, "the answer never came"

    # --- what the daemon does ---------------------------------------------------------------------

    @precondition(lambda self: self.daemon is not None)
    @rule()
    def flush(self) -> None:
        assert self.daemon is not None
        result = self.daemon.flush()
        assert result.rejected == 0
        if any(len(rows) for rows in result.revived):
            self.daemon.commit()
        self.durable = dict(self.current)

    @precondition(lambda self: self.daemon is not None)
    @rule()
    def commit(self) -> None:
        assert self.daemon is not None
        self.daemon.commit()

    @precondition(lambda self: self.daemon is not None)
    @rule(blocks=st.integers(1, 4))
    def warm(self, blocks: int) -> None:
        assert self.daemon is not None
        assert self.daemon.warm(blocks).rejected == 0

    @precondition(lambda self: self.daemon is not None)
    @rule(leave=st.sets(st.integers(0, 5)))
    def compact(self, leave: set[int]) -> None:
        assert self.daemon is not None
        result = self.daemon.compact(leave=leave)
        assert (result.complete, result.rejected, result.died) == (True, 0, 0)

    @precondition(lambda self: self.daemon is not None)
    @rule(cold=st.booleans())
    def warm_by_a_plan_from_before_a_compaction(self, cold: bool) -> None:
        """All packs that the plan speaks of are gone when it is carried out."""
        assert self.daemon is not None
        if cold:
            self.flush()
            self.power_cut()
        self.flush()
        plan = self.daemon.plan()
        self.daemon.compact()
        for _ in range(self.daemon.repository.retain):
            self.daemon.commit()
        self.daemon.repository.catalog.shrink(rows_min=1)
        result = self.daemon.warm(wanted=plan)
        assert (result.loaded, result.rejected, result.failed) == (len(plan[0]), 0, 0)

    # --- what goes wrong --------------------------------------------------------------------------

    @rule()
    def kill_store(self) -> None:
        self.client.close()
        self.store.restart()
        self.client = self.store.client()
        if self.daemon is not None:
            self.daemon.attach()
            self.settle_model()
        else:
            self._lose_cold()

    @rule()
    def kill_daemon(self) -> None:
        """And with it whatever its machine's disk had not synced; the segment stays."""
        if self.daemon is not None:
            self.daemon.close()
            self.disk.crash()
            self.daemon = None
            self._lose_cold()

    @precondition(lambda self: self.daemon is None)
    @rule()
    def start_daemon(self) -> None:
        self.daemon = self._start()
        self.daemon.attach()
        self.current = {**self.cold, **self.current}
        self.cold = {}
        self.settle_model()

    @rule()
    def power_cut(self) -> None:
        self.client.close()
        if self.daemon is not None:
            self.daemon.close()
        self.store.kill()
        os.unlink(self.path)
        self.disk.crash()
        self.store.start()
        self.client = self.store.client()
        self.daemon = self._start()
        assert self.daemon.recovery.blocks == len(self.durable)
        self.daemon.attach()
        self.current, self.cold, self.doomed = dict(self.durable), {}, set()

    def _start(self) -> LocalDaemon:
        daemon = LocalDaemon(self.store, self.disk)
        daemon.compacts_while_attaching = self.compacts_while_attaching
        return daemon

    def _lose_cold(self) -> None:
        """Without a daemon only what is in memory is served; the rest comes back with one."""
        served = dict(zip(NAMES, self.client.exist(NAMES), strict=True))
        lost = {key: value for key, value in self.current.items() if not served[key]}
        self.cold |= lost
        self.current = {key: value for key, value in self.current.items() if served[key]}

    # --- what must hold ---------------------------------------------------------------------------

    @invariant()
    def exactly_the_model_is_served(self) -> None:
        if hasattr(self, "stack"):
            assert self.client.exist(NAMES) == [int(name in self.current) for name in NAMES]

    @precondition(lambda self: self.daemon is not None)
    @rule()
    def read_everything(self) -> None:
        assert self.daemon is not None
        self.daemon.warm()
        assert self.client.get(NAMES) == [self.current.get(name) for name in NAMES]
        assert self.store.events == [] or all(kind != "evict" for kind, _ in self.store.events)


def _column(keys: list[bytes]) -> m.KeyColumn:
    return m.KeyColumn.from_list(keys)


TestDaemonModel = DaemonMachine.TestCase
TestDaemonModel.settings = settings(max_examples=70, stateful_step_count=30, deadline=None)
