"""`Unfinished`: how much space writers have reserved and not ended, and how much they may.

Such space cannot be evicted, nor taken back from a writer who may still write into it. Without a
bound one client that reserves and never ends would push everything else out of the cache.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from snapd.blocks.keys import I64, Bools
from snapd.formats.segment import Slots, data_units

WRITER_SHARE = 0.5
"""Share of the data area, and of the slots, that one writer may have unfinished."""

ALL_SHARE = 0.75
"""The same for all writers together. Beyond it only those who have little unfinished get more, so
that whoever took all of that does not keep the others from putting a block now and then."""

SMALL_SHARE = 1 / 32
"""So much is little."""


class Unfinished:
    """Units of the data area and slots in state WRITING, by writer."""

    def __init__(self, records: Slots) -> None:
        """`records` are the WRITING ones."""
        self._units: Counter[int] = Counter()
        self._slots: Counter[int] = Counter()
        self._all_units = 0
        self._all_slots = 0
        self.add(records)

    def add(self, records: Slots) -> None:
        """These were reserved."""
        self._count(records, 1)

    def end(self, records: Slots) -> None:
        """These were published or given back."""
        self._count(records, -1)

    def may_reserve(
        self, writer: int, units: I64, *, units_capacity: int, slots_capacity: int
    ) -> Bools:
        """Which of these reservations, made in order, stay within the bounds, bool [n].

        A block that is larger than they allow is taken when nothing else is unfinished.
        """
        if self._share(writer, units, units_capacity, slots_capacity) <= SMALL_SHARE:
            return np.ones(len(units), np.bool_)  # nearly always, and in a few steps
        more_units, more_slots = np.cumsum(units), np.arange(1, len(units) + 1)
        theirs = np.maximum(
            (self._units[writer] + more_units) / units_capacity,
            (self._slots[writer] + more_slots) / slots_capacity,
        )
        everybodys = np.maximum(
            (self._all_units + more_units) / units_capacity,
            (self._all_slots + more_slots) / slots_capacity,
        )
        allowed: Bools = (theirs <= WRITER_SHARE) & (everybodys <= ALL_SHARE)
        allowed |= theirs <= SMALL_SHARE
        if self._all_slots == 0:
            allowed[:1] = True
        return allowed

    def _share(self, writer: int, units: I64, units_capacity: int, slots_capacity: int) -> float:
        """What the writer would have unfinished with all of these."""
        return max(
            (self._units[writer] + int(units.sum())) / units_capacity,
            (self._slots[writer] + len(units)) / slots_capacity,
        )

    def _count(self, records: Slots, sign: int) -> None:
        """Add or take away the records of one writer, or of several."""
        if not len(records):
            return
        writers, units = records["writer"], data_units(records["size"])
        first = int(writers[0])
        if bool((writers == first).all()):
            self._change(first, sign * int(units.sum()), sign * len(records))
            return
        for writer in np.unique(writers).tolist():
            theirs = writers == writer
            self._change(writer, sign * int(units[theirs].sum()), sign * int(theirs.sum()))

    def _change(self, writer: int, units: int, slots: int) -> None:
        self._units[writer] += units
        self._slots[writer] += slots
        if not self._slots[writer]:
            del self._slots[writer], self._units[writer]
        self._all_units += units
        self._all_slots += slots
