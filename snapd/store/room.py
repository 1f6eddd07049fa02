"""`Room`: space for new blocks, made by evicting others where there is none."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np

from snapd.blocks.keys import I64, U64
from snapd.config import event
from snapd.formats.segment import SlotState, data_units, key_units
from snapd.store.blocks import BlockStore
from snapd.store.daemon import DaemonSession
from snapd.store.eviction import Candidates, ages, cheapest_window, choose_victims, evictable
from snapd.store.groups import with_their_groups
from snapd.store.keys import PaddedKeys
from snapd.store.space import Reservation

_LOG = logging.getLogger(__name__)

LARGE_SHARE = 64
"""Blocks over this part of the data area are large."""

EVICTED_AHEAD_MAX = 8192
"""Most blocks evicted at once beyond what is needed now: 50,000 would hold everybody up for a tenth
of a second. The next put that needs room goes on from there."""

WINDOWS_PER_REQUEST_MAX = 64


class Room:
    """Reserves for puts and fills. What is leased, pinned or unfinished is never evicted.

    Two things run short. Where it is memory, blocks that the daemon has on disk stay, cold; where
    it is slots or key heap, whole blocks go.
    """

    def __init__(self, blocks: BlockStore, daemon: DaemonSession) -> None:
        self._blocks = blocks
        self._daemon = daemon
        self.on_slots_short: Callable[[], bool] = lambda: False
        """Called when no slot is free, before anything is evicted for one."""

    def reserve(
        self, keys: PaddedKeys, rows: I64, sizes: U64, now: float, *, evict: bool
    ) -> Reservation:
        """Space for blocks with keys `rows` and `sizes` [n]; with `evict`, others may go for it."""
        units, names = data_units(sizes), key_units(keys.lengths[rows])
        if not evict:
            return self._blocks.space.reserve(units, names)
        small = units <= self._blocks.space.capacity_units // LARGE_SHARE
        self._keep_below_watermark(int(units[small].sum()), now)
        got = self._blocks.space.reserve(units, names)
        missing = np.flatnonzero((got.slots < 0) & small)
        if len(missing):
            self._make_room(units[missing], names[missing], now)
            got.put(missing, self._blocks.space.reserve(units[missing], names[missing]))
        # A large block needs one long run: evicting the oldest blocks, wherever they lie, might
        # empty the store and still not make one. The same goes for small ones between pieces.
        for row in np.flatnonzero(got.slots < 0)[:WINDOWS_PER_REQUEST_MAX].tolist():
            one = np.array([row])
            if not self._clear_window(int(units[row]), now):
                break
            got.put(one, self._blocks.space.reserve(units[one], names[one]))
        return got

    def _clear_window(self, units: int, now: float) -> bool:
        """Evict the blocks of one run of this many units; False if there is no such run."""
        self._blocks.reclaim()
        if not self._blocks.book.free_count:
            self._make_room(np.zeros(1, np.int64), np.zeros(1, np.int64), now)
        candidates = self._candidates()
        rows = evictable(candidates, now, cold_too=False)
        records = self._blocks.book.records[rows]
        starts, lengths = records["extent"].astype(np.int64), data_units(records["size"])
        taken, their_lengths = self._blocks.space.taken_beside(starts, lengths)
        window = cheapest_window(
            np.concatenate([starts, taken]),
            np.concatenate([lengths, their_lengths]),
            np.concatenate([ages(candidates, rows, now), np.full(len(taken), np.inf)]),
            self._blocks.space.usable_units,
            units,
        )
        if window is None:
            return False
        inside = (starts < window[1]) & (starts + lengths > window[0])
        self._evict_rows(rows[inside], offload=True)
        return True

    def _make_room(self, units: I64, names: I64, now: float) -> None:
        """Free what is short for blocks of these sizes, and only that: a block too large for any
        gap must not cost a thousand small ones their slots."""
        self._blocks.reclaim()
        slots = len(units) - self._blocks.book.free_count
        if slots > 0 and self.on_slots_short():
            return
        short = int(units.sum()) if self._blocks.space.is_short_of(units) else 0
        short_names = (
            int(names.sum()) if self._blocks.space.free_key_units < int(names.sum()) else 0
        )
        self.evict(short, max(0, slots), short_names, now)
        slots = len(units) - self._blocks.book.free_count
        short_names = int(names.sum()) - self._blocks.space.free_key_units
        if slots > 0 or short_names > 0:
            self._give_up_cold(max(0, slots), max(0, short_names))

    def _give_up_cold(self, slots: int, names: int) -> None:
        """Free slots and key units of cold blocks, whoever was told that they are there: no put
        fails for want of what they hold."""
        candidates = self._candidates()
        rows = np.flatnonzero((candidates.state == SlotState.COLD) & ~candidates.held)

        def gains_of(positions: I64) -> tuple[I64, I64]:
            lengths = self._blocks.book.records["key_length"][rows[positions]]
            return np.ones(len(positions), np.int64), key_units(lengths)

        victims = choose_victims(self._blocks.lease_until[rows], gains_of, (slots, names))
        self._evict_rows(rows[victims], offload=False)

    def _keep_below_watermark(self, units: int, now: float) -> None:
        capacity = self._blocks.space.capacity_units
        limit = int(capacity * self._blocks.settings.eviction_high_watermark_ratio)
        if self._blocks.space.used_units + units > limit:
            self._blocks.reclaim()
            self.evict(max(0, self._blocks.space.used_units + units - limit), 0, 0, now)

    def units_below_watermark(self) -> int:
        """Units of data that can be added before the eviction watermark is reached."""
        limit = (
            self._blocks.space.capacity_units * self._blocks.settings.eviction_high_watermark_ratio
        )
        return int(limit) - self._blocks.space.used_units

    def evict(self, units: int, slots: int, names: int, now: float) -> int:
        """Free at least these units of data, slots and key units, and a share of the whole, if
        that many may be evicted. Returns how many blocks went."""
        candidates = self._candidates()
        rows = evictable(candidates, now, cold_too=slots > 0 or names > 0)

        def gains_of_rows(some: I64) -> tuple[I64, I64, I64]:
            records = self._blocks.book.records[some]
            data = data_units(records["size"])
            data[records["state"] != SlotState.PUBLISHED] = 0
            return data, np.ones(len(some), np.int64), key_units(records["key_length"])

        def gains_of(positions: I64) -> tuple[I64, I64, I64]:
            return gains_of_rows(rows[positions])

        share = self._blocks.settings.eviction_ratio
        needed = (units, slots, names)
        wanted = (
            max(units, int(share * self._blocks.space.capacity_units)) if units else 0,
            max(slots, int(share * len(self._blocks.book))) if slots else 0,
            names,
        )
        age = ages(candidates, rows, now)
        victims = choose_victims(age, gains_of, wanted)
        if len(victims) > EVICTED_AHEAD_MAX:
            enough = choose_victims(age, gains_of, needed)
            victims = victims[: max(len(enough), EVICTED_AHEAD_MAX)]
        if self._blocks.groups.any:
            groups = self._blocks.book.records["group"][rows]
            victims = with_their_groups(victims, age, groups)
        victims = rows[victims]
        is_cold = candidates.state[victims] == SlotState.COLD
        _, cold_slots, cold_names = (int(gain[is_cold].sum()) for gain in gains_of_rows(victims))
        self._evict_rows(victims, offload=cold_slots >= slots and cold_names >= names)
        return len(victims)

    def _candidates(self) -> Candidates:
        return Candidates(
            state=self._blocks.book.state,
            lease_until=self._blocks.last_use(),
            soft_until=self._blocks.soft_until,
            held=self._blocks.hard_pinned | (self._blocks.pin_owner != 0),
            awaits_disk=self._daemon.awaits_disk(),
        )

    def _evict_rows(self, victims: I64, *, offload: bool) -> None:
        """Evict; with `offload`, what is on disk keeps its slot."""
        if not len(victims):
            return
        records = self._blocks.book.records[victims]
        stays = np.zeros(len(victims), np.bool_)
        if offload:
            stays = (records["state"] == SlotState.PUBLISHED) & self._daemon.outlives_eviction(
                victims
            )
        self._blocks.counters.evictions += len(victims)
        event(
            _LOG,
            logging.INFO,
            "evicted",
            blocks=len(victims),
            bytes=int(records["size"].sum()),
            cold=int((records["state"] == SlotState.COLD).sum()),
            offloaded=int(stays.sum()),
        )
        self._blocks.offload(victims[stays])
        self._blocks.note_gone("evict", records[~stays])
        self._blocks.drop(victims[~stays])
