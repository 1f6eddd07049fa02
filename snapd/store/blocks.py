"""`BlockStore`: the blocks of one segment. Adopts, finds, leases and drops them.

The common ground of the request handlers (`puts`, `reads`, `removals`, `cold`) and of `room`:
everything here works on whole batches as columns, and `now` is the engine's clock, in seconds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from snapd.blocks import HashIndex, Pin
from snapd.blocks.keys import I64, U64, Bools
from snapd.config import Settings, event
from snapd.formats.segment import U32, Slots, SlotState
from snapd.segment import Segment
from snapd.store.audit import SlotAudit, audit_slots, empty_audit
from snapd.store.book import SlotBook
from snapd.store.groups import GroupUse
from snapd.store.keys import KeyHeap, PaddedKeys
from snapd.store.space import Growth, Space

_LOG = logging.getLogger(__name__)

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

HEAT_HALF_LIFE_SECONDS = 900.0
SOFT_PIN_SECONDS = 1800.0
"""How long a soft pin holds after the last access where a put does not say; Mooncake's default."""

EventLog = Callable[[str, list[bytes]], None]
"""event_log(kind, keys): called with "evict", "remove" or "remove_all" and the keys concerned."""


@dataclass(slots=True)
class Counters:
    """Since the start of this process."""

    hits: int = 0
    misses: int = 0
    puts: int = 0
    evictions: int = 0
    offloaded: int = 0
    """Of the evictions: blocks that stayed, cold, because they are on disk."""
    removals: int = 0
    filled: int = 0
    """Cold blocks that were read from disk, into another slot."""
    corrupt: int = 0
    adopted_blocks: int = 0
    dropped_slots: int = 0


class BlockStore:
    """All blocks of a segment; the sole user of its slots, index and key heap."""

    def __init__(
        self,
        segment: Segment,
        growth: Growth,
        settings: Settings,
        *,
        now: float,
        wall_seconds: float,
        event_log: EventLog | None = None,
    ) -> None:
        """`wall_seconds` is the time of day, seconds since 1970, at `now` of the engine's clock."""
        mapping = segment.mapping
        self.segment = segment
        self.settings = settings
        self.counters = Counters()
        self.heap = KeyHeap(mapping.key_heap)
        self.index = HashIndex.allocate(len(mapping.slots))
        """Private memory: a shared index that somebody wrote into would hide a block until the next
        adoption, which would then serve it over a newer version, or after its removal."""
        self.heat = mapping.heat
        self.lingering: dict[int, I64] = {}
        """Writers whose connection is gone, and the slots that they may still write to."""
        self.removed_below = 0
        """Removals so far are of versions below this sequence: see `Puts`."""
        self.on_cold_left: Callable[[I64], None] = lambda _rows: None
        """Called with cold slots that are being freed or removed."""
        self.on_corrupt: Callable[[list[bytes], I64, U64, U32], None] = lambda *_: None
        """Called with keys, slots, sequences and epochs of blocks that were dropped as corrupt."""
        self._wall = wall_seconds - now
        self._event_log = event_log
        count, held = len(mapping.slots), segment.held_writers()
        audit = (
            empty_audit(count)
            if segment.created
            else audit_slots(mapping.slots, segment.geometry, segment.epoch, held, mapping.keys_of)
        )
        self.book = SlotBook(mapping.slots, audit.records, audit.state, segment.tallies)
        self.lease_until = self._last_access(now)
        self.groups = GroupUse(count)
        self.soft_until = np.where(audit.pin == Pin.SOFT, now + SOFT_PIN_SECONDS, -np.inf)
        self.hard_pinned = audit.pin == Pin.HARD
        self.soft_seconds = np.full(count, SOFT_PIN_SECONDS, np.float32)
        self.upsert = np.zeros(count, np.bool_)
        self.pin_owner = np.zeros(count, np.int64)
        self.durable = np.zeros(count, np.int64)
        """Generation of the daemon that has each slot's bytes on disk, live, int64 [slots]; 0 is
        none. See `DaemonSession.generation`."""
        self.space = Space(self.book, segment.geometry, growth, audit.data, audit.keys)
        if not segment.created:
            self._adopt(audit, held)
        self.book.begin_tallies()

    # --- adoption -----------------------------------------------------------------------------

    def _adopt(self, audit: SlotAudit, held: frozenset[int]) -> None:
        """Act on the audit: index what is served, drop what fell through, wait for late writers.

        What a damaged slot may have been is settled before it is cleared: killed in between, the
        next adoption finds it again and comes to the same conclusion.
        """
        segment, book, counters, left = self.segment, self.book, self.counters, self.segment.left
        damaged = len(audit.corrupt) > 0
        book.restamp(audit.from_the_future, segment.epoch)
        self.index.fill(audit.key_hash[audit.served], np.flatnonzero(audit.served))
        removal_lost = damaged and (left.removed is None or left.removed > audit.removed)
        if removal_lost:
            # What was removed may be on disk, and nobody knows any more which key it was.
            self.begin_epoch(book.state == SlotState.PUBLISHED)
        reservation_lost = damaged and (
            left.unfinished is None or left.unfinished > audit.unfinished
        )
        in_doubt = bool(held) and (reservation_lost or segment.in_doubt)
        segment.note_doubt(in_doubt=in_doubt)
        if in_doubt:
            self.space.withhold_gaps(held)
        book.forget(np.concatenate([audit.corrupt, audit.outdated]))
        counters.adopted_blocks = int((book.state == SlotState.PUBLISHED).sum())
        counters.corrupt = len(audit.corrupt)
        counters.dropped_slots = len(audit.corrupt) + len(audit.outdated)
        writers = book.records["writer"][audit.lingering]
        for writer in np.unique(writers).tolist():
            self.lingering[writer] = audit.lingering[writers == writer]
        event(
            _LOG,
            logging.WARNING if damaged else logging.INFO,
            "segment adopted",
            blocks=counters.adopted_blocks,
            cold=int((book.state == SlotState.COLD).sum()),
            removed=int((book.state == SlotState.REMOVED).sum()),
            corrupt=len(audit.corrupt),
            outdated=len(audit.outdated),
            lingering=len(audit.lingering),
            removal_lost=removal_lost,
            space_withheld=in_doubt,
        )

    def _last_access(self, now: float) -> F64:
        """Lease ends on the engine's clock, in the order of the last accesses. None is later than
        now, even if the clock of the day was set back meanwhile."""
        return np.minimum(self.heat["last_access"] - self._wall, now)

    # --- finding ------------------------------------------------------------------------------

    def find(self, keys: PaddedKeys) -> I64:
        """The served slot (published or cold) of each key, int64 [n], -1 where there is none."""
        records, epoch = self.book.records, self.segment.epoch
        unequal: list[tuple[I64, I64]] = []

        def match(queries: I64, numbers: I64) -> Bools:
            inside = (numbers >= 0) & (numbers < len(records))
            found = records[np.where(inside, numbers, 0)]
            good: Bools = (
                inside
                & (found["key_hash"] == keys.hashes[queries])
                & (found["key_length"] == keys.lengths[queries])
                & (found["epoch"] == epoch)
                & ((found["state"] == SlotState.PUBLISHED) | (found["state"] == SlotState.COLD))
            )
            at = np.flatnonzero(good)
            offsets = found["key_offset"][at].astype(np.int64)
            good[at] = same = self.heap.equal(keys, queries[at], offsets)
            if not same.all():
                unequal.append((queries[at[~same]], numbers[at[~same]]))
            return good

        result = self.index.find(keys.hashes, match)
        for queries, rows in unequal:
            self._check_keys(keys, queries, rows)
        return result

    def _check_keys(self, keys: PaddedKeys, queries: I64, rows: I64) -> None:
        """Slots that have the hashes of these queries and other keys: two keys of one hash, once
        in 2^64; or the key heap was damaged, and the block is not to be a miss that nobody counts.
        """
        rows, once = np.unique(rows, return_index=True)
        records = self.book.records[rows]
        damaged = self.segment.mapping.keys_of(records).hashes() != records["key_hash"]
        if damaged.any():
            names = [keys.keys[query] for query in queries[once[damaged]].tolist()]
            self.drop_corrupt(rows[damaged], names, "key heap")

    def drop_corrupt(self, rows: I64, keys: list[bytes], where: str) -> None:
        """Free PUBLISHED or COLD slots because what they name in memory is damaged."""
        records = self.book.records[rows]
        event(
            _LOG, logging.ERROR, "blocks corrupt in memory, dropped", blocks=len(rows), where=where
        )
        self.counters.corrupt += len(rows)
        self.drop(rows)
        self.on_corrupt(keys, rows, records["sequence"], records["epoch"])

    def lease(self, rows: I64, now: float) -> None:
        """Grant read leases. They do not make a soft pin last longer: it has its own time."""
        until = now + self.settings.lease_sec
        self.lease_until[rows] = until
        self.groups.note(self.book.records["group"][rows], until)

    def last_use(self) -> F64:
        """Until when each slot's block counts as used, float64 [slots]: the deadline of its lease
        or of one in its group, also where that is in the past."""
        return self.groups.latest(self.book.records["group"], self.lease_until)

    def begin_leases(self, rows: I64, now: float) -> None:
        """Slots hold new blocks: nobody reads them yet, and they are the youngest of all."""
        self.lease_until[rows] = now
        self.groups.note(self.book.records["group"][rows], now)

    def warm(self, rows: I64, now: float) -> None:
        """Count a read of each of these slots."""
        moment = now + self._wall
        heat = self.heat[rows]
        age = np.maximum(moment - heat["last_access"], 0.0)
        heat["access_count"] = heat["access_count"] * np.exp2(-age / HEAT_HALF_LIFE_SECONDS) + 1
        heat["last_access"] = int(moment)
        self.heat[rows] = heat

    def begin_heat(self, rows: I64, now: float) -> None:
        """Slots hold new blocks: written now, never read."""
        self.heat[rows] = np.zeros(1, self.heat.dtype)
        self.heat["last_access"][rows] = int(now + self._wall)

    def begin_pins(self, rows: I64, now: float) -> None:
        """Slots hold new blocks: their pins count from now."""
        pin = self.book.records["pin"][rows]
        self.hard_pinned[rows] = pin == Pin.HARD
        self.soft_until[rows] = np.where(pin == Pin.SOFT, now + self.soft_seconds[rows], -np.inf)

    def begin_cold(self, rows: I64, heats: F32) -> None:
        """Slots hold cold blocks with this heat, which were last read longer ago than any."""
        self.heat[rows] = np.zeros(1, self.heat.dtype)
        self.heat["access_count"][rows] = heats
        self.lease_until[rows] = -self._wall
        self.begin_pins(rows, -self._wall)

    def is_leased(self, rows: I64, now: float) -> Bools:
        """Which slots are under a read lease, bool [n]."""
        result: Bools = self.lease_until[rows] > now
        return result

    # --- leaving --------------------------------------------------------------------------------

    def note_removed(self, kind: str, keys: list[bytes]) -> None:
        """Tell the event log of removals."""
        if self._event_log is not None:
            self._event_log(kind, keys)

    def note_gone(self, kind: str, records: Slots) -> None:
        """Tell the event log of blocks that leave, by their records."""
        if self._event_log is not None:
            self._event_log(kind, self.segment.mapping.keys_of(records).to_list())

    def drop(self, rows: I64) -> None:
        """Free served slots and their index entries."""
        self.index.remove(self.book.records["key_hash"][rows], rows)
        self.free(rows)

    def offload(self, rows: I64) -> None:
        """PUBLISHED → COLD: the memory of blocks that are on disk is free, all else stays.

        One store a slot, so a kill finds the block in memory or on disk. A reader who copies at
        this moment finds by the state that the block moved: slot and sequence stay the same, and
        never name a published block again.
        """
        records = self.book.records[rows]
        self.book.mark_cold(rows)
        self.space.free_data(records)
        self.counters.offloaded += len(rows)

    def begin_epoch(self, kept: Bools) -> I64:
        """Kill every slot but `kept` (bool [slots], published ones); returns the rows that were
        served and died. Whatever is on disk is older than the epoch and never comes back.

        First the kept ones are stamped with the epoch to come, then the header's epoch rises: the
        one store that counts. Killed before it, adoption stamps them back and nothing has
        happened; killed after it, adoption drops the slots of the old epoch.
        """
        book = self.book
        rows = np.flatnonzero(kept)
        self.durable[rows] = 0
        book.restamp(rows, self.segment.epoch + 1)
        self.segment.raise_epoch()
        served = (book.state == SlotState.PUBLISHED) | (book.state == SlotState.COLD)
        dead = np.flatnonzero(served & ~kept)
        self.index.clear()
        self.index.fill(book.records["key_hash"][rows], rows)
        self.free(np.concatenate([dead, np.flatnonzero(book.state == SlotState.REMOVED)]))
        return dead

    def free(self, rows: I64) -> None:
        """Free slots that the index does not name."""
        if not len(rows):
            return
        self.pin_owner[rows] = 0
        self.durable[rows] = 0
        cold = rows[self.book.state[rows] == SlotState.COLD]
        if len(cold):
            self.on_cold_left(cold)
        self.space.free(rows)

    def retire(self, rows: I64, records: Slots) -> None:
        """Slots became REMOVED: their data is free, their keys stay. `records` are from before."""
        self.pin_owner[rows] = 0
        self.durable[rows] = 0
        self.space.free_data(records)
        cold = rows[records["state"] == SlotState.COLD]
        if len(cold):
            self.on_cold_left(cold)

    # --- late writers -------------------------------------------------------------------------

    def writer_lost(self, writer: int) -> None:
        """A connection is gone: its unfinished slots are freed on proof that its process is."""
        rows = self.book.rows_where(SlotState.WRITING, lambda found: found["writer"] == writer)
        if len(rows):
            self.lingering[writer] = rows
            self.reclaim()

    def reclaim(self) -> None:
        """Free what late writers held, as far as they are proven to be gone."""
        suspects = self.lingering.keys() | self.space.withheld_until_gone
        gone = {writer for writer in suspects if self.segment.writer_is_gone(writer)}
        for writer in gone & self.lingering.keys():
            self.free(self.lingering.pop(writer))
        if gone:
            self.space.writers_gone(gone)
            if not self.space.withheld_until_gone:
                self.segment.note_doubt(in_doubt=False)
