"""The index of a pack: everything that is known about its blocks, as columns.

With it a repository can be rebuilt from its packs alone: each row carries the identity of its
version, and the index carries what was removed before it was sealed, the repository's epoch, and
what the numbers of incarnations and fingerprints stand for.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from snapd.blocks import BlockTable, Codec, KeyColumn
from snapd.blocks.keys import U64
from snapd.errors import CorruptError, NewerFormatError
from snapd.formats.layout import RecordField, record_dtype
from snapd.formats.removals import Removals, check_keys
from snapd.formats.sealed import PAGE_BYTES, FileTrailer, index_digest
from snapd.formats.sections import Column, Sections, encode_sections
from snapd.formats.tables import (
    Incarnation,
    check_counter,
    fingerprint_columns,
    incarnation_column,
    read_fingerprints,
    read_incarnations,
)

BLOCK_BYTES_MAX = 1 << 40
"""Largest block that an index may name."""
EXPANSION_MAX = 1 << 15
"""A zstd frame holds at most so many bytes for each of its own: blocks of 128 KiB in 4 bytes."""
REMOVALS_MAX = 1 << 22
"""Most removals in one pack."""


class PackSection(IntEnum):
    """Kinds of section in a pack's index. A number is never used again for something else."""

    META = 1
    KEY_LENGTHS = 2
    KEY_HEAP = 3
    KEY_HASH = 4
    EPOCH = 5
    INCARNATION = 6
    SEQUENCE = 7
    SIZE = 8
    STORED_SIZE = 9
    CODEC = 10
    CHECKSUM = 11
    FINGERPRINT = 12
    PARENT = 13
    GROUP = 14
    PIN = 15
    HEAT = 16
    PACK_OFFSET = 17
    INCARNATIONS = 32
    FINGERPRINTS = 33
    FINGERPRINT_LABELS = 34
    REMOVAL_KEY_LENGTHS = 48
    REMOVAL_KEY_HEAP = 49
    REMOVAL_KEY_HASH = 50
    REMOVAL_EPOCH = 51
    REMOVAL_INCARNATION = 52
    REMOVAL_SEQUENCE = 53


RESERVED_SECTIONS: dict[int, str] = {
    64: "encryption of the data area: key id, algorithm, wrapped key; always required",
    65: "encryption of blocks: one nonce a row; always required",
}
"""Numbers kept for later versions. Version 1 neither writes nor reads them."""

BLOCK_COLUMNS: dict[PackSection, str] = {
    section: section.name.lower() for section in PackSection if 4 <= section <= 17
}
"""Section of each column of a `BlockTable` that an index holds."""

COLUMN_TYPES: dict[PackSection, str] = {
    PackSection.KEY_LENGTHS: "<u2",
    PackSection.KEY_HEAP: "u1",
    PackSection.KEY_HASH: "<u8",
    PackSection.EPOCH: "<u4",
    PackSection.INCARNATION: "<u4",
    PackSection.SEQUENCE: "<u8",
    PackSection.SIZE: "<u8",
    PackSection.STORED_SIZE: "<u8",
    PackSection.CODEC: "u1",
    PackSection.CHECKSUM: "<u8",
    PackSection.FINGERPRINT: "<u2",
    PackSection.PARENT: "<u8",
    PackSection.GROUP: "<u4",
    PackSection.PIN: "u1",
    PackSection.HEAT: "<f4",
    PackSection.PACK_OFFSET: "<u8",
    PackSection.REMOVAL_KEY_LENGTHS: "<u2",
    PackSection.REMOVAL_KEY_HEAP: "u1",
    PackSection.REMOVAL_KEY_HASH: "<u8",
    PackSection.REMOVAL_EPOCH: "<u4",
    PackSection.REMOVAL_INCARNATION: "<u4",
    PackSection.REMOVAL_SEQUENCE: "<u8",
}
"""Item type of each section that is a plain column."""

ROW_BYTES_MIN = sum(
    np.dtype(kind).itemsize for section, kind in COLUMN_TYPES.items() if section < 32
)
"""Bytes of the smallest row once decompressed: one item of each column, a key of one byte."""

PACK_META_FIELDS = (
    RecordField("epoch", "<u4", "epoch of the repository when the pack was sealed"),
    RecordField("reserved", "<u4", "zero"),
    RecordField("removals", "<u8", "rows of the removal sections"),
)
PACK_META_DTYPE = record_dtype(PACK_META_FIELDS, 16)


@dataclass(frozen=True, slots=True)
class PackIndex:
    """A verified index."""

    blocks: BlockTable
    """`pack` is the pack's sequence; slot columns are zero."""
    removals: Removals
    epoch: int
    incarnations: tuple[Incarnation, ...]
    fingerprints: dict[int, str]


def encode_pack_index(index: PackIndex) -> tuple[bytes, int]:
    """The index padded to whole pages, and the length of its sections once decompressed."""
    meta = np.zeros(1, PACK_META_DTYPE)
    meta["epoch"], meta["removals"] = index.epoch, len(index.removals)
    fingerprints, labels = fingerprint_columns(index.fingerprints)
    removals = index.removals
    columns: dict[int, Column] = {
        PackSection.META: meta,
        PackSection.KEY_LENGTHS: index.blocks.keys.lengths,
        PackSection.KEY_HEAP: _heap(index.blocks.keys),
        **{section: getattr(index.blocks, name) for section, name in BLOCK_COLUMNS.items()},
        PackSection.INCARNATIONS: incarnation_column(index.incarnations),
        PackSection.FINGERPRINTS: fingerprints,
        PackSection.FINGERPRINT_LABELS: labels,
        PackSection.REMOVAL_KEY_LENGTHS: removals.keys.lengths,
        PackSection.REMOVAL_KEY_HEAP: _heap(removals.keys),
        PackSection.REMOVAL_KEY_HASH: removals.key_hash,
        PackSection.REMOVAL_EPOCH: removals.epoch,
        PackSection.REMOVAL_INCARNATION: removals.incarnation,
        PackSection.REMOVAL_SEQUENCE: removals.sequence,
    }
    typed = {
        kind: column.astype(COLUMN_TYPES[PackSection(kind)], copy=False)
        if kind in COLUMN_TYPES
        else column
        for kind, column in columns.items()
    }
    return encode_sections(typed), sum(column.nbytes for column in typed.values())


def decode_pack_index(raw: bytes | memoryview, trailer: FileTrailer) -> PackIndex:
    """The verified index of the pack that `trailer` describes.

    Every block lies between header and index and no two overlap; every fingerprint is in the
    table. Raises CorruptError or NewerFormatError.
    """
    if len(raw) != trailer.index_bytes or index_digest(raw) != trailer.index_digest:
        raise CorruptError("pack index does not have its digest")
    if trailer.rows > (trailer.index_offset - PAGE_BYTES) // PAGE_BYTES:
        raise CorruptError(f"{trailer.rows} blocks do not fit before the index")
    sections = Sections(raw, tuple(PackSection))
    if sections.raw_bytes != trailer.raw_bytes:
        raise CorruptError("pack index does not have the length that its trailer says")
    meta = sections.column(PackSection.META, PACK_META_DTYPE, 1)[0]
    index = PackIndex(
        blocks=_read_blocks(sections, trailer),
        removals=_read_removals(sections, int(meta["removals"])),
        epoch=int(meta["epoch"]),
        incarnations=read_incarnations(sections, PackSection.INCARNATIONS),
        fingerprints=read_fingerprints(
            sections, PackSection.FINGERPRINTS, PackSection.FINGERPRINT_LABELS
        ),
    )
    _check_counters(index)
    _check_values(index)
    _check_extents(index.blocks, trailer.index_offset)
    return index


def padded_sizes(sizes: U64) -> U64:
    """Bytes that blocks of these stored sizes take in a pack, uint64 [n]."""
    page = np.uint64(PAGE_BYTES)
    result: U64 = (sizes + page - np.uint64(1)) // page * page
    return result


def _read_blocks(sections: Sections, trailer: FileTrailer) -> BlockTable:
    rows = trailer.rows
    keys = _read_keys(sections, PackSection.KEY_LENGTHS, PackSection.KEY_HEAP, rows)
    blank = BlockTable.for_keys(keys, _column(sections, PackSection.KEY_HASH, rows))
    columns = {name: _column(sections, section, rows) for section, name in BLOCK_COLUMNS.items()}
    columns["heat"] = np.nan_to_num(columns["heat"], nan=0.0, posinf=0.0, neginf=0.0)
    return blank.with_columns(**columns, pack=np.full(rows, trailer.header.sequence, np.uint32))


def _read_removals(sections: Sections, rows: int) -> Removals:
    if rows > REMOVALS_MAX:
        raise CorruptError(f"{rows} removals are over {REMOVALS_MAX}")
    return Removals(
        keys=_read_keys(
            sections, PackSection.REMOVAL_KEY_LENGTHS, PackSection.REMOVAL_KEY_HEAP, rows
        ),
        key_hash=_column(sections, PackSection.REMOVAL_KEY_HASH, rows),
        epoch=_column(sections, PackSection.REMOVAL_EPOCH, rows),
        incarnation=_column(sections, PackSection.REMOVAL_INCARNATION, rows),
        sequence=_column(sections, PackSection.REMOVAL_SEQUENCE, rows),
    )


def _column(sections: Sections, section: PackSection, rows: int) -> np.ndarray:
    return sections.column(section, COLUMN_TYPES[section], rows)


def _read_keys(sections: Sections, lengths: PackSection, heap: PackSection, rows: int) -> KeyColumn:
    key_lengths = _column(sections, lengths, rows)
    heap_bytes = int(key_lengths.sum(dtype=np.int64))
    return check_keys(_column(sections, heap, heap_bytes), key_lengths)


def _heap(keys: KeyColumn) -> Column:
    return keys.heap[keys.offsets[0] : keys.offsets[-1]]


def _check_counters(index: PackIndex) -> None:
    check_counter("epoch", index.epoch)
    for versions in (index.blocks, index.removals):
        if len(versions):
            check_counter("epoch", int(versions.epoch.max()))
            check_counter("incarnation", int(versions.incarnation.max()))


def _check_values(index: PackIndex) -> None:
    blocks = index.blocks
    if not len(blocks):
        return
    if int(blocks.codec.max()) > max(Codec):
        raise NewerFormatError(f"codec {int(blocks.codec.max())} is not known to this version")
    if int(blocks.size.min()) < 1 or int(blocks.size.max()) > BLOCK_BYTES_MAX:
        raise CorruptError("a block has no size, or one over the limit")
    if int(blocks.stored_size.min()) < 1 or bool((blocks.stored_size > blocks.size).any()):
        raise CorruptError("a block is stored in more bytes than it has")
    if bool(((blocks.codec == Codec.RAW) & (blocks.stored_size != blocks.size)).any()):
        raise CorruptError("a raw block has two sizes")
    if bool((blocks.size // np.uint64(EXPANSION_MAX) > blocks.stored_size).any()):
        raise CorruptError("a block is larger than what it is stored in can expand to")
    if bool((blocks.epoch > np.uint32(index.epoch)).any()):
        raise CorruptError("a block is of a later epoch than its pack")
    known = np.zeros(1 << 16, np.bool_)
    known[[0, *index.fingerprints]] = True
    if not bool(known[blocks.fingerprint].all()):
        raise CorruptError("a block has a fingerprint that is not in the table")


def _check_extents(blocks: BlockTable, index_offset: int) -> None:
    if not len(blocks):
        return
    order = np.argsort(blocks.pack_offset, kind="stable")
    starts = blocks.pack_offset[order]
    if bool((starts % np.uint64(PAGE_BYTES) != 0).any()) or int(starts[0]) < PAGE_BYTES:
        raise CorruptError("a block does not start on a page of the data area")
    # Starts are bounded before they are added to sizes, so that nothing wraps around.
    if int(starts[-1]) > index_offset:
        raise CorruptError("a block starts behind the index")
    ends = starts + padded_sizes(blocks.stored_size[order])
    if bool((ends[:-1] > starts[1:]).any()) or int(ends[-1]) > index_offset:
        raise CorruptError("two blocks overlap, or one reaches into the index")
