"""A store and a daemon under a budget, step by step, against what they may and must hold.

Random puts, upserts, removals, reads, flushes, commits, looks of the compactor and loads, all drawn
from one seed. Memory suffices, so nothing is evicted from the store; the disk is what is too small.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack

from daemon_kit import LocalDaemon
from repository_kit import contents_of
from store_kit import LocalStore, StoreClient, content, key_batch, shared_memory_path

from snapd.disk import Disk
from snapd.disk.simulated import SimulatedCrash, SimulatedDisk
from snapd.wire import messages as m

Step = Callable[[], object]

WEIGHTS = {
    "put": 8,
    "upsert": 4,
    "remove": 1,
    "read": 8,
    "flush": 6,
    "commit": 2,
    "look": 4,
    "warm": 1,
    "remove_all": 0.01,
    "kill_store": 0.3,
}


class BudgetLife:
    """`allowed` are the values that a key may have after a power cut (besides not being there);
    `committed` are the keys that must be there, because the newest generation has them."""

    def __init__(self, disk: Disk, seed: int, *, keys: int = 500, **budget: int) -> None:
        self.disk, self.seed, self.budget = disk, seed, budget
        self.random = random.Random(seed)
        self.names = [b"key-%d" % number for number in range(keys)]
        self.stack = ExitStack()
        self.path = self.stack.enter_context(shared_memory_path())
        self.store = LocalStore(
            self.path, global_segment_size=1 << 24, segment_blocks_max=4096, lease_sec=0.001
        )
        self.stack.callback(self.store.close)
        # Heat is told by the wall clock, so the store's clock begins there.
        self.store.advance(time.time() - 1.7e9 - self.store.now)
        self.store.on_put_off = self.pump
        self.client: StoreClient = self.store.client()
        self.contents = self.reads = 0
        self.allowed: dict[bytes, set[bytes]] = {}
        self.current: dict[bytes, bytes] = {}
        self.committed: set[bytes] = set()
        self.generation = 0
        self.seen: Counter[str] = Counter()
        """What happened, to see that a run reached all of it."""
        self.written_bytes = 0
        """Bytes of blocks that flushes wrote, to compare with what the disk took."""
        self.used_bytes_max = 0
        self._daemon: LocalDaemon | None = None
        self.start()

    @property
    def daemon(self) -> LocalDaemon:
        """The daemon, which is there."""
        assert self._daemon is not None
        return self._daemon

    def close(self) -> None:
        """Tidy up."""
        if self._daemon is not None:
            self._daemon.close()
        self.stack.close()

    # --- steps ------------------------------------------------------------------------------------

    def run(self, steps: int, *, crash_share: float = 0.0) -> None:
        """So many steps; this share of the daemon's ends in a power cut somewhere inside."""
        kinds, weights = list(WEIGHTS), list(WEIGHTS.values())
        for number in range(steps):
            kind = self.random.choices(kinds, weights)[0]
            try:
                if kind in {"flush", "commit", "look"} and self.random.random() < crash_share:
                    self.crash_inside(kind)
                else:
                    getattr(self, kind)()
            except AssertionError as error:
                raise AssertionError(f"seed={self.seed} step={number} {kind}: {error}") from error
            self.check_usage()
            self.store.advance(self.random.choice((0.01, 1.0, 5.0)))

    def put(self) -> None:
        """New keys get bytes; keys that are there keep theirs."""
        keys = self.random.sample(self.names, self.random.randint(1, 40))
        served = dict(zip(keys, self.client.exist(keys), strict=True))
        blocks = {key: self.new_content() for key in keys}
        codes = self.client.put(blocks)
        for key, value in blocks.items():
            assert codes[key] == 0, codes[key]
            if not served[key]:
                # What the disk still has of a key that left the store are the key's own bytes.
                self.allowed.setdefault(key, set()).add(value)
                self.current[key] = value

    def upsert(self) -> None:
        """The answer comes when what the disk has of these keys is over."""
        keys = self.random.sample(self.names, self.random.randint(1, 8))
        blocks = {key: self.new_content() for key in keys}
        assert set(self.client.put(blocks, upsert=True).values()) == {0}
        for key, value in blocks.items():
            self.allowed[key], self.current[key] = {value}, value
            self.committed.discard(key)

    def remove(self) -> None:
        """As an upsert, with nothing in the place."""
        keys = self.random.sample(self.names, self.random.randint(1, 8))
        self.ask(m.Remove(key_batch(keys), force=True))
        for key in keys:
            self.allowed.pop(key, None)
            self.current.pop(key, None)
            self.committed.discard(key)

    def remove_all(self) -> None:
        self.ask(m.RemoveAll(force=True))
        self.allowed.clear()
        self.current.clear()
        self.committed.clear()

    def read(self) -> None:
        """A tenth of the keys gets nearly all reads, and another tenth later on; whatever comes
        back is right."""
        self.reads += 1
        tenth = len(self.names) // 10
        hot = self.names[self.reads // 10 % 10 * tenth :][:tenth]
        for _ in range(3):
            keys = self.random.sample(hot, 20) + self.random.sample(self.names, 2)
            for key, value in zip(keys, self.client.get(keys), strict=True):
                assert value is None or value == self.current.get(key), f"{key!r} has wrong bytes"

    def flush(self) -> None:
        result = self.daemon.flush()
        assert result.rejected == 0
        self.written_bytes += result.written_bytes
        self.seen.update({f"left out: {why}": n for why, n in result.left_out.items() if n})
        # Whether it was written or left out: what the disk had of the key before is over.
        for key, value in self.current.items():
            self.allowed[key] = {value}

    def commit(self) -> None:
        self.note_commit(self.daemon.commit().generation)

    def look(self) -> None:
        """The compactor's; it may commit."""
        before = self.daemon.repository.generation
        dropped, copied = self.daemon.compactor.dropped, self.daemon.compactor.copied_bytes
        plan = self.daemon.compactor.look()
        if self.daemon.repository.generation != before:
            self.note_commit(self.daemon.repository.generation)
        if plan is not None:
            self.seen["dropped"] += self.daemon.compactor.dropped - dropped
            self.seen["copied"] += int(self.daemon.compactor.copied_bytes > copied)
            self.seen["pressed"] += plan.pressed
            self.seen["shrunk"] += plan.shrink_retention

    def warm(self) -> None:
        assert self.daemon.warm(50).rejected == 0

    def kill_store(self) -> None:
        self.client.close()
        self.store.restart()
        self.client = self.store.client()
        self.daemon.attach()

    # --- power cuts -------------------------------------------------------------------------------

    def crash_inside(self, kind: str) -> None:
        """Stop the machine at some operation of a step, and look at what is left."""
        assert isinstance(self.disk, SimulatedDisk)
        self.disk.crash_before = len(self.disk.operations) + self.random.randint(0, 40)
        try:
            getattr(self, kind)()
        except SimulatedCrash:
            self.seen[f"power cut in {kind}"] += 1
        self.power_cut()

    def power_cut(self) -> None:
        """Memory is gone, and what the disk had not synced. What is there is right, what was
        committed is there, and the newest generation was not lost."""
        assert isinstance(self.disk, SimulatedDisk)
        live = self.live_keys()
        self.client.close()
        self.daemon.close()
        self.store.kill()
        os.unlink(self.path)
        self.disk.crash()
        self.store.start()
        self.client = self.store.client()
        self.start(attach=False)
        repository = self.daemon.repository
        assert repository.generation >= self.generation, "the last good generation is gone"
        found = contents_of(repository)
        for key, value in found.items():
            assert value in self.allowed.get(key, set()), f"{key!r} came back wrong or removed"
        if repository.generation > self.generation:
            # It was cut off in a commit that had become durable, after something was dropped.
            self.committed &= live
        missing = self.committed - set(found)
        assert not missing, f"{len(missing)} committed blocks are gone"
        self.current = dict(found)
        self.allowed = {key: {value} for key, value in found.items()}
        self.daemon.attach()

    # --- inside -----------------------------------------------------------------------------------

    def start(self, *, attach: bool = True) -> None:
        self._daemon = LocalDaemon(
            self.store,
            self.disk,
            clock=lambda: self.store.now,
            **self.budget,
        )
        if attach:
            self.daemon.attach()

    def pump(self) -> None:
        if self._daemon is not None:
            self._daemon.pump()

    def ask(self, request: m.Request) -> None:
        connection = self.client.connection  # type: ignore[attr-defined]
        if self.store.send(connection, request) is None:
            self.pump()
            assert self.store.replies.pop(connection, None) is not None, "the answer never came"

    def new_content(self) -> bytes:
        self.contents += 1
        return content(self.contents, self.random.choice((1000, 4096, 9000, 20_000)))

    def note_commit(self, generation: int) -> None:
        """What is live now must be there after a power cut, until its key changes."""
        self.generation = generation
        self.committed = self.live_keys() & set(self.allowed)
        self.seen["commits"] += 1

    def live_keys(self) -> set[bytes]:
        """What the daemon would put into a manifest now."""
        catalog = self.daemon.repository.catalog
        with catalog.lock:
            return set(catalog.take(catalog.live_rows()).keys.to_list())

    def check_usage(self) -> None:
        """Never more than the budget on the medium, by the disk's own count."""
        if isinstance(self.disk, SimulatedDisk) and self.budget.get("bytes_max"):
            usage = self.disk.usage()
            used = usage.capacity_bytes - usage.free_bytes
            self.used_bytes_max = max(self.used_bytes_max, used)
            assert used <= self.budget["bytes_max"], f"{used} bytes are over the budget"
