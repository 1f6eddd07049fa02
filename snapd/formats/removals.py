"""`Removals`: keys whose versions up to a given one are gone. In journals and in packs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from snapd.blocks import KEY_BYTES_MAX, BlockTable, KeyColumn
from snapd.blocks.keys import I64, U64, Bools
from snapd.blocks.table import U32
from snapd.errors import CorruptError


@dataclass(frozen=True, slots=True)
class Removals:
    """n removals as columns: every version of `keys[i]` at or before (epoch, incarnation,
    sequence)[i] is gone. The order of rows means nothing."""

    keys: KeyColumn
    key_hash: U64
    epoch: U32
    incarnation: U32
    sequence: U64

    def __post_init__(self) -> None:
        for name, dtype in COLUMN_DTYPES.items():
            column = getattr(self, name)
            if column.shape != (len(self.keys),) or column.dtype != dtype:
                raise ValueError(f"column {name} is {column.dtype}{column.shape}, not {dtype}")

    @classmethod
    def empty(cls) -> Removals:
        """No removals."""
        return cls.of_blocks(BlockTable.empty())

    @classmethod
    def of_blocks(cls, blocks: BlockTable) -> Removals:
        """The removal of just these versions and everything before them."""
        return cls(blocks.keys, blocks.key_hash, blocks.epoch, blocks.incarnation, blocks.sequence)

    @classmethod
    def concatenate(cls, parts: Sequence[Removals]) -> Removals:
        """All rows of all parts."""
        if not parts:
            return cls.empty()
        columns = {
            name: np.concatenate([getattr(part, name) for part in parts]) for name in COLUMN_DTYPES
        }
        return cls(KeyColumn.concatenate([part.keys for part in parts]), **columns)

    def __len__(self) -> int:
        return len(self.key_hash)

    def take(self, rows: I64 | Bools) -> Removals:
        """The rows at these indices, or where this mask is true."""
        columns = {name: getattr(self, name)[rows] for name in COLUMN_DTYPES}
        return Removals(self.keys.take(rows), **columns)


COLUMN_DTYPES: dict[str, np.dtype[np.generic]] = {
    "key_hash": np.dtype("<u8"),
    "epoch": np.dtype("<u4"),
    "incarnation": np.dtype("<u4"),
    "sequence": np.dtype("<u8"),
}


def check_keys(heap: npt.NDArray[np.uint8], lengths: npt.NDArray[np.uint16]) -> KeyColumn:
    """A column of keys from a file. Raises CorruptError on lengths of 0, over the limit, or that
    do not add up to the heap."""
    if len(lengths) and not 1 <= int(lengths.min()) <= int(lengths.max()) <= KEY_BYTES_MAX:
        raise CorruptError(f"a key is not 1 to {KEY_BYTES_MAX} bytes long")
    try:
        return KeyColumn.from_lengths(heap, lengths.astype(np.int64))
    except ValueError as error:
        raise CorruptError(str(error)) from error
