"""Writers with a label each over equal keys, and the oracle of what each may find.

What may come back is kept for each label and key: the last acknowledged version, what an unanswered
call may or may not have stored, or nothing. Every block says in its first bytes which version of
which key of which label it is.
"""

from __future__ import annotations

import random
import threading
import time
import zlib
from collections import Counter

import numpy as np
from daemon_site import DaemonSite

from snapd.client import MooncakeDistributedStore

NOISE = np.random.default_rng(5).bytes(1 << 18)
LABELS = ("model=a", "model=b", "")
CALL_SECONDS_MAX = 15.0
Name = tuple[str, str]
NONE: frozenset[int] = frozenset()


def content(name: Name, version: int, large: int) -> bytes:
    """The bytes of one version of a key of a label."""
    head = f"{name[0]}|{name[1]}|{version}|".encode()
    mixed = zlib.crc32(head)
    size = large // 4 + mixed % large
    start = (mixed >> 7) % (len(NOISE) - size)
    return head + NOISE[start : start + size]


class Entry:
    """What may come back for one key of one label."""

    def __init__(self) -> None:
        self.log: list[frozenset[int]] = [NONE]
        """Allowed versions, after every change; a miss is always allowed."""
        self.newest = 0
        self.weak: frozenset[int] = NONE
        """Ended while no daemon was there: back, if the memory is lost before one is."""

    @property
    def allowed(self) -> frozenset[int]:
        return self.log[-1]

    def allow(self, versions: frozenset[int]) -> None:
        if versions != self.log[-1]:
            self.log.append(versions)

    def since(self, mark: int) -> frozenset[int]:
        return frozenset().union(*self.log[mark:])


class Oracle:
    """All entries, who is attached, and everything that was wrong."""

    def __init__(self, keys: int, large: int) -> None:
        self.keys = [f"k{number:04d}" for number in range(keys)]
        self.large = large
        self.entries = {(label, key): Entry() for label in LABELS for key in self.keys}
        self.attached_since = float("inf")
        self.detached_at = 0.0
        self.findings: list[str] = []
        self.counts: Counter[str] = Counter()

    def durable(self, began: float, ended: float) -> bool:
        """Whether a daemon was attached all the time of a call."""
        return self.attached_since <= began and not (
            self.detached_at >= self.attached_since and ended >= self.detached_at
        )

    def find(self, what: str) -> None:
        self.findings.append(f"{time.strftime('%H:%M:%S')} {what}")

    def end(self, name: Name, kept: frozenset[int], began: float) -> None:
        """All versions but `kept` have ended, says an answer that came just now."""
        entry = self.entries[name]
        if not self.durable(began, time.monotonic()):
            entry.weak |= entry.allowed - kept
        entry.allow(kept)

    def mark(self) -> tuple[dict[Name, int], dict[Name, frozenset[int]]]:
        """For `allowed_since`, when a backup begins."""
        marks = {name: len(entry.log) - 1 for name, entry in self.entries.items()}
        return marks, {name: entry.weak for name, entry in self.entries.items()}

    def allowed_since(
        self, mark: tuple[dict[Name, int], dict[Name, frozenset[int]]]
    ) -> dict[Name, frozenset[int]]:
        """What a backup may hold that began at a mark and has just ended."""
        marks, weak = mark
        return {
            name: entry.since(marks[name]) | weak[name] | entry.weak
            for name, entry in self.entries.items()
        }

    def attached(self) -> None:
        for entry in self.entries.values():
            entry.weak = NONE
        self.attached_since = time.monotonic()

    def detached(self) -> None:
        self.detached_at = time.monotonic()

    def wiped(self) -> None:
        for entry in self.entries.values():
            entry.allow(entry.allowed | entry.weak)
            entry.weak = NONE

    def judge(self, where: str, name: Name, value: bytes, allowed: frozenset[int]) -> bool:
        """Whether it was a hit; a wrong one is a finding."""
        if not value:
            self.counts[f"{where} miss"] += 1
            return False
        self.counts[f"{where} hit"] += 1
        head = value.split(b"|", 3)[:3]
        try:
            label, key, version = head[0].decode(), head[1].decode(), int(head[2])
        except (ValueError, IndexError):
            self.find(f"{where}: {name}: torn bytes {value[:40]!r}")
            return True
        if value != content((label, key), version, self.large):
            self.find(f"{where}: {name}: torn version {version} of {label}/{key}")
        elif (label, key) != name:
            self.find(f"{where}: {name}: bytes of {label}/{key} version {version}")
        elif version not in allowed:
            self.find(
                f"{where}: {name}: version {version} is back, allowed {sorted(allowed)}, "
                f"newest {self.entries[name].newest}"
            )
        return True


class Worker(threading.Thread):
    """Owns the keys of one label: the only one to write them. Reads those of others too."""

    def __init__(
        self, site: DaemonSite, oracle: Oracle, label: str, seed: str, mix: dict[str, float]
    ) -> None:
        super().__init__(daemon=True)
        self.site, self.oracle, self.label, self.mix = site, oracle, label, mix
        self.chance = random.Random(seed)
        self.client = labelled(site, label)
        self.stopping = threading.Event()
        self.turn = threading.Lock()
        """Held through every call that writes."""
        self.refused = 0
        self.reader = labelled(site, "") if label == "" else None

    def run(self) -> None:
        kinds, weights = list(self.mix), list(self.mix.values())
        while not self.stopping.is_set():
            kind = self.chance.choices(kinds, weights)[0]
            with self.turn:
                began = time.monotonic()
                self.oracle.counts[kind] += 1
                try:
                    getattr(self, kind)()
                except Exception as error:  # noqa: BLE001
                    self.oracle.find(f"{kind} of {self.label!r} raised {error!r}")
                took = time.monotonic() - began
            if took > CALL_SECONDS_MAX:
                self.oracle.find(f"{kind} of {self.label!r} took {took:.1f} s")
            time.sleep(self.chance.uniform(0.0, 0.03))

    def some(self, count: int = 8) -> list[str]:
        """Keys near each other, or anywhere; some much more often than others."""
        keys = self.oracle.keys
        many = self.chance.randint(1, count)
        at = int(len(keys) * self.chance.random() ** 1.5)
        return list(dict.fromkeys(keys[(at + step) % len(keys)] for step in range(many)))

    def entry(self, key: str) -> Entry:
        return self.oracle.entries[self.label, key]

    def bytes_of(self, key: str, version: int) -> bytes:
        return content((self.label, key), version, self.oracle.large)

    def put(self) -> None:
        keys, values = self.some(), []
        for key in keys:
            entry = self.entry(key)
            if not entry.allowed:
                entry.newest += 1
            entry.allow(entry.allowed | {entry.newest})
            values.append(self.bytes_of(key, entry.newest))
        code = (
            self.client.put(keys[0], values[0])
            if len(keys) == 1
            else self.client.put_batch(keys, values)
        )
        self.note_put(code)

    def note_put(self, code: int) -> None:
        self.oracle.counts[f"put says {code}"] += 1
        self.refused = self.refused + 1 if code == -200 else 0
        if self.refused == 40:
            self.oracle.find(f"40 puts in a row of {self.label!r} were refused for space")

    def upsert(self) -> None:
        keys, values = self.some(4), []
        began = time.monotonic()
        for key in keys:
            entry = self.entry(key)
            entry.newest += 1
            entry.allow(entry.allowed | {entry.newest})
            values.append(self.bytes_of(key, entry.newest))
        code = (
            self.client.upsert(keys[0], values[0])
            if len(keys) == 1
            else self.client.upsert_batch(keys, values)
        )
        self.note_put(code)
        if code == 0:
            for key in keys:
                self.oracle.end((self.label, key), frozenset({self.entry(key).newest}), began)

    def remove(self) -> None:
        keys = self.some(4)
        began = time.monotonic()
        codes = self.client.batch_remove(keys, force=self.chance.random() < 0.8)
        for key, code in zip(keys, codes, strict=True):
            self.oracle.counts[f"remove says {code}"] += 1
            if code == 0 or (code == -704 and self.oracle.durable(began, time.monotonic())):
                self.oracle.end((self.label, key), NONE, began)

    def remove_by_regex(self) -> None:
        stem = self.chance.choice(self.oracle.keys)[:-1]
        keys = [key for key in self.oracle.keys if key.startswith(stem)]
        there = [
            key
            for key, code in zip(keys, self.client.batch_is_exist(keys), strict=True)
            if code == 1
        ]
        began = time.monotonic()
        count = self.client.remove_by_regex(f"^{stem}.$", force=True)
        self.oracle.counts["regex says " + ("a count" if count >= 0 else str(count))] += 1
        if count > len(keys):
            self.oracle.find(
                f"remove_by_regex {stem} of {self.label!r} removed {count} of {len(keys)}"
            )
        if count >= len(there):
            for key in there:
                self.oracle.end((self.label, key), NONE, began)

    def get(self) -> None:
        read(self.oracle, self.client, self.label, self.some(16), "get")

    def get_of_another_label(self) -> None:
        if self.reader is None:
            self.get()
            return
        label = self.chance.choice(LABELS)
        self.reader.set_fingerprint(label)
        read(self.oracle, self.reader, label, self.some(16), "get after a change of label")


def read(
    oracle: Oracle, client: MooncakeDistributedStore, label: str, keys: list[str], where: str
) -> list[str]:
    """Get and judge; the keys that were there."""
    marks = [len(oracle.entries[label, key].log) - 1 for key in keys]
    values = client.get_batch(keys) if len(keys) > 1 else [client.get(keys[0])]
    return [
        key
        for key, mark, value in zip(keys, marks, values, strict=True)
        if oracle.judge(where, (label, key), value, oracle.entries[label, key].since(mark))
    ]


def labelled(site: DaemonSite, label: str) -> MooncakeDistributedStore:
    client = MooncakeDistributedStore()
    code = client.setup(
        "test", "P2PHANDSHAKE", 0, 1 << 24, "tcp", "", f"unix:{site.runtime}", fingerprint=label
    )
    assert code == 0, code
    site._clients.append(client)
    return client
