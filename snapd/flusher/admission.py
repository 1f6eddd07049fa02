"""`Admission`: which new blocks are written, when not all of them can be.

A block that is left out is noted in the residency by slot and sequence, so that it is not looked at
again with every flush. What waits for space or for the day's bytes is taken up when there are some;
what is colder than all that is on disk is judged again at each commit, when heat is new.
"""

from __future__ import annotations

import numpy as np

from snapd.attach.port import Source
from snapd.attach.session import Session
from snapd.attach.traced import TracedHeat
from snapd.blocks import BlockTable
from snapd.blocks.keys import I64, U64
from snapd.flusher.budget import Budget
from snapd.formats.pack import padded_sizes
from snapd.plans.residency import COLDER, NO_SPACE, WRITE_BUDGET, Residency
from snapd.plans.space import HOTTER_FACTOR, HeatCurve, admit
from snapd.repository import Repository

REASONS = {COLDER: "colder", NO_SPACE: "no_space", WRITE_BUDGET: "write_budget"}
"""Labels of the reasons for which a block is left out."""

WRITE = 0
"""Verdict: write it, or let its old copy be live again. The others are the reasons above."""

_INDEX_BYTES = 160
"""About what a block takes in an index beside its key, before compression."""
_WORTH_SHARE, _WORTH_BYTES_MAX = 16, 2**20
"""Waiting blocks are taken up when there is room for one part in so many of a pack, or so much."""
_TAKEN_UP_MAX = 16_384
"""Waiting blocks that are taken up at a time, the hottest."""
_PACK_BYTES = 32_768
"""What a pack takes beside its blocks: header, trailer, tables."""


class Admission:
    """The flusher's judgement; for one thread."""

    def __init__(self, repository: Repository, budget: Budget, traced: TracedHeat) -> None:
        self._repository = repository
        self._traced = traced
        self._budget = budget
        self._curve: HeatCurve | None = None
        self._live_bytes = 0
        self._live_max = 0
        self._is_shared = False
        self._taken = 0
        """Bytes that were let in since this flush began."""
        self._seen: U64 = np.zeros(0, np.uint64)
        """By slot: the version that was counted as left out."""
        self._seen_in: Residency | None = None
        self.bound = ""
        """What set the limit at the last flush; see `SpaceState.bound`."""
        self.pack_bytes_max = 0
        """Bytes at which a pack is to be sealed."""
        self.left_out: dict[str, int] = dict.fromkeys(REASONS.values(), 0)
        """Blocks of the store that are not on disk now, by reason."""

    def begin(self, session: Session, source: Source) -> None:
        """Before a flush: see how much room there is, and take up what waited for it.
        Raises DiskError."""
        state = self._budget.look()
        grown = 15 * state.limits.live_max > 16 * self._live_max
        self._live_max, self.pack_bytes_max = state.limits.live_max, state.pack_bytes_max
        self.bound, self._is_shared = state.bound, state.is_shared
        self._live_bytes, self._taken = self._sum_live(), 0
        residency = session.residency
        if self._seen_in is not residency:
            self._seen, self._seen_in = np.zeros(len(residency.sequence), np.uint64), residency
        if grown:  # a disk that was full, and is not any more: judge all again
            with residency.lock:
                residency.forget(residency.waiting(COLDER))
        worth = min(self.pack_bytes_max // _WORTH_SHARE, _WORTH_BYTES_MAX)
        room = self._budget.room().bytes
        if self._is_shared:
            room = min(room, self._live_max - self._live_bytes)
        if room >= worth + _PACK_BYTES:
            with residency.lock:
                slots = residency.waiting(NO_SPACE, WRITE_BUDGET)
                if len(slots) > _TAKEN_UP_MAX:
                    heat = self._traced.heat_of_slots(source, slots)
                    slots = slots[np.argsort(-heat, kind="stable")[:_TAKEN_UP_MAX]]
                residency.forget(slots)

    def judge(self, table: BlockTable, *, writes: bool) -> I64:
        """The verdict on each block, hottest first, int64 [n]; `writes` tells blocks that must be
        written from those whose bytes are on disk. Raises DiskError."""
        stored = padded_sizes(table.size).astype(np.int64)
        verdict = np.full(len(table), WRITE, np.int64)
        room = self._live_max - self._live_bytes - self._taken
        if int(stored.sum()) > room and self._is_shared:
            # Nothing goes for what comes, however hot it is.
            verdict[np.cumsum(stored) > room] = NO_SPACE
        elif int(stored.sum()) > room:
            if self._curve is None:
                self._curve = self._heat_curve()
            verdict[~admit(table.heat, stored, room, self._curve)] = COLDER
        if writes:
            self._limit_writes(table, stored, verdict)
        self._taken += int(stored[verdict == WRITE].sum())
        return verdict

    def left(self, table: BlockTable, verdict: I64) -> dict[str, int]:
        """Blocks that are left out for the first time, by reason; for counting."""
        fresh = self._seen[table.slot] != table.slot_sequence
        self._seen[table.slot] = table.slot_sequence
        return {label: int((fresh & (verdict == code)).sum()) for code, label in REASONS.items()}

    def committed(self, session: Session | None, source: Source | None) -> None:
        """Heat is new and a manifest is durable: judge again what may be hot enough by now."""
        self._curve = None
        self._live_bytes = self._sum_live()
        if session is None or source is None:
            return
        residency = session.residency
        with residency.lock:
            slots = residency.waiting(COLDER)
            if len(slots) and self._live_bytes >= self._live_max:
                self._curve = self._heat_curve()
                coldest = float(self._curve.heat[0]) if len(self._curve.heat) else 0.0
                heat = self._traced.heat_of_slots(source, slots)
                slots = slots[heat > HOTTER_FACTOR * coldest]
            residency.forget(slots)  # the next look finds them new

    def count_waiting(self, session: Session) -> None:
        """Bring `left_out` up to date."""
        with session.residency.lock:
            self.left_out = {
                label: len(session.residency.waiting(code)) for code, label in REASONS.items()
            }

    # --- inside -------------------------------------------------------------------------------

    def _limit_writes(self, table: BlockTable, stored: I64, verdict: I64) -> None:
        """The hottest that fit; the others wait, for whichever is scarcer."""
        room = self._budget.room()
        wanted = verdict == WRITE
        need = stored + table.keys.lengths.astype(np.int64) + _INDEX_BYTES
        total = np.cumsum(np.where(wanted, need, 0))
        over = wanted & (total + _PACK_BYTES > room.bytes)
        scarce = room.write_bytes is not None and room.write_bytes < room.space_bytes
        verdict[over] = WRITE_BUDGET if scarce else NO_SPACE

    def _sum_live(self) -> int:
        catalog = self._repository.catalog
        with catalog.lock:
            stored = catalog.column("stored_size", catalog.live_rows())
        return int(padded_sizes(stored).sum())

    def _heat_curve(self) -> HeatCurve:
        catalog = self._repository.catalog
        with catalog.lock:
            rows = catalog.live_rows()
            stored = padded_sizes(catalog.column("stored_size", rows)).astype(np.int64)
            return HeatCurve.of(catalog.column("heat", rows), stored)
