"""A dict as the model of a repository, with what a crash may have left undecided."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import Enum

import numpy as np
import xxhash
from repository_kit import aligned, blank, table_of

from snapd.blocks import BlockTable, KeyColumn, hash_keys
from snapd.blocks.keys import I64
from snapd.disk import Disk
from snapd.disk.simulated import SimulatedDisk
from snapd.errors import SnapdError
from snapd.formats.removals import Removals
from snapd.repository import CompactionResult, PackWriter, Purge, PurgeResult, Recovery, Repository

Version = tuple[int, int, int]
"""Epoch, ordinal of the incarnation, sequence: see decision 0001."""


class Trust(Enum):
    """What is expected of the disk, and so of the repository."""

    FULL = "what is synced stays"
    LOSSES = "bytes go bad: keys may be missing, none is wrong, none is back"
    NONE = "what was synced may never have been: keys hold bytes that they held once"


_NEVER: Version = (-1, 0, 0)


@dataclass(frozen=True, slots=True)
class OpenPack:
    """A pack that is being written, and what becomes true when it is sealed."""

    writer: PackWriter
    version: Version
    keys: list[bytes]
    kept: dict[bytes, bytes]


class ModelledRepository:
    """A repository and what must be in it. Every call is made on both.

    `certain` holds what is durable. While a call runs, what it says is `undecided`: a crash may
    leave the old value or the new one. A call that returns decides. Evicted blocks may come back
    with the bytes that they had until something newer is known of their key. What is older than
    what is known of a key says nothing, whenever it becomes durable.
    """

    def __init__(self, disk: Disk, *, retain: int = 2) -> None:
        self.disk = disk
        self.retain = retain
        self.certain: dict[bytes, bytes] = {}
        self.newest: dict[bytes, Version] = {}
        self.undecided: dict[bytes, dict[Version, bytes | None]] = {}
        self.evicted: dict[bytes, bytes] = {}
        self.revived: dict[bytes, bytes] = {}
        """Evicted blocks that live again, which no snapshot has seen yet."""
        self.ever: dict[bytes, set[bytes]] = {}
        """Everything that a key was ever to hold."""
        self.damaged: set[str] = set()
        """Files that a life has changed on the medium: what is said of them is no news."""
        self.rotten: dict[bytes, bytes] = {}
        """Blocks whose stored bytes it has changed: they may be missing."""
        self.sequence = 0
        self.segment = 1
        self.ordinal = 0
        self.epoch = self.epoch_wanted = 0
        self.generation = 0
        self.seconds = 1_000.0
        self.trust = Trust.FULL
        self.repository: Repository | None = None

    # --- life ---------------------------------------------------------------------------------

    @property
    def open(self) -> Repository:
        """The repository, which is open."""
        assert self.repository is not None
        return self.repository

    def start(self, step: str = "recovery") -> Recovery:
        """Open, recover and attach."""
        self.revived = {}
        with self.step(step):
            self.repository = Repository.open(self.disk, retain=self.retain, now=self._now)
            try:
                recovery = self.repository.recover()
                self._attach()
            except SnapdError:
                self.close()
                raise
        return recovery

    def close(self) -> None:
        """Close, if it is open."""
        if self.repository is not None:
            self.repository.close()
            self.repository = None

    def new_segment(self) -> None:
        """Shared memory was wiped: another segment comes, whose sequences start again."""
        self.segment += 1
        self.sequence = 0
        with self.step("attach"):
            self._attach()

    def rebuild(self) -> Recovery:
        """Rebuild from packs and journals; no generation counts until the next commit. What was
        evicted may be back, and that is durable with the next commit too."""
        with self.step("rebuild"):
            recovery = self.open.rebuild()
        self.generation = 0
        evicted = dict(self.evicted)
        self.check(lossy=bool(recovery.unreadable_packs or recovery.journal_findings))
        self.revived = {key: data for key, data in evicted.items() if self.certain.get(key) == data}
        for key in self.revived:
            self.evicted[key] = self.certain.pop(key)
        return recovery

    def copy(self, disk: Disk) -> ModelledRepository:
        """The same knowledge about another disk, on which nothing is open."""
        other = ModelledRepository(disk, retain=self.retain)
        other.certain, other.evicted = dict(self.certain), dict(self.evicted)
        other.newest, other.revived = dict(self.newest), dict(self.revived)
        other.damaged, other.rotten = set(self.damaged), dict(self.rotten)
        other.ever = {key: set(values) for key, values in self.ever.items()}
        other.undecided = {key: dict(facts) for key, facts in self.undecided.items()}
        other.sequence, other.segment, other.ordinal = self.sequence, self.segment, self.ordinal
        other.epoch, other.epoch_wanted = self.epoch, self.epoch_wanted
        other.generation, other.seconds = self.generation, self.seconds
        other.trust = self.trust
        return other

    def digest(self) -> bytes:
        """16 bytes that stand for everything that is known."""
        undecided = {
            (key, version): value
            for key, facts in self.undecided.items()
            for version, value in facts.items()
        }
        facts = (
            [
                sorted((key, _mark(value)) for key, value in values.items())
                for values in (self.certain, self.evicted, self.revived, undecided)
            ],
            sorted(self.newest.items()),
            sorted(self.damaged),
            sorted((key, _mark(value)) for key, value in self.rotten.items()),
            (self.sequence, self.segment, self.epoch, self.epoch_wanted, self.generation),
        )
        return hashlib.blake2b(repr(facts).encode(), digest_size=16).digest()

    def step(self, name: str) -> AbstractContextManager[None]:
        """Label operations of the simulated disk."""
        return self.disk.step(name) if isinstance(self.disk, SimulatedDisk) else nullcontext()

    # --- what changes -------------------------------------------------------------------------

    def put(self, blocks: dict[bytes, bytes], *, dropped: Iterable[bytes] = ()) -> None:
        """Seal a pack of new versions; `dropped` ones are written and left out."""
        self.seal(self.begin(blocks, dropped=dropped))

    def begin(self, blocks: dict[bytes, bytes], *, dropped: Iterable[bytes] = ()) -> OpenPack:
        """Write a pack of new versions and leave it open."""
        self.sequence += 1
        version, out, keys = self._version(), set(dropped), list(blocks)
        for key, data in blocks.items():
            self.ever.setdefault(key, set()).add(data)
        with self.step("flush"):
            writer = self.open.begin_pack()
            good = writer.append(self._table(blocks), [aligned(data) for data in blocks.values()])
        assert good.all()
        writer.drop(np.array([keys.index(key) for key in out], np.int64))
        kept = {key: data for key, data in blocks.items() if key not in out}
        return OpenPack(writer, version, keys, kept)

    def seal(self, pack: OpenPack) -> None:
        """Seal an open pack."""
        self._may_become(pack.version, pack.kept)
        with self.step("flush"):
            rows = pack.writer.seal()
        are_live = [row >= 0 for row in rows.tolist()]
        assert are_live == [key in pack.kept for key in pack.keys]
        self._did_become(pack.version, pack.kept)

    def remove(self, keys: Iterable[bytes]) -> None:
        """Remove keys, known or not."""
        self.sequence += 1
        version, gone = self._version(), dict.fromkeys(keys)
        self._may_become(version, gone)
        with self.step("removal"):
            self.open.journal(Removals.of_blocks(self._table(dict.fromkeys(gone, b"x"))))
        self._did_become(version, gone)

    def remove_all(self) -> None:
        """Begin an epoch. A call that failed has to be made again: the store has begun it."""
        self.epoch_wanted = self.epoch + 1
        version: Version = (self.epoch_wanted, 0, 0)
        self._may_become(version, dict.fromkeys(self.keys()))
        with self.step("removal"):
            self.open.journal(epoch=self.epoch_wanted)
        self._did_begin_epoch()

    def evict(self, keys: Iterable[bytes]) -> None:
        """Take keys out of the live set without removing them."""
        known = [key for key in keys if key in self.certain]
        rows = self.rows_of(known)
        for key in known:
            self.evicted[key] = self.certain.pop(key)
        evicted = self.open.catalog.set_live(rows, False)
        assert evicted.all() or self.trust is not Trust.FULL

    def revive(self, keys: Iterable[bytes]) -> None:
        """The same bytes came back before anything was forgotten: evicted keys live again."""
        known = [key for key in keys if key in self.evicted and key not in self.undecided]
        back = self.open.catalog.set_live(self.rows_of(known), True).tolist()
        for key, lives in zip(known, back, strict=True):
            if lives:
                self.certain[key] = self.evicted.pop(key)

    def commit(self) -> None:
        """Commit a snapshot."""
        with self.step("snapshot"):
            self.generation = max(self.generation, self.open.commit().generation)
        for key, data in self.revived.items():
            if self.evicted.get(key) == data:
                self.certain[key] = self.evicted.pop(key)
        self.revived = {}

    def compact(self, packs: Iterable[int] | None = None) -> CompactionResult:
        """Copy what lives in these packs, by sequence, or in all: nothing changes but the place."""
        chosen = [pack.sequence for pack in self.open.packs()] if packs is None else list(packs)
        with self.step("compaction"):
            return self.open.compact(chosen)

    def purge(self, prefix: bytes) -> PurgeResult:
        """Remove what begins so, and delete what holds its bytes."""
        self.sequence += 1
        version = self._version()
        gone = dict.fromkeys(key for key in self.keys() if key.startswith(prefix))
        self._may_become(version, gone)
        with self.step("purge"):
            purge = Purge(self.open, prefix, self.open.compact, pin_seconds=0, writing_seconds=0)
            purge.remove(self.open.catalog.rows_end)
            # Evicted blocks are gone from here on, others were removed.
            result = purge.erase()
        self._did_become(version, gone)
        return result

    def rows_of(self, keys: list[bytes]) -> I64:
        """Catalog rows of keys."""
        return self.open.catalog.find(KeyColumn.from_list(keys), hash_keys(keys))

    # --- what goes bad ------------------------------------------------------------------------

    def damage_newest_manifest(self) -> None:
        """A bit of the newest snapshot flips on the medium, while nobody has it open."""
        assert isinstance(self.disk, SimulatedDisk)
        self.close()
        names = [name for name in self.disk.files() if name.startswith("manifests/")]
        if names:
            self.disk.flip(names[-1], 8 * (len(self.disk.contents(names[-1])) // 2) + 3)
            self.damaged.add(names[-1])
            # It is not the newest that can be read any more.
            self.generation = 0

    def rot(self, key: bytes) -> None:
        """A bit of a block flips on the medium."""
        assert isinstance(self.disk, SimulatedDisk)
        if key not in self.certain or key in self.undecided:
            return  # what went wrong before took it
        block = self.open.catalog.take(self.rows_of([key]))
        sequence = int(block.pack[0])
        name = next(pack.name for pack in self.open.packs() if pack.sequence == sequence)
        self.disk.flip(name, 8 * int(block.pack_offset[0]) + 5)
        self.damaged.add(name)
        self.rotten[key] = self.certain[key]

    def news(self, sentences: Iterable[str]) -> list[str]:
        """Of sentences about files, those that are not about a damaged one."""
        names = {name.rpartition("/")[2] for name in self.damaged}
        return [one for one in sentences if not any(name in one for name in names)]

    def verify(self, generation: int | None = None, *, all_blocks: bool = False) -> list[str]:
        """What `verify` finds that is news."""
        found = self.open.verify(generation, all_blocks=all_blocks).findings
        return self.news(f"{one.file}: {one.problem}" for one in found)

    # --- what must be true --------------------------------------------------------------------

    def allowed(self, key: bytes) -> set[bytes | None]:
        """What a key may hold; None: nothing."""
        newest = self.newest.get(key, _NEVER)
        values = {self.certain.get(key)}
        values |= {
            value
            for version, value in self.undecided.get(key, {}).items()
            if version > newest and version[0] >= self.epoch
        }
        if key in self.evicted:
            values.add(self.evicted[key])
        if key in self.rotten and self.rotten[key] in values:
            values.add(None)
        return values

    def keys(self) -> set[bytes]:
        """Every key that anything is known of."""
        return {*self.certain, *self.undecided, *self.evicted, *self.newest}

    def check(self, *, lossy: bool = False) -> None:
        """The repository holds what it must and nothing else; from now on that is certain.

        `lossy`: it has counted a loss, so that keys may be missing. They may come back as evicted
        ones may, with what they held.
        """
        if self.trust is Trust.NONE:
            self._check_that_nothing_is_made_up()
            return
        assert self.open.epoch in {self.epoch, self.epoch_wanted}
        if self.open.epoch > self.epoch:
            self._did_begin_epoch()
        self.epoch_wanted = self.epoch
        found, bad = self.readable()
        lossy = lossy or self.trust is not Trust.FULL
        assert lossy or bad <= len(self.rotten), f"{bad} live blocks cannot be read"
        self.settle(found, lossy=lossy)
        if not lossy:
            assert self.open.generation >= self.generation, "a committed generation is gone"
        self.generation = max(self.generation, self.open.generation)

    def settle(self, found: Mapping[bytes, bytes], *, lossy: bool = False) -> None:
        """These are the contents: they must be allowed, and are certain from now on."""
        for key in {*found, *self.keys()}:
            value = found.get(key)
            may_be = self.allowed(key) | ({None} if lossy else set())
            assert value in may_be, f"{key!r} is not what it was or may have become"
        for key in {*found, *self.keys()}:
            self._learn(key, found.get(key))
        self.undecided = {}

    def readable(self) -> tuple[dict[bytes, bytes], int]:
        """Every live block that reads back whole, and how many do not; those are rejected."""
        rows = self.open.catalog.live_rows()
        table = self.open.catalog.take(rows)
        keys = table.keys.to_list()
        assert len(set(keys)) == len(keys), "a key is live twice"
        buffers = [blank(size) for size in table.size.tolist()]
        good = self.open.read(rows, buffers)
        self.open.reject(rows[~good])
        found = zip(keys, table.size.tolist(), buffers, good.tolist(), strict=True)
        whole = {key: bytes(buffer[:size]) for key, size, buffer, is_good in found if is_good}
        return whole, int((~good).sum())

    # --- inside -------------------------------------------------------------------------------

    def _check_that_nothing_is_made_up(self) -> None:
        """The disk lied about what is durable: what is there may be old, but never wrong."""
        found, _ = self.readable()
        for key, value in found.items():
            assert value in self.ever.get(key, ()), f"{key!r} never held this"
        self.certain, self.evicted, self.undecided, self.newest = found, {}, {}, {}
        self.epoch = self.epoch_wanted = self.open.epoch
        self.generation = 0

    def _learn(self, key: bytes, value: bytes | None) -> None:
        """A key holds this after all."""
        before = self.certain.get(key)
        facts = self.undecided.get(key, {})
        if value != before:
            happened = [version for version, said in facts.items() if said == value]
            if happened:
                self.newest[key] = max(self.newest.get(key, _NEVER), *happened)
                self.evicted.pop(key, None)
            elif before is not None and value is None:
                self.evicted[key] = before
        if value is None:
            self.certain.pop(key, None)
        else:
            self.certain[key] = value
            self.evicted.pop(key, None)

    def _did_begin_epoch(self) -> None:
        self.epoch = self.epoch_wanted
        self._did_become((self.epoch, 0, 0), dict.fromkeys(self.keys()))

    def _attach(self) -> None:
        self.ordinal = self.open.incarnation(b"segment %08d" % self.segment).ordinal

    def _now(self) -> float:
        self.seconds += 1.0
        return self.seconds

    def _version(self) -> Version:
        return (self.epoch, self.ordinal, self.sequence)

    def _table(self, blocks: dict[bytes, bytes]) -> BlockTable:
        return table_of(
            list(blocks),
            list(blocks.values()),
            sequence=self.sequence,
            incarnation=self.ordinal,
            epoch=self.epoch,
        )

    def _may_become(self, version: Version, values: Mapping[bytes, bytes | None]) -> None:
        for key, value in values.items():
            self.undecided.setdefault(key, {})[version] = value

    def _did_become(self, version: Version, values: Mapping[bytes, bytes | None]) -> None:
        for key, value in values.items():
            facts = self.undecided.get(key, {})
            left = {one: said for one, said in facts.items() if one > version}
            self.undecided.pop(key, None)
            if left:
                self.undecided[key] = left
            if version <= self.newest.get(key, _NEVER) or version[0] < self.epoch:
                continue
            self.newest[key] = version
            self.evicted.pop(key, None)
            self.certain.pop(key, None)
            if value is not None:
                self.certain[key] = value


def _mark(value: bytes | None) -> int:
    """Stands for a value: distinct ones have distinct marks, but for bad luck."""
    return -1 if value is None else xxhash.xxh3_64_intdigest(value)
