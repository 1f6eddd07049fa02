"""A dict as the model of a repository, with what a crash may have left undecided."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from repository_kit import append, contents_of, remove

from snapd.blocks import KeyColumn, hash_keys
from snapd.blocks.keys import I64
from snapd.disk import Disk
from snapd.repository import CompactionResult, Recovery, Repository


class ModelledRepository:
    """A repository and what must be in it. Every call is made on both.

    `certain` holds what is durable. While a call runs, what it changes is `undecided`: a crash may
    leave the old value or the new one. A call that returns decides. Evicted blocks may come back
    with the bytes that they had until something newer is known of their key.
    """

    def __init__(self, disk: Disk, *, retain: int = 2) -> None:
        self.disk = disk
        self.retain = retain
        self.certain: dict[bytes, bytes] = {}
        self.undecided: dict[bytes, set[bytes | None]] = {}
        self.evicted: dict[bytes, bytes] = {}
        self.sequence = 0
        self.epoch = self.epoch_wanted = 0
        self.generation = 0
        self.repository: Repository | None = None

    @property
    def open(self) -> Repository:
        """The repository, which is open."""
        assert self.repository is not None
        return self.repository

    def start(self) -> Recovery:
        """Open and recover."""
        self.repository = Repository.open(self.disk, retain=self.retain)
        recovery = self.repository.recover()
        self.repository.incarnation(b"0123456789abcdef")
        return recovery

    def put(self, blocks: dict[bytes, bytes], *, dropped: Iterable[bytes] = ()) -> None:
        """Seal a pack of new versions; `dropped` ones are written and left out."""
        self.sequence += 1
        out = set(dropped)
        kept = {key: data for key, data in blocks.items() if key not in out}
        self._may_become(kept)
        writer = self.open.begin_pack()
        append(writer, blocks, sequence=self.sequence, epoch=self.epoch)
        keys = list(blocks)
        writer.drop(np.array([keys.index(key) for key in out], np.int64))
        rows = writer.seal()
        assert [row >= 0 for row in rows.tolist()] == [key in kept for key in keys]
        self._did_become(kept)

    def remove(self, keys: Iterable[bytes]) -> None:
        """Remove keys, known or not."""
        self.sequence += 1
        gone: dict[bytes, bytes | None] = dict.fromkeys(keys)
        self._may_become(gone)
        remove(self.open, list(gone), sequence=self.sequence, epoch=self.epoch)
        self._did_become(gone)

    def remove_all(self) -> None:
        """Begin an epoch."""
        gone: dict[bytes, bytes | None] = dict.fromkeys({*self.certain, *self.evicted})
        self._may_become(gone)
        self.epoch_wanted = self.epoch + 1
        self.open.journal(epoch=self.epoch_wanted)
        self.epoch = self.epoch_wanted
        self._did_become(gone)

    def evict(self, keys: Iterable[bytes]) -> None:
        """Take keys out of the live set without removing them."""
        rows = self.rows_of([key for key in keys if key in self.certain])
        for key in list(keys):
            if key in self.certain:
                self.evicted[key] = self.certain.pop(key)
        assert self.open.catalog.set_live(rows, False).all()

    def commit(self) -> None:
        """Commit a snapshot."""
        self.generation = max(self.generation, self.open.commit().generation)

    def compact(self, packs: Iterable[int] | None = None) -> CompactionResult:
        """Copy what lives in these packs, by sequence, or in all: nothing changes but the place."""
        chosen = [pack.sequence for pack in self.open.packs()] if packs is None else list(packs)
        return self.open.compact(chosen)

    def rows_of(self, keys: list[bytes]) -> I64:
        """Catalog rows of keys."""
        return self.open.catalog.find(KeyColumn.from_list(keys), hash_keys(keys))

    def check(self) -> None:
        """The repository holds what it must and nothing else; from now on that is certain."""
        found = contents_of(self.open)
        for key in {*found, *self.certain, *self.undecided, *self.evicted}:
            allowed: set[bytes | None] = {self.certain.get(key)}
            allowed |= self.undecided.get(key, set())
            if key in self.evicted:
                allowed.add(self.evicted[key])
            assert found.get(key) in allowed, f"{key!r} is not what it was or may have become"
        for key, data in self.undecided.items():
            if found.get(key) is not None or None in data:
                self.evicted.pop(key, None)
        for key in list(self.evicted):
            if key in found:
                del self.evicted[key]
        self.certain = found
        self.undecided = {}
        assert self.open.generation >= self.generation, "a committed generation is gone"
        assert self.open.epoch in {self.epoch, self.epoch_wanted}
        self.epoch = self.epoch_wanted = self.open.epoch

    def forget_generations(self) -> None:
        """After a rebuild, no generation counts until the next commit."""
        self.generation = 0

    def _may_become(self, values: dict[bytes, bytes] | dict[bytes, bytes | None]) -> None:
        for key, value in values.items():
            self.undecided.setdefault(key, set()).add(value)

    def _did_become(self, values: dict[bytes, bytes] | dict[bytes, bytes | None]) -> None:
        for key, value in values.items():
            self.undecided.pop(key, None)
            self.evicted.pop(key, None)
            self.certain.pop(key, None)
            if value is not None:
                self.certain[key] = value
