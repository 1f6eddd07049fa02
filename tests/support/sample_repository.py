"""A small repository with everything in it that a repository can have, and what it must give back.

Raw and compressed packs, removals in packs and in the journal, two epochs, a fingerprint, three
generations, a replaced and an evicted key, a pack that was sealed after the last manifest, an open
journal, a quarantined block. Bytes are functions of key and version, so that a test knows what is
right without having been there; the ids in the files are random.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import xxhash
from repository_kit import aligned, table_of

from snapd.blocks import Codec, KeyColumn, hash_keys
from snapd.disk.posix import PosixDisk
from snapd.formats.removals import Removals
from snapd.repository import Repository

SEGMENT_ID = b"segment-of-tests"
FINGERPRINT = "llama-3-8b bf16 page 64 mha tp 1/1"
LABELLED = b"raw-0"
"""A key whose block has the fingerprint."""


def block_bytes(key: bytes, sequence: int, size: int) -> bytes:
    """What version `sequence` of a key holds; it compresses four to one, and no two are alike."""
    seed = xxhash.xxh3_64_intdigest(key, seed=sequence)
    return (np.random.default_rng(seed).bytes(-(-size // 4)) * 4)[:size]


@dataclass(slots=True)
class Expected:
    """What a sample repository must give back."""

    live: dict[bytes, bytes] = field(default_factory=dict)
    """Bytes by key, as they were last durable."""
    evicted: dict[bytes, bytes] = field(default_factory=dict)
    """Keys that left without having been removed: a rebuild may bring them back."""
    gone: set[bytes] = field(default_factory=set)
    """Removed, or of an epoch that has ended."""
    ever: dict[bytes, set[bytes]] = field(default_factory=dict)
    """Everything that a key ever held."""

    def put(self, key: bytes, data: bytes) -> None:
        """A version became durable."""
        self.live[key] = data
        self.ever.setdefault(key, set()).add(data)
        self.gone.discard(key)

    def remove(self, *keys: bytes) -> None:
        """Keys were removed."""
        for key in keys:
            self.live.pop(key, None)
            self.evicted.pop(key, None)
            self.gone.add(key)


class _Author:
    """Writes versions into a repository and keeps the book."""

    def __init__(self, root: Path, prefix: bytes) -> None:
        self.root = root
        self.prefix = prefix
        self.sequence = 0
        self.epoch = 0
        self.incarnation = 0
        self.expected = Expected()
        self.now = 1_700_000_000.0

    def open(self, codec: Codec) -> Repository:
        disk = PosixDisk(self.root, create=True)
        repository = Repository.open(disk, codec=codec, now=self._tick)
        repository.recover()
        self.incarnation = repository.incarnation(SEGMENT_ID).ordinal
        return repository

    def close(self, repository: Repository) -> None:
        repository.close()
        disk = repository.disk
        assert isinstance(disk, PosixDisk)
        disk.close()

    def pack(self, repository: Repository, sizes: dict[bytes, int], fingerprint: int = 0) -> None:
        self.sequence += 1
        keys = [self.prefix + key for key in sizes]
        datas = [
            block_bytes(key, self.sequence, size)
            for key, size in zip(keys, sizes.values(), strict=True)
        ]
        table = table_of(
            keys,
            datas,
            sequence=self.sequence,
            incarnation=self.incarnation,
            epoch=self.epoch,
            fingerprint=fingerprint,
        )
        writer = repository.begin_pack()
        assert writer.append(table, [aligned(data) for data in datas]).all()
        writer.seal()
        for key, data in zip(keys, datas, strict=True):
            self.expected.put(key, data)

    def remove(self, repository: Repository, *keys: bytes) -> None:
        self.sequence += 1
        named = [self.prefix + key for key in keys]
        table = table_of(
            named,
            [b"-"] * len(named),
            sequence=self.sequence,
            incarnation=self.incarnation,
            epoch=self.epoch,
        )
        repository.journal(Removals.of_blocks(table))
        self.expected.remove(*named)

    def remove_all(self, repository: Repository) -> None:
        self.epoch += 1
        repository.journal(epoch=self.epoch)
        self.expected.remove(*list(self.expected.live))

    def evict(self, repository: Repository, key: bytes) -> None:
        named = self.prefix + key
        rows = repository.catalog.find(KeyColumn.from_list([named]), hash_keys([named]))
        assert rows[0] >= 0
        repository.catalog.set_live(rows, False)
        self.expected.evicted[named] = self.expected.live.pop(named)

    def _tick(self) -> float:
        self.now += 1.0
        return self.now


def build_sample(root: Path, prefix: bytes = b"") -> Expected:
    """Write a sample repository into `root`; its keys start with `prefix`.

    The last things done to it are in no manifest: a sealed pack and, behind it, a journal.
    """
    author = _Author(root, prefix)
    repository = author.open(Codec.RAW)
    label = repository.fingerprint(FINGERPRINT)
    author.pack(repository, {b"old-0": 3000, b"old-1": 5000})
    repository.commit()
    author.remove_all(repository)
    author.pack(repository, {LABELLED: 4096}, fingerprint=label)
    author.pack(repository, {b"raw-1": 1, b"raw-2": 6000, b"raw-3": 4097, b"raw-4": 700})
    author.remove(repository, b"raw-3")
    author.close(repository)

    repository = author.open(Codec.ZSTD)
    author.pack(repository, {b"zstd-0": 9000, b"zstd-1": 12288, b"raw-1": 5000, b"zstd-2": 20})
    repository.commit()
    author.pack(repository, {b"zstd-3": 8000, b"idle-0": 6000})
    author.evict(repository, b"idle-0")
    repository.commit()
    author.close(repository)

    repository = author.open(Codec.RAW)
    author.remove(repository, b"zstd-0")
    author.pack(repository, {b"late-0": 2500, b"zstd-3": 4500})
    author.remove(repository, b"raw-4", b"late-0")
    (root / "quarantine" / "0000000001-0000000000001000.block").write_bytes(b"bad" * 1000)
    author.close(repository)
    return author.expected
