"""Random lives of a repository against a dict, on the simulated disk and on the real one."""

from __future__ import annotations

import errno
import random
import shutil
import tempfile
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from repository_kit import content
from repository_model import ModelledRepository

from snapd.disk import Disk, PosixDisk
from snapd.disk.simulated import SimulatedCrash, SimulatedDisk
from snapd.errors import SnapdError

KEYS = [b"key-%d" % number for number in range(8)]
some_keys = st.lists(st.sampled_from(KEYS), min_size=1, max_size=4, unique=True)


class RepositoryLives(RuleBasedStateMachine):
    """The rules that both disks share; a subclass brings the disk."""

    model: ModelledRepository

    def disk(self, seed: int) -> Disk:
        raise NotImplementedError

    @initialize(seed=st.integers(0, 2**32), retain=st.integers(1, 3))
    def begin(self, seed: int, retain: int) -> None:
        self.random = random.Random(seed)
        self.model = ModelledRepository(self.disk(seed), retain=retain)
        self.model.start()

    @rule(keys=some_keys)
    def put(self, keys: list[bytes]) -> None:
        size = self.random.choice([1, 100, 4096, 5000, 12_288])
        blocks = {key: content(key, self.model.sequence + 1, size) for key in keys}
        self.model.put(blocks)

    @rule(keys=some_keys)
    def put_some_that_moved(self, keys: list[bytes]) -> None:
        blocks = {key: content(key, self.model.sequence + 1, 700) for key in keys}
        self.model.put(blocks, dropped=keys[::2])

    @rule(keys=some_keys)
    def remove(self, keys: list[bytes]) -> None:
        self.model.remove(keys)

    @rule()
    def remove_all(self) -> None:
        self.model.remove_all()

    @rule(keys=some_keys)
    def evict(self, keys: list[bytes]) -> None:
        self.model.evict(keys)

    @rule()
    def commit(self) -> None:
        self.model.commit()

    @rule(kept=st.sets(st.integers(0, 7)))
    def compact(self, kept: set[int]) -> None:
        packs = self.model.open.packs()
        chosen = [pack.sequence for at, pack in enumerate(packs) if at not in kept]
        before = self.model.open.catalog.live_totals()
        result = self.model.compact(chosen)
        assert result.complete
        assert (result.rejected, result.died) == (0, 0)
        assert self.model.open.catalog.live_totals() == before
        for pack in packs:
            if pack.sequence in chosen:
                assert not self.model.open.catalog.is_live(pack.rows).any(), "a block stayed behind"

    @rule(prefix=st.sampled_from([KEYS[0], KEYS[5], b"key-"]))
    def purge(self, prefix: bytes) -> None:
        result = self.model.purge(prefix)
        assert result.blocked == ""
        for pack in self.model.open.packs():
            rows = np.arange(pack.rows.start, pack.rows.stop)
            assert not self.model.open.catalog.take(rows).keys.starts_with(prefix).any()

    @rule()
    def restart(self) -> None:
        self.model.open.close()
        recovery = self.model.start()
        assert not recovery.unreadable_packs
        self.model.check()

    @rule()
    def rebuild(self) -> None:
        self.model.rebuild()
        self.model.commit()

    @invariant()
    def every_live_block_reads_back(self) -> None:
        if hasattr(self, "model"):
            self.model.check()

    def teardown(self) -> None:
        if hasattr(self, "model"):
            self.model.open.close()


class SimulatedLives(RepositoryLives):
    """With crashes at any operation, and operations that fail."""

    def disk(self, seed: int) -> Disk:
        self.simulated = SimulatedDisk(seed)
        return self.simulated

    @rule(after=st.integers(0, 25), what=st.data())
    def crash_in_the_middle(self, after: int, what: st.DataObject) -> None:
        self.simulated.crash_before = len(self.simulated.operations) + after
        with suppress(SimulatedCrash):
            self._any_of(what)
        self.simulated.crash()
        self.model.start()
        self.model.check()

    @rule(after=st.integers(0, 25), what=st.data())
    def fail_in_the_middle(self, after: int, what: st.DataObject) -> None:
        code = what.draw(st.sampled_from([errno.EIO, errno.ENOSPC, errno.EROFS]))
        self.simulated.fail(len(self.simulated.operations) + after, code)
        try:
            self._any_of(what)
        except SnapdError:
            # What is undecided now is decided by the next start at the latest.
            self.simulated.fault = None
            self.model.open.close()
            self.model.start()
        self.simulated.fault = None
        self.model.check()

    def _any_of(self, what: st.DataObject) -> None:
        rules: list[Any] = [self.commit, self.remove_all, self.model.compact]
        rules += [partial(self.model.purge, prefix) for prefix in (KEYS[0], b"key-")]
        keyed: list[Any] = [self.put, self.put_some_that_moved, self.remove]
        chosen = what.draw(st.sampled_from([*rules, *keyed]))
        if chosen in keyed:
            chosen(what.draw(some_keys))
        else:
            chosen()


class PosixLives(RepositoryLives):
    """On real files."""

    def disk(self, seed: int) -> Disk:
        self.directory = Path(tempfile.mkdtemp(prefix="snapd-repository-"))
        return PosixDisk(self.directory)

    def teardown(self) -> None:
        super().teardown()
        if hasattr(self, "directory"):
            shutil.rmtree(self.directory)


EXAMPLES = settings().max_examples
"""Of the profile: 100, or 2,000 with `--long`."""

TestSimulatedLives = SimulatedLives.TestCase
TestSimulatedLives.settings = settings(max_examples=EXAMPLES * 6 // 10, stateful_step_count=25)
TestPosixLives = PosixLives.TestCase
TestPosixLives.settings = settings(max_examples=EXAMPLES // 12, stateful_step_count=15)
