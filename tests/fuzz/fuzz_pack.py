"""Packs: header, trailer and index, as recovery reads them."""

from __future__ import annotations

import random

import numpy as np
from format_mutators import mutate_sealed
from repository_kit import content, table_of

from snapd.blocks import BlockTable, Codec
from snapd.errors import CorruptError, NewerFormatError
from snapd.formats.pack import PackIndex, decode_pack_index, encode_pack_index, padded_sizes
from snapd.formats.removals import COLUMN_DTYPES, Removals
from snapd.formats.sealed import (
    PACK_MAGIC,
    PAGE_BYTES,
    FileHeader,
    FileTrailer,
    check_header_and_trailer,
    decode_header,
    decode_trailer,
    encode_header,
    encode_trailer,
    index_digest,
)
from snapd.formats.tables import Incarnation
from snapd.repository.catalog import Catalog

_HEADER = FileHeader(PACK_MAGIC, b"repository-fuzz!", b"pack-of-fuzzing!", 7)


def _file(index: PackIndex, data: bytes) -> bytes:
    raw, raw_bytes = encode_pack_index(index)
    trailer = FileTrailer(
        _HEADER, PAGE_BYTES + len(data), len(raw), raw_bytes, index_digest(raw), len(index.blocks)
    )
    return encode_header(_HEADER) + data + raw + encode_trailer(trailer)


def _index(rows: int, removed: int) -> PackIndex:
    keys = [b"key-%d" % row for row in range(rows)]
    blocks = table_of(keys, [content(key, 1, 4000) for key in keys], sequence=9, fingerprint=3)
    blocks = blocks.with_columns(
        stored_size=np.where(np.arange(rows) % 2, 1000, blocks.size).astype(np.uint64),
        codec=np.where(np.arange(rows) % 2, Codec.ZSTD, Codec.RAW).astype(np.uint8),
        pack=np.full(rows, 7, np.uint32),
        pack_offset=(PAGE_BYTES * (1 + np.arange(rows))).astype(np.uint64),
    )
    gone = [b"gone-%d" % row for row in range(removed)]
    removals = Removals.of_blocks(table_of(gone, [b"x"] * removed, sequence=4))
    known = (Incarnation(1, b"s" * 16, 0), Incarnation(2, b"t" * 16, 1))
    return PackIndex(blocks, removals, 2, known, {3: "model-a", 9: "model-b"})


def seeds() -> list[bytes]:
    """Packs with blocks, with removals, with both; and with rows enough to be compressed."""
    empty = PackIndex(BlockTable.empty(), _index(1, 3).removals, 0, (), {})
    many = _index(40, 40)
    return [
        _file(_index(5, 2), bytes(5 * PAGE_BYTES)),
        _file(_index(2, 0), bytes(2 * PAGE_BYTES)),
        _file(empty, b""),
        _file(many, bytes(40 * PAGE_BYTES)),
    ]


def mutate(data: bytes, rng: random.Random) -> bytes:
    return mutate_sealed(data, rng, "pack")


def check(data: bytes) -> None:
    """Decode as recovery does; of what is accepted, check the bounds anew and write it again."""
    try:
        header = decode_header(data[:PAGE_BYTES], PACK_MAGIC)
        trailer = decode_trailer(data[-PAGE_BYTES:], PACK_MAGIC, len(data))
        check_header_and_trailer(header, trailer)
        end = trailer.index_offset + trailer.index_bytes
        index = decode_pack_index(data[trailer.index_offset : end], trailer)
    except (CorruptError, NewerFormatError):
        return
    blocks = index.blocks
    spans = sorted(
        zip(blocks.pack_offset.tolist(), padded_sizes(blocks.stored_size).tolist(), strict=True)
    )
    at = PAGE_BYTES
    for offset, length in spans:
        assert offset >= at, "blocks overlap"
        at = offset + length
    assert at <= trailer.index_offset, "a block reaches into the index"
    again, raw_bytes = encode_pack_index(index)
    second = FileTrailer(
        header, trailer.index_offset, len(again), raw_bytes, index_digest(again), trailer.rows
    )
    same(index, decode_pack_index(again, second))
    catalog = Catalog()
    catalog.add(blocks)
    catalog.remove(index.removals)


def same(one: PackIndex, other: PackIndex) -> None:
    """Raise AssertionError unless two indexes say the same."""
    assert (one.epoch, one.incarnations, one.fingerprints) == (
        other.epoch,
        other.incarnations,
        other.fingerprints,
    )
    assert one.blocks.keys.to_list() == other.blocks.keys.to_list()
    for name in ("sequence", "size", "stored_size", "codec", "checksum", "pack_offset", "heat"):
        assert np.array_equal(getattr(one.blocks, name), getattr(other.blocks, name)), name
    assert one.removals.keys.to_list() == other.removals.keys.to_list()
    for name in COLUMN_DTYPES:
        assert np.array_equal(getattr(one.removals, name), getattr(other.removals, name)), name
