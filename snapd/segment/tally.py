"""`Tallies`: how many slots are reserved and removed, kept in the segment beside the slots.

A damaged slot may have been anything. What it cannot have been follows from these counts: where
every reservation and every removal is accounted for, no space and no removal is in doubt.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from snapd.blocks.keys import U8, U64
from snapd.formats.segment import TALLY_DTYPE, TALLY_OFFSET, decode_tally, encode_tally


@dataclass(frozen=True, slots=True)
class Tally:
    """What a store that is gone left in the header; None where that cannot be known."""

    unfinished: int | None = None
    """Slots in state WRITING, or more."""
    removed: int | None = None
    """Slots in state REMOVED, or more."""


class Tallies:
    """The words of this life of a store. Each is one 8-byte store, sealed with the boot id: what
    an older version, which does not keep them, leaves behind is not believed."""

    def __init__(self, header: U8, boot_id: bytes) -> None:
        """`header` is the header page, uint8."""
        self._words = _words(header)
        self._boot_id = boot_id
        self._unfinished = self._removed = 0

    def begin(self, unfinished: int, removed: int) -> None:
        """Everything that is there has been looked at."""
        self._unfinished, self._removed = unfinished, removed
        self.add(0, 0)

    def add(self, unfinished: int, removed: int) -> None:
        """Raise before slots enter a state, lower (by negative numbers) after they left it."""
        self._unfinished += unfinished
        self._removed += removed
        self._words[0] = encode_tally(max(0, self._unfinished), self._boot_id)
        self._words[1] = encode_tally(max(0, self._removed), self._boot_id)


def read_tally(header: U8, boot_id: bytes) -> Tally:
    """What the store of this boot id left."""
    unfinished, removed = (decode_tally(int(word), boot_id) for word in _words(header))
    return Tally(unfinished, removed)


def _words(header: U8) -> U64:
    words: U64 = header[TALLY_OFFSET : TALLY_OFFSET + TALLY_DTYPE.itemsize].view(np.uint64)
    return words
