"""`SlotBook`: the slot table as the store keeps it, and the only code that writes shared slots.

The store decides on a private copy of the table, which no other process can touch, and writes
every change through to shared memory. What it writes is safe against SIGKILL at any instruction:
see each method.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from snapd.blocks.keys import I64, U64, Bools
from snapd.formats.segment import (
    SLOT_CHECKSUM_WORD,
    SLOT_DTYPE,
    SLOT_SEAL_WORD,
    SLOT_SEQUENCE_WORD,
    Slots,
    SlotState,
    seal_slots,
    slot_words,
)
from snapd.segment.tally import Tallies
from snapd.store.unfinished import Unfinished

U8 = npt.NDArray[np.uint8]


class SlotBook:
    """n slots. `records` is the private copy, `state` a dense copy of its state column."""

    def __init__(self, shared: Slots, records: Slots, state: U8, tallies: Tallies) -> None:
        """`records` is what the shared table says and `state` how far that is believed: a slot
        that is FREE there but not here is to be dropped (`forget`). Until `begin_tallies`, the
        tallies are those of the store before."""
        self._shared: U64 = slot_words(shared)
        self._tallies = tallies
        self.records = records
        self._words: U64 = slot_words(records)
        self.state = state
        free = np.flatnonzero(self.state == SlotState.FREE)[::-1].astype(np.uint32)
        self.unfinished = Unfinished(records[self.state == SlotState.WRITING])
        self._free = np.empty(len(records), np.uint32)
        self._free[: len(free)] = free
        self.free_count = len(free)

    def __len__(self) -> int:
        return len(self.state)

    def begin_tallies(self) -> None:
        """What the store before left has been dealt with: count what is there."""
        counts = np.bincount(self.state, minlength=max(SlotState) + 1)
        self._tallies.begin(int(counts[SlotState.WRITING]), int(counts[SlotState.REMOVED]))

    def take(self, count: int) -> I64:
        """Numbers of free slots, `count` or as many as there are; they must then be filled."""
        count = min(count, self.free_count)
        self.free_count -= count
        return self._free[self.free_count : self.free_count + count][::-1].astype(np.int64)

    def give_back(self, rows: I64) -> None:
        """Undo `take` for slots that were not filled."""
        self._free[self.free_count : self.free_count + len(rows)] = rows[::-1]
        self.free_count += len(rows)

    def fill(self, rows: I64, records: Slots) -> None:
        """Write new records into free slots, sealing them.

        Killed before the last store, the slot's seal word is still zero: free, and nobody has
        been told of it.
        """
        writing = records[records["state"] == SlotState.WRITING]
        self._tallies.add(len(writing), 0)
        self.unfinished.add(writing)
        seal_slots(records)
        words = slot_words(records)
        self._words[rows] = words
        self._shared[rows, :SLOT_SEAL_WORD] = words[:, :SLOT_SEAL_WORD]
        self._shared[rows, SLOT_SEAL_WORD] = words[:, SLOT_SEAL_WORD]
        self.state[rows] = records["state"]

    def publish(self, rows: I64, checksums: U64) -> None:
        """WRITING → PUBLISHED. The blocks' bytes are in place.

        Killed between the two stores, the slot has a checksum and the seal of a slot without one:
        `snapd.store.audit` recognises that as WRITING, which is what it still is.
        """
        self.unfinished.end(self.records[rows])
        self._words[rows, SLOT_CHECKSUM_WORD] = checksums
        self._shared[rows, SLOT_CHECKSUM_WORD] = checksums
        self._set_state(rows, SlotState.PUBLISHED)
        self._tallies.add(-len(rows), 0)

    def mark_cold(self, rows: I64) -> None:
        """PUBLISHED → COLD: one 8-byte store a slot. Its extent is nobody's from then on."""
        self._set_state(rows, SlotState.COLD)

    def mark_removed(self, rows: I64) -> None:
        """→ REMOVED: one 8-byte store a slot, so a removal has happened or it has not."""
        self._tallies.add(0, len(rows))
        self._set_state(rows, SlotState.REMOVED)

    def identify(self, rows: I64, sequences: U64, epoch: int) -> None:
        """Give WRITING slots a new sequence and epoch, because a removal overtook them.

        The seal is zero meanwhile. Killed in the middle the slot is free, as it may be: its writer
        has said that he is done, and nobody has been told that the block is there.
        """
        self.records["epoch"][rows] = epoch
        self.records["sequence"][rows] = sequences
        self._reseal(rows)
        self._shared[rows, SLOT_SEAL_WORD] = 0
        self._shared[rows, SLOT_SEQUENCE_WORD] = sequences
        self._write_through(rows)

    def restamp(self, rows: I64, epoch: int) -> None:
        """Move slots to another epoch. Killed in the middle, one slot may be invalid: dropped."""
        self.records["epoch"][rows] = epoch
        self._reseal(rows)
        self._write_through(rows)

    def free(self, rows: I64) -> None:
        """→ FREE. The seal goes first: from that store on the slot is free."""
        counts = np.bincount(self.state[rows], minlength=max(SlotState) + 1)
        if counts[SlotState.WRITING]:
            self.unfinished.end(self.records[rows[self.state[rows] == SlotState.WRITING]])
        self._shared[rows, SLOT_SEAL_WORD] = 0
        self._shared[rows] = 0
        self._words[rows] = 0
        self.state[rows] = SlotState.FREE
        self.give_back(rows)
        if counts[SlotState.WRITING] or counts[SlotState.REMOVED]:
            self._tallies.add(-int(counts[SlotState.WRITING]), -int(counts[SlotState.REMOVED]))

    def forget(self, rows: I64) -> None:
        """Clear slots that failed the audit. They are free already, as far as the book goes."""
        self._words[rows] = 0
        self._shared[rows, SLOT_SEAL_WORD] = 0
        self._shared[rows] = 0

    def heal(self, rows: I64) -> int:
        """Write the records of these slots again where shared memory differs from the book; says
        how many. Where one does, the whole table is looked at: 64 bytes a slot."""
        if not self._differ(rows).any():
            return 0
        everything = np.arange(len(self))
        damaged = everything[self._differ(everything)]
        self._write_through(damaged)
        return len(damaged)

    def _differ(self, rows: I64) -> Bools:
        result: Bools = (self._shared[rows] != self._words[rows]).any(axis=1)
        return result

    def holds(self, rows: I64, sequences: U64) -> Bools:
        """Which rows are in the table and hold this version, bool [n]."""
        inside = (rows >= 0) & (rows < len(self))
        at = np.where(inside, rows, 0)
        result: Bools = inside & (self.records["sequence"][at] == sequences) & (self.state[at] != 0)
        return result

    def rows_where(self, state: SlotState, keep: Callable[[Slots], Bools]) -> I64:
        """Slots in this state whose records `keep` chooses."""
        rows = np.flatnonzero(self.state == state)
        return rows[keep(self.records[rows])]

    def _set_state(self, rows: I64, state: SlotState) -> None:
        self.records["state"][rows] = state
        self.state[rows] = state
        self._reseal(rows)
        self._shared[rows, SLOT_SEAL_WORD] = self._words[rows, SLOT_SEAL_WORD]

    def _reseal(self, rows: I64) -> None:
        copy = self.records[rows]
        seal_slots(copy)
        self._words[rows] = slot_words(copy)

    def _write_through(self, rows: I64) -> None:
        words = self._words[rows]
        self._shared[rows, :SLOT_SEAL_WORD] = words[:, :SLOT_SEAL_WORD]
        self._shared[rows, SLOT_SEAL_WORD] = words[:, SLOT_SEAL_WORD]


def new_records(count: int) -> Slots:
    """`count` records of zeros."""
    return np.zeros(count, SLOT_DTYPE)
