"""`Residency`: which slot of the store holds which row of the catalog.

Two arrays over slots: the sequence that was last settled and the row that holds those bytes on disk
(-1 where the version was rejected: its bytes are not what its checksum says). A third tells which
entries are cold. Everything here is bookkeeping in memory; it is rebuilt from a scan at any time.
"""

from __future__ import annotations

import threading
from typing import Self

import numpy as np

from snapd.blocks.keys import I64, U64, Bools
from snapd.blocks.table import U32

REJECTED = -1
"""Row of a version that failed verification: known, and not to be written."""
COLDER = -2
"""Row of a version that is left out because all that is on disk is hotter."""
NO_SPACE = -3
"""Row of a version that waits for space on the disk."""
WRITE_BUDGET = -4
"""Row of a version that waits until more bytes may be written."""


def follow(rows: I64, old: I64, new: I64) -> I64:
    """Where the blocks of `rows`, int64 [n], are once those of `old` have gone to `new`, both
    int64 [m], `old` without doubles."""
    if not len(old):
        return rows
    order = np.argsort(old)
    at = order[np.minimum(np.searchsorted(old, rows, sorter=order), len(old) - 1)]
    return np.where(old[at] == rows, new[at], rows)


class Residency:
    """Slots with their settled versions.

    `lock` makes a look at the store and its bookkeeping one step: whoever moves a block (a fill, a
    registration) holds it over the store's answer and `settle`, and whoever compares a scan holds
    it over scan and comparison. Otherwise a block that moved would look like one that left.
    """

    __slots__ = ("cold", "lock", "row", "sequence")

    def __init__(self, slots: int) -> None:
        self.lock = threading.RLock()
        self.sequence: U64 = np.zeros(slots, np.uint64)
        self.row: I64 = np.full(slots, REJECTED, np.int64)
        self.cold: Bools = np.zeros(slots, np.bool_)

    @classmethod
    def none(cls) -> Self:
        """Of no store."""
        return cls(0)

    def settle(self, slots: U32 | I64, sequences: U64, rows: I64, *, cold: bool) -> None:
        """These slots hold these rows."""
        self.sequence[slots] = sequences
        self.row[slots] = rows
        self.cold[slots] = cold

    def forget(self, slots: U32 | I64) -> None:
        """Nothing is known of these slots any more."""
        self.sequence[slots] = 0
        self.row[slots] = REJECTED
        self.cold[slots] = False

    def repoint(self, old: I64, new: I64) -> None:
        """The blocks of these rows, each named once, are in other rows now, both int64 [n]."""
        if not len(old):
            return
        # Rows of a pack follow each other, so few slots are between the first and the last.
        slots = np.flatnonzero((self.row >= old.min()) & (self.row <= old.max()))
        self.row[slots] = follow(self.row[slots], old, new)

    def rows_of(self, slots: U32 | I64, sequences: U64) -> I64:
        """The row that each slot holds, int64 [n]; -1 where it holds another version, or none."""
        inside = np.flatnonzero(slots < len(self.sequence))
        rows = np.full(len(slots), REJECTED, np.int64)
        at = slots[inside]
        rows[inside] = np.where(self.sequence[at] == sequences[inside], self.row[at], REJECTED)
        return rows

    def held_rows(self) -> I64:
        """Rows that some slot holds, resident or cold, int64."""
        rows: I64 = self.row[(self.sequence != 0) & (self.row >= 0)]
        return rows

    def not_held(self, rows: I64) -> I64:
        """Those of `rows` that no slot holds, int64, in their order."""
        held = self.held_rows()
        return rows[np.isin(rows, held, invert=True)] if len(held) else rows

    def waiting(self, *reasons: int) -> I64:
        """Slots whose version was left out for one of these reasons (`COLDER`, `NO_SPACE`,
        `WRITE_BUDGET`), int64, ascending."""
        waits = np.isin(self.row, reasons) & (self.sequence != 0)
        return np.flatnonzero(waits).astype(np.int64)

    def cold_slots(self) -> I64:
        """Slots of cold blocks with a row, int64, ascending."""
        return np.flatnonzero(self.cold & (self.row >= 0)).astype(np.int64)
