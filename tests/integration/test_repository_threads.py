"""Flusher, events, readers and verify at work on one real repository at once."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from repository_kit import append, blank, content, contents_of, remove

from snapd.disk import PosixDisk
from snapd.errors import LockHeldError
from snapd.repository import Repository

SECONDS = 2.0
SEED = 4_711
KEYS = [b"key-%d" % number for number in range(40)]


class Workers:
    """A repository, its threads, and what is durable in it. What a thread raises fails the test."""

    def __init__(self, disk: PosixDisk) -> None:
        self.disk = disk
        self.repository = Repository.open(disk, retain=2)
        self.repository.recover()
        self.repository.commit()  # or the first look of `verify` may find no snapshot
        self.version: dict[bytes, int] = {}
        """Newest durable version of each key, or 0 once it is removed."""
        self.rounds: Counter[str] = Counter()
        self._sequence = itertools.count(1)
        self._lock = threading.Lock()

    def flush(self, rng: random.Random) -> None:
        with self._lock:
            number = next(self._sequence)
            keys = rng.sample(KEYS, 6)
            blocks = {key: content(key, number, rng.choice([500, 5000])) for key in keys}
            writer = self.repository.begin_pack()
            append(writer, blocks, sequence=number)
            writer.seal()
            self.version.update(dict.fromkeys(keys, number))

    def drop(self, rng: random.Random) -> None:
        with self._lock:
            keys = rng.sample(KEYS, 2)
            remove(self.repository, keys, sequence=next(self._sequence))
            self.version.update(dict.fromkeys(keys, 0))
        time.sleep(0.005)

    def commit(self, rng: random.Random) -> None:
        self.repository.commit()
        self.repository.catalog.shrink(rows_min=1)
        time.sleep(rng.random() / 50)

    def compact(self, rng: random.Random) -> None:
        packs = [pack.sequence for pack in self.repository.packs()]
        result = self.repository.compact(rng.sample(packs, len(packs) // 2))
        assert (result.complete, result.rejected) == (True, 0)
        time.sleep(rng.random() / 50)

    def read(self, rng: random.Random) -> None:
        catalog = self.repository.catalog
        live = catalog.live_rows()
        if not len(live):
            return
        rows = live[[rng.randrange(len(live)) for _ in range(8)]]
        table = catalog.take(rows)
        buffers = [blank(size) for size in table.size.tolist()]
        good = self.repository.read(rows, buffers)
        assert not catalog.is_live(rows[~good]).any(), "a live block cannot be read"
        for at in np.flatnonzero(good).tolist():
            size = int(table.size[at])
            assert buffers[at][:size] == content(table.keys[at], int(table.sequence[at]), size)

    def verify(self, rng: random.Random) -> None:
        with Repository.open(self.disk, read_only=True) as reader:
            reader.recover()
            findings = reader.verify().findings
            assert findings == [], findings
        time.sleep(rng.random() / 10)

    def work(self, name: str, until: float) -> None:
        rng = random.Random(f"{SEED} {name}")
        while time.monotonic() < until:
            getattr(self, name)(rng)
            self.rounds[name] += 1

    def check(self) -> None:
        found = contents_of(self.repository)
        assert set(found) == {key for key, number in self.version.items() if number}
        for key, data in found.items():
            assert data == content(key, self.version[key], len(data))


def test_nobody_sees_a_wrong_byte_or_a_removed_key(tmp_path: Path) -> None:
    print(f"seed {SEED}")
    workers = Workers(PosixDisk(tmp_path))
    names = ["flush", "drop", "commit", "compact", "read", "verify"]
    until = time.monotonic() + SECONDS
    with ThreadPoolExecutor(len(names)) as pool:
        for done in [pool.submit(workers.work, name, until) for name in names]:
            done.result()
    assert set(workers.rounds) == set(names)
    workers.check()
    workers.repository.close()
    workers.repository = Repository.open(workers.disk)
    workers.repository.recover()
    workers.check()
    workers.repository.rebuild()
    workers.check()
    workers.repository.close()


def test_a_second_writer_is_refused_across_disks(tmp_path: Path) -> None:
    with Repository.open(PosixDisk(tmp_path)), pytest.raises(LockHeldError) as caught:
        Repository.open(PosixDisk(tmp_path))
    assert str(tmp_path / "lock") in str(caught.value)
