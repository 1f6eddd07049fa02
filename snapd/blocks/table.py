"""`BlockTable`: blocks as columns. One shape for every store, every pack and every plan.

A row is one block version. Which columns mean something depends on where the table comes from: a
listing of a segment has `slot`, `slot_sequence` and `offset`; a pack's index has `pack` and
`pack_offset`; a catalog has both. Unknown values are zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Self

import numpy as np
import numpy.typing as npt

from snapd.blocks.keys import I64, U64, Bools, KeyColumn

U8 = npt.NDArray[np.uint8]
U16 = npt.NDArray[np.uint16]
U32 = npt.NDArray[np.uint32]
F32 = npt.NDArray[np.float32]


class Codec(IntEnum):
    """How a block's bytes are stored in a pack."""

    RAW = 0
    ZSTD = 1


class Pin(IntEnum):
    """How hard a block resists eviction."""

    NONE = 0
    SOFT = 1
    HARD = 2


@dataclass(frozen=True, slots=True)
class BlockTable:
    """n block versions as columns.

    The identity of a version is (key, epoch, incarnation, sequence); versions of one key are
    ordered by (epoch, incarnation, sequence), see `version_order`. `incarnation` is the ordinal
    that the repository gave to a store's life; 0 where none has been given yet.
    """

    keys: KeyColumn
    key_hash: U64
    """XXH3-64 of the key: an index, never a proof."""
    epoch: U32
    incarnation: U32
    sequence: U64
    size: U64
    """Bytes of the block."""
    stored_size: U64
    """Bytes in the pack, before padding; differs from `size` when a codec is used."""
    codec: U8
    checksum: U64
    """XXH3-64 of the block's `size` bytes, taken by whoever put it."""
    fingerprint: U16
    """Row of the fingerprint table; 0 is unlabelled."""
    parent: U64
    """Key hash of the page before this one in its chain; 0 if unknown."""
    group: U32
    pin: U8
    heat: F32
    slot: U32
    slot_sequence: U64
    """Sequence of the slot when it was listed: the slot holds this version while it stays."""
    offset: U64
    """Byte offset of the block in its segment."""
    pack: U32
    """Sequence number of the pack; 0 is none."""
    pack_offset: U64
    """Byte offset of the stored block in its pack."""

    @classmethod
    def empty(cls) -> Self:
        """A table of no rows."""
        return cls.for_keys(KeyColumn.empty(), np.empty(0, np.uint64))

    @classmethod
    def for_keys(cls, keys: KeyColumn, key_hash: U64) -> Self:
        """A table of these keys with every other column zero."""
        rows = len(keys)
        others = {name: np.zeros(rows, dtype) for name, dtype in DTYPES.items()}
        others["key_hash"] = key_hash
        return cls(keys=keys, **others)

    @classmethod
    def concatenate(cls, tables: Sequence[Self]) -> Self:
        """One table with the rows of all of them, in order."""
        if not tables:
            return cls.empty()
        if len(tables) == 1:
            return tables[0]
        columns = {
            name: np.concatenate([getattr(table, name) for table in tables]) for name in DTYPES
        }
        return cls(keys=KeyColumn.concatenate([table.keys for table in tables]), **columns)

    def __len__(self) -> int:
        return len(self.key_hash)

    def __post_init__(self) -> None:
        rows = len(self.keys)
        for name, dtype in DTYPES.items():
            column = getattr(self, name)
            if column.shape != (rows,) or column.dtype != dtype:
                raise ValueError(
                    f"column {name} is {column.dtype}{column.shape}, not {dtype}({rows},)"
                )

    def take(self, rows: npt.NDArray[np.integer] | Bools) -> Self:
        """The rows at these indices, or where this mask is true, in that order."""
        columns = {name: getattr(self, name)[rows] for name in DTYPES}
        return type(self)(keys=self.keys.take(rows), **columns)

    def with_columns(self, **columns: npt.NDArray[np.generic]) -> Self:
        """The same rows with some columns replaced; dtypes are cast to the schema's."""
        kept = {name: getattr(self, name) for name in DTYPES}
        for name, value in columns.items():
            kept[name] = np.asarray(value).astype(DTYPES[name])
        return type(self)(keys=self.keys, **kept)

    @property
    def nbytes(self) -> int:
        """Bytes of memory held by all columns."""
        return self.keys.nbytes + sum(int(getattr(self, name).nbytes) for name in DTYPES)

    @property
    def version(self) -> U64:
        """Identity of each version beside its key, uint64 [n, 3]: epoch, incarnation, sequence."""
        return np.stack(
            [self.epoch.astype(np.uint64), self.incarnation.astype(np.uint64), self.sequence],
            axis=1,
        )


DTYPES: dict[str, np.dtype[np.generic]] = {
    "key_hash": np.dtype(np.uint64),
    "epoch": np.dtype(np.uint32),
    "incarnation": np.dtype(np.uint32),
    "sequence": np.dtype(np.uint64),
    "size": np.dtype(np.uint64),
    "stored_size": np.dtype(np.uint64),
    "codec": np.dtype(np.uint8),
    "checksum": np.dtype(np.uint64),
    "fingerprint": np.dtype(np.uint16),
    "parent": np.dtype(np.uint64),
    "group": np.dtype(np.uint32),
    "pin": np.dtype(np.uint8),
    "heat": np.dtype(np.float32),
    "slot": np.dtype(np.uint32),
    "slot_sequence": np.dtype(np.uint64),
    "offset": np.dtype(np.uint64),
    "pack": np.dtype(np.uint32),
    "pack_offset": np.dtype(np.uint64),
}
"""Schema of the columns beside `keys`, in order."""

if tuple(field.name for field in fields(BlockTable)) != ("keys", *DTYPES):
    raise AssertionError("BlockTable's fields and DTYPES differ")


def version_order(epoch: U32, incarnation: U32, sequence: U64) -> I64:
    """Indices that sort versions from oldest to newest, int64 [n], stable."""
    return np.lexsort((sequence, incarnation, epoch)).astype(np.int64)


def is_newer(left: tuple[U32, U32, U64], right: tuple[U32, U32, U64]) -> Bools:
    """Whether each (epoch, incarnation, sequence) on the left is after that on the right."""
    (left_epoch, left_incarnation, left_sequence) = left
    (right_epoch, right_incarnation, right_sequence) = right
    result: Bools = (left_epoch > right_epoch) | (
        (left_epoch == right_epoch)
        & (
            (left_incarnation > right_incarnation)
            | ((left_incarnation == right_incarnation) & (left_sequence > right_sequence))
        )
    )
    return result
