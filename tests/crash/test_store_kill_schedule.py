"""SIGKILL of a real store at random moments of a schedule, under clients that do everything.

The schedule follows from its seed: which phase each life is killed in and after how long. What
was acknowledged is there afterwards, or was evicted; what was removed stays removed; what was in
flight has happened or has not. A kill alone leaves nothing damaged.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from fault_ledger import FaultClass, case
from store_kit import StoreClient, StoreProcess, checksum_of, shared_memory_path

from snapd.errors import SnapdError
from snapd.wire import messages as m

SEED = int(os.environ.get("SNAPD_TEST_SEED", "20260214"))
WORKERS = 3
KEYS = 50
SEGMENT = "4mb"


@dataclass
class History:
    """What may be under one worker's keys. Moments are of one rising counter."""

    held: dict[bytes, tuple[bytes, int]] = field(default_factory=dict)
    """Acknowledged values, and when their put began."""
    doubtful: dict[bytes, bytes | None] = field(default_factory=dict)
    """What the call that never returned may have left instead."""


class Epochs:
    """Removals of everything, by moments: begun, and answered."""

    def __init__(self) -> None:
        self.moments = itertools.count(1)
        self.begun: list[int] = []
        self.answered = 0
        """When the last one that was answered began."""

    def begin(self) -> int:
        moment = next(self.moments)
        self.begun.append(moment)
        return moment

    def may_be_gone(self, put: int) -> bool:
        """Whether a removal of everything came after a put that began then."""
        return any(moment > put for moment in self.begun)


class Worker(threading.Thread):
    """Works on its own keys until the store dies; `doing` names what it is at."""

    def __init__(
        self, client: StoreClient, number: int, seed: int, history: History, epochs: Epochs
    ) -> None:
        super().__init__(name=f"worker-{number}")
        self.client, self.history, self.epochs = client, history, epochs
        self.number = number
        self.doing = "connected"
        self.error: BaseException | None = None
        self._random = random.Random(seed)

    def run(self) -> None:
        try:
            with contextlib.suppress(SnapdError):
                while True:
                    self._step()
        except BaseException as error:  # noqa: BLE001 - shown by the test
            self.error = error

    def _step(self) -> None:
        keys = [key_of(self.number, self._random.randrange(KEYS)) for _ in range(6)]
        chance = self._random.random()
        if chance < 0.45:
            self._put(list(dict.fromkeys(keys)), upsert=True)
        elif chance < 0.55:
            self._put(list(dict.fromkeys(keys)), upsert=False)
        elif chance < 0.75:
            self._get(keys)
        elif chance < 0.8:
            self.doing = "exist"
            self.client.exist(keys)
        elif chance < 0.85:
            self._revoke(keys)
        elif chance < 0.99 or self.number:
            self._remove(keys)
        else:
            self._remove_all()
        self.doing = "between"

    def _put(self, keys: list[bytes], *, upsert: bool) -> None:
        kind = "upsert" if upsert else "put"
        sizes = [self._random.choice([10, 5000, 30_000, 90_000]) for _ in keys]
        values = [self._random.randbytes(size) for size in sizes]
        moment = next(self.epochs.moments)
        self.doing = f"{kind} start"
        codes, slots, sequences, offsets = self.client.reserve(keys, sizes, upsert=upsert)
        good = np.flatnonzero(codes == 0)
        self.doing = f"{kind} copy"
        for at in good.tolist():
            self.client.write(int(offsets[at]), values[at])
        self.history.doubtful = {keys[at]: values[at] for at in good.tolist()}
        self.doing = f"{kind} end"
        sums = [checksum_of(values[at]) for at in good.tolist()]
        ended = self.client.publish(slots[good], sequences[good], sums) if len(good) else []
        for at, code in zip(good.tolist(), ended, strict=True):
            if code == 0:
                self.history.held[keys[at]] = values[at], moment
        self.history.doubtful = {}

    def _get(self, keys: list[bytes]) -> None:
        self.doing = "get"
        for key, value in zip(keys, self.client.get(keys), strict=True):
            held = self.history.held.get(key, (None, 0))[0]
            assert value in (None, held), f"{key!r} has other bytes while the store is alive"

    def _revoke(self, keys: list[bytes]) -> None:
        self.doing = "reserve"
        codes, slots, sequences, _ = self.client.reserve(keys, [4000] * len(keys), upsert=True)
        good = codes == 0
        self.doing = "revoke"
        request = m.PutRevoke(slots[good].tobytes(), sequences[good].tobytes())
        self.client.call(request, m.Codes)

    def _remove(self, keys: list[bytes]) -> None:
        self.doing = "remove"
        self.history.doubtful = dict.fromkeys(keys)
        for key, code in zip(keys, self.client.remove(keys, force=True), strict=True):
            if code in (0, -704):
                self.history.held.pop(key, None)
        self.history.doubtful = {}

    def _remove_all(self) -> None:
        self.doing = "remove all"
        began = self.epochs.begin()
        self.client.remove_all(force=True)
        self.epochs.answered = began


def key_of(worker: int, number: int) -> bytes:
    return b"w%d-%d" % (worker, number)


class Site:
    """One store over all its lives, and what its clients know."""

    def __init__(self, store: StoreProcess) -> None:
        self.store = store
        self.epochs = Epochs()
        self.histories = [History() for _ in range(WORKERS)]

    def verify(self, where: str) -> None:
        """Every key has what it was told, and from now on is known to have it."""
        client = self.store.client()
        assert client.stats().corrupt == 0, where
        gone = self._evicted()
        for number, history in enumerate(self.histories):
            for key in [key_of(number, n) for n in range(KEYS)]:
                (value,) = client.get([key])
                held, put = history.held.get(key, (None, 0))
                allowed = {held} | ({history.doubtful[key]} if key in history.doubtful else set())
                if key in gone or (held is not None and self.epochs.may_be_gone(put)):
                    allowed.add(None)
                assert value in allowed, (where, key)
                if value is None:
                    history.held.pop(key, None)
                else:
                    history.held[key] = value, next(self.epochs.moments)
            history.doubtful = {}
        client.close()
        self.epochs.begun.clear()
        self.store.event_log.write_bytes(b"")

    def _evicted(self) -> set[bytes]:
        log = self.store.event_log
        lines = log.read_text().splitlines() if log.exists() else []
        return {line.split(" ", 1)[1].encode() for line in lines if line.startswith("evict ")}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with shared_memory_path() as path:
        store = StoreProcess(
            path, tmp_path, SNAPD_LEASE_SEC="0.05", MOONCAKE_GLOBAL_SEGMENT_SIZE=SEGMENT
        )
        yield Site(store)
        store.kill()


def live(site: Site, kill: int, chance: random.Random) -> str:
    """Load on the store that runs, until it is killed; what was in flight then."""
    where = f"kill {kill} of schedule {SEED}"
    workers = [
        Worker(site.store.client(), n, chance.getrandbits(32), site.histories[n], site.epochs)
        for n in range(WORKERS)
    ]
    for worker in workers:
        worker.start()
    time.sleep(chance.random() * 0.25)
    doing = ", ".join(sorted(worker.doing for worker in workers))
    site.store.kill()
    for worker in workers:
        worker.join(20)
        assert not worker.is_alive(), where
        assert worker.error is None, (where, worker.error)
        worker.client.close()
    return doing


def stillborn(site: Site, chance: random.Random) -> str:
    """Killed while it starts: the segment is being adopted, or the socket bound."""
    site.store.kill()
    site.store.start(wait=False)
    time.sleep(chance.random() * 0.6)
    ready = os.path.exists(site.store.socket)
    site.store.kill()
    return "listening" if ready else "starting"


@pytest.mark.parametrize("kills", [4, pytest.param(300, marks=pytest.mark.long)])
def test_a_store_killed_again_and_again_keeps_what_it_acknowledged(site: Site, kills: int) -> None:
    chance = random.Random(SEED)
    repeat = f"SNAPD_TEST_SEED={SEED} pytest --long tests/crash/test_store_kill_schedule.py"
    site.store.start()
    for kill in range(kills):
        young = chance.random() < 0.25
        doing = stillborn(site, chance) if young else live(site, kill, chance)
        phase = "start" if young else "load"
        with case(FaultClass.KILL, f"store in {phase}: {doing}: kill {kill} of {SEED}"):
            # A start that was cut short is looked at through the one after it.
            site.store.start()
            site.verify(repeat)
