"""Blocks and buffers for the tests of the repository."""

from __future__ import annotations

import mmap
from collections.abc import Sequence

import numpy as np
import xxhash

from snapd.blocks import BlockTable, KeyColumn, hash_keys
from snapd.blocks.keys import I64
from snapd.formats.removals import Removals
from snapd.formats.sealed import padded
from snapd.repository import PackWriter, Repository


def aligned(data: bytes) -> memoryview:
    """A page-aligned copy, padded with zeros to whole pages."""
    buffer = memoryview(mmap.mmap(-1, max(4096, padded(len(data)))))
    buffer[: len(data)] = data
    return buffer[: padded(len(data))]


def blank(size: int) -> memoryview:
    """Page-aligned room for a block, filled with something that is not zero."""
    buffer = aligned(bytes(size))
    buffer[:] = b"\xaa" * buffer.nbytes
    return buffer


def content(key: bytes, sequence: int, size: int = 6000) -> bytes:
    """Bytes that are a function of key and version."""
    seed = xxhash.xxh3_64_intdigest(key, seed=sequence)
    return np.random.default_rng(seed).bytes(size)


def table_of(
    keys: Sequence[bytes],
    datas: Sequence[bytes],
    *,
    sequence: int | Sequence[int] = 1,
    incarnation: int = 1,
    epoch: int = 0,
    fingerprint: int = 0,
) -> BlockTable:
    """A table of these blocks with their checksums."""
    rows = len(keys)
    column = KeyColumn.from_list(list(keys))
    return BlockTable.for_keys(column, hash_keys(keys)).with_columns(
        epoch=np.full(rows, epoch),
        incarnation=np.full(rows, incarnation),
        sequence=np.broadcast_to(np.asarray(sequence), rows),
        size=np.array([len(data) for data in datas]),
        checksum=np.array([xxhash.xxh3_64_intdigest(data) for data in datas], np.uint64),
        fingerprint=np.full(rows, fingerprint),
        heat=np.arange(1, rows + 1),
    )


def append(
    writer: PackWriter,
    blocks: dict[bytes, bytes],
    *,
    sequence: int = 1,
    epoch: int = 0,
    fingerprint: int = 0,
) -> None:
    """Append blocks by key."""
    table = table_of(
        list(blocks),
        list(blocks.values()),
        sequence=sequence,
        epoch=epoch,
        fingerprint=fingerprint,
    )
    good = writer.append(table, [aligned(data) for data in blocks.values()])
    assert good.all()


def put(
    repository: Repository, blocks: dict[bytes, bytes], *, sequence: int = 1, epoch: int = 0
) -> I64:
    """Seal a pack of blocks by key; returns their catalog rows."""
    writer = repository.begin_pack()
    append(writer, blocks, sequence=sequence, epoch=epoch)
    return writer.seal()


def remove(repository: Repository, keys: Sequence[bytes], *, sequence: int, epoch: int = 0) -> None:
    """Journal the removal of all versions up to `sequence`."""
    table = table_of(keys, [b"x"] * len(keys), sequence=sequence, epoch=epoch)
    repository.journal(Removals.of_blocks(table))


def contents_of(repository: Repository) -> dict[bytes, bytes]:
    """Every live block, read and verified; a bad one fails the test."""
    rows = repository.catalog.live_rows()
    table = repository.catalog.take(rows)
    buffers = [blank(size) for size in table.size.tolist()]
    good = repository.read(rows, buffers)
    assert good.all(), f"{(~good).sum()} of {len(good)} live blocks cannot be read"
    keys = table.keys.to_list()
    assert len(set(keys)) == len(keys), "a key is live twice"
    sizes = table.size.tolist()
    return {
        key: bytes(buffer[:size]) for key, buffer, size in zip(keys, buffers, sizes, strict=True)
    }
