"""`Places`: where blocks are in our files; `Kept`: which blocks are resident, at one moment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from snapd.blocks.keys import I64, U64, Bools

NOWHERE = -1
"""File number of a block that is in no file of ours."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where n blocks are, as columns: bytes [offset, offset + size) of our file number `file`."""

    file: I64
    """`NOWHERE` where there is no place."""
    offset: U64
    size: U64

    def __len__(self) -> int:
        return len(self.file)

    def take(self, rows: I64 | Bools) -> Places:
        """The places at these indices, or where this mask is true."""
        return Places(self.file[rows], self.offset[rows], self.size[rows])

    def is_same(self, other: Places) -> Bools:
        """Which blocks have a place, and the same one in `other`, bool [n]."""
        same: Bools = (self.file == other.file) & (self.file != NOWHERE)
        same &= (self.offset == other.offset) & (self.size == other.size)
        return same

    @classmethod
    def none(cls, rows: int) -> Self:
        """Of n blocks that are nowhere."""
        zeros = np.zeros(rows, np.uint64)
        return cls(np.full(rows, NOWHERE, np.int64), zeros, zeros)


@dataclass(frozen=True, slots=True)
class Kept:
    """Resident blocks at one moment, as columns over n slots, ascending."""

    slots: I64
    sequence: U64
    places: Places
    checksum: U64
    hashed_at: U64
    """The look that hashed each last; 0 where its bytes are in doubt."""

    def take(self, rows: I64) -> Kept:
        """These rows, in that order."""
        return Kept(
            self.slots[rows],
            self.sequence[rows],
            self.places.take(rows),
            self.checksum[rows],
            self.hashed_at[rows],
        )
