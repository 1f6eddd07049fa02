"""Store, daemon and repository with an SSD tier against a dict: evictions, loads, kills, cuts.

Memory holds an eighth of what is put, so nearly every step evicts something. A key holds its last
value or nothing, always; what was removed or replaced never comes back; and what the store has been
told is on disk stays readable until it is removed or a budget drops it.
"""

from __future__ import annotations

import itertools
from contextlib import ExitStack

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from store_kit import content, shared_memory_path
from tier_life import TierLife

from snapd.disk.simulated import SimulatedDisk

NAMES = [b"key-%d" % number for number in range(24)]
SIZES = [1, 4096, 150_000, 300_000]
"""The store has a megabyte."""
SOME = st.lists(st.sampled_from(NAMES), min_size=1, max_size=5, unique=True)


class TierMachine(RuleBasedStateMachine):
    """`current` is what each key may hold; `safe` the keys that must be readable while a daemon is
    there, with slots and disk for all of them."""

    @initialize(seed=st.integers(0, 1000))
    def begin(self, seed: int) -> None:
        self.stack = ExitStack()
        self.disk = SimulatedDisk(seed)
        path = self.stack.enter_context(shared_memory_path())
        self.life = TierLife(path, self.disk)
        self.stack.callback(self.life.close)
        self.current: dict[bytes, bytes] = {}
        self.safe: set[bytes] = set()
        self.untold = False
        """Whether something was removed or replaced that no daemon has heard of."""
        self.contents = itertools.count()

    def teardown(self) -> None:
        if hasattr(self, "stack"):
            self.stack.close()

    # --- clients ------------------------------------------------------------------------------

    @rule(keys=SOME, size=st.sampled_from(SIZES), upsert=st.booleans())
    def put(self, keys: list[bytes], size: int, upsert: bool) -> None:
        for key in keys:
            served = self.life.client.exist([key]) == [1]
            value = content(next(self.contents), size)
            if self.life.put({key: value}, upsert=upsert) != {key: 0}:
                continue
            if upsert or not served:
                self.untold |= self.life.daemon is None
                self.current[key] = value
                self.safe.discard(key)

    @rule(keys=SOME)
    def put_the_same_again(self, keys: list[bytes]) -> None:
        """As a client does that computed a page again after a miss."""
        self.life.put({key: self.current[key] for key in keys if key in self.current})

    @rule(keys=SOME)
    def read(self, keys: list[bytes]) -> None:
        for key, value in zip(keys, self.life.read(keys), strict=True):
            assert value in (None, self.current.get(key)), f"{key!r}: other bytes"
            if key in self.safe and self.life.daemon is not None:
                assert value is not None, f"{key!r} is on disk and was a miss"

    @rule(keys=SOME)
    def remove(self, keys: list[bytes]) -> None:
        self.life.client.remove(keys, force=True)
        for key in keys:
            # Without a daemon, what only the disk has is not known, and not promised to be gone.
            self.untold |= self.life.daemon is None
            self.current.pop(key, None)
            self.safe.discard(key)

    @rule(forced=st.booleans(), leased=st.sets(st.sampled_from(NAMES), max_size=5))
    def remove_all(self, forced: bool, leased: set[bytes]) -> None:
        self.life.store.advance(1.0)  # no older lease is left
        self.life.client.exist(sorted(leased))
        self.life.client.remove_all(force=forced)
        self.untold |= self.life.daemon is None
        stays = {key for key in NAMES if self.life.client.exist([key]) == [1]}
        assert stays <= (set() if forced else leased)
        self.current = {key: self.current[key] for key in stays}
        self.safe = set()

    # --- the daemon ---------------------------------------------------------------------------

    @precondition(lambda self: self.life.daemon is not None)
    @rule(tell=st.booleans())
    def flush(self, tell: bool) -> None:
        daemon = self.life.daemon
        assert daemon is not None
        there = [key for key in NAMES if self.life.client.exist([key]) == [1]]
        assert daemon.flush(tell=tell).rejected == 0
        if tell:
            self.safe |= set(there)
            self.all_that_is_durable_is_known_to_be()

    def all_that_is_durable_is_known_to_be(self) -> None:
        """To the store, after it was told."""
        daemon = self.life.daemon
        assert daemon is not None
        if daemon.session is None or daemon.session.open_offload is None:
            return
        catalog, residency = daemon.repository.catalog, daemon.session.residency
        slots = np.flatnonzero((residency.sequence != 0) & ~residency.cold & (residency.row >= 0))
        rows = residency.row[slots]
        awaiting = np.concatenate([np.empty(0, np.int64), *daemon.session.revived])
        slots = slots[catalog.is_live(rows) & ~np.isin(rows, awaiting)]
        assert (self.life.store.blocks.durable[slots] > 0).all(), "would be lost by an eviction"

    @precondition(lambda self: self.life.daemon is not None)
    @rule()
    def commit(self) -> None:
        assert self.life.daemon is not None
        self.life.daemon.commit()

    @precondition(lambda self: self.life.daemon is not None)
    @rule(leave=st.sets(st.integers(0, 5)))
    def compact(self, leave: set[int]) -> None:
        assert self.life.daemon is not None
        assert self.life.daemon.compact(leave=leave).rejected == 0

    @precondition(lambda self: self.life.daemon is not None)
    @rule(keys=SOME)
    def drop(self, keys: list[bytes]) -> None:
        """A budget lets blocks go."""
        daemon = self.life.daemon
        assert daemon is not None
        assert daemon.session is not None
        rows = daemon.repository.catalog.live_rows()
        names = daemon.repository.catalog.take(rows).keys.to_list()
        chosen = [at for at, name in enumerate(names) if name in keys]
        daemon.compactor._drop(daemon.session, rows[chosen])
        self.safe -= set(keys)

    # --- deaths -------------------------------------------------------------------------------

    @precondition(lambda self: self.life.daemon is not None)
    @rule()
    def daemon_dies(self) -> None:
        self.life.kill_daemon()

    @precondition(lambda self: self.life.daemon is None)
    @rule(offloads=st.sampled_from([True, True, False]))
    def daemon_starts(self, offloads: bool) -> None:
        self.life.attach(offloads=offloads)
        self.untold = False
        if not offloads:
            self.safe = set()

    @rule()
    def store_dies(self) -> None:
        self.life.kill_store()
        if self.life.daemon is not None:
            self.life.daemon.flush()
        # Until the flush, what is in memory was not known to be on disk, and may have gone.
        self.safe &= {key for key in NAMES if self.life.client.exist([key]) == [1]}

    @precondition(lambda self: not self.untold)
    @rule()
    def power_cut(self) -> None:
        """Memory is gone. With a daemon that heard of everything nothing old comes back."""
        revived = self.life.daemon is not None
        self.life.power_cut()
        if not revived:
            self.safe = set()
        for key, value in zip(NAMES, self.life.read(NAMES), strict=True):
            assert value in (None, self.current.get(key)), f"{key!r}: other bytes after a cut"
            if key in self.safe:
                assert value is not None, f"{key!r} was durable and is lost"
        self.safe = set()

    # --- always -------------------------------------------------------------------------------

    @invariant()
    def what_is_there_has_the_size_of_its_last_value(self) -> None:
        if not hasattr(self, "life"):
            return
        sizes = self.life.client.sizes(NAMES)
        for key, size in zip(NAMES, sizes, strict=True):
            assert size in (0, len(self.current.get(key, b""))), f"{key!r}: another version"
        if self.life.daemon is not None:
            lost = [key for key, size in zip(NAMES, sizes, strict=True) if not size]
            assert not self.safe & set(lost), "on disk, told, and a miss"


TestSsdTier = TierMachine.TestCase
TestSsdTier.settings = settings(
    max_examples=settings().max_examples * 3 // 10, stateful_step_count=40
)
