"""Removals: of keys and of everything."""

from __future__ import annotations

import logging

import numpy as np

from snapd.blocks.keys import I64, U64, Bools
from snapd.config import event
from snapd.formats.segment import SlotState, key_units
from snapd.store.batches import I32, padded_keys, rounds
from snapd.store.blocks import BlockStore
from snapd.store.book import new_records
from snapd.store.daemon import DaemonSession
from snapd.store.events import NO_SLOT, EventQueue
from snapd.store.keys import PaddedKeys
from snapd.wire.codes import ReturnCode
from snapd.wire.messages import Remove

REMOVED_SHARE = 2
"""Removals may take one slot in so many while no daemon takes them."""

SLOTLESS_EVENTS_MAX = 1 << 18
"""Most removals of keys without a slot that wait for the daemon, a few hundred bytes each."""

_LOG = logging.getLogger(__name__)


class Removals:
    """A removal is durable against a kill of the store when the call returns: it lies in the
    segment. The engine holds the reply back until the daemon has made it durable on disk."""

    def __init__(self, blocks: BlockStore, daemon: DaemonSession, events: EventQueue) -> None:
        self._blocks = blocks
        self._daemon = daemon
        self._events = events
        self.superseded = 0
        """Versions superseded so far."""

    def remove(self, request: Remove, now: float) -> I32:
        """Remove keys; codes int32 [n]. Raises ProtocolError."""
        keys = padded_keys(request.keys)
        codes = np.full(len(keys), ReturnCode.OBJECT_NOT_FOUND, np.int32)
        for part in rounds(keys.hashes):
            some = keys if len(part) == len(keys) else keys.take(part)
            found = self._blocks.find(some)
            # A cold block that cannot be loaded is still the key's block: it is removed, too.
            there = found >= 0
            leased = there & self._blocks.is_leased(np.where(there, found, 0), now)
            if not request.force:
                codes[part[leased]] = ReturnCode.OBJECT_HAS_LEASE
                there &= ~leased
            codes[part[there]] = ReturnCode.OK
            self._remove_slots(found[there], keys.keys.take(part[there]).to_list())
        unknown = np.flatnonzero(codes == ReturnCode.OBJECT_NOT_FOUND)
        if self._daemon.listening and len(unknown):
            # Evicted since the last snapshot, say: the disk may have it still.
            sequences = self._blocks.segment.take_sequences(len(unknown))
            self.remove_on_disk(keys, unknown, sequences)
        return codes

    @property
    def disk_is_unknown(self) -> bool:
        """Whether a daemon is there that has not registered everything yet: a key that no slot has
        may be on disk."""
        return self._daemon.listening and not self._daemon.serves_cold

    def remove_on_disk(self, keys: PaddedKeys, at: I64, sequences: U64) -> None:
        """Versions up to `sequences` of the keys at these rows are gone, if the disk has any.

        No slot holds such a removal: until the daemon has it, nobody is told that it happened.
        """
        self._post(keys.keys.take(at).to_list(), np.full(len(at), NO_SLOT), sequences)

    def keep(self, keys: PaddedKeys, at: I64, sequences: U64) -> None:
        """As `remove_on_disk`, while no daemon takes removals: each gets a slot, as that of a block
        that was removed would be, and waits there for a daemon. It survives the store's death.

        Where slots are short a new epoch says it all, at the price that `make_room` names.
        """
        blocks = self._blocks
        got = blocks.space.reserve(np.zeros(len(at), np.int64), key_units(keys.lengths[at]))
        won = got.slots >= 0
        rows, into = at[won], got.slots[won]
        records = new_records(len(rows))
        records["sequence"] = sequences[won]
        records["size"] = 1  # of a block that nobody knows; none has no bytes
        records["key_hash"] = keys.hashes[rows]
        records["key_offset"] = got.key_offsets[won]
        records["key_length"] = keys.lengths[rows]
        records["epoch"] = blocks.segment.epoch
        records["state"] = SlotState.COLD
        blocks.heap.write(keys, rows, got.key_offsets[won])
        # Killed before it is marked it is a cold block that no daemon has registered: never served.
        blocks.book.fill(into, records)
        self._mark(into, keys.keys.take(rows).to_list())
        if not won.all():
            self.start_epoch(blocks.book.state == SlotState.PUBLISHED)

    def supersede(self, rows: I64, keys: list[bytes]) -> None:
        """The index names newer versions than these slots, PUBLISHED or COLD, of these keys.

        To the disk that is a removal: the old version may be in a pack and the new one is not, so
        without it a power cut would bring the old one back.
        """
        if len(rows):
            self._mark(rows, keys)
            self.superseded += len(rows)

    def _remove_slots(self, rows: I64, keys: list[bytes]) -> None:
        """PUBLISHED or COLD → REMOVED, one store a slot, then the index and the space, which is
        free on adoption."""
        if not len(rows):
            return
        hashes = self._blocks.book.records["key_hash"][rows]
        self._mark(rows, keys)
        self._blocks.index.remove(hashes, rows)
        self._blocks.counters.removals += len(rows)
        self._blocks.note_removed("remove", keys)

    def _mark(self, rows: I64, keys: list[bytes]) -> None:
        """→ REMOVED, and say so to the daemon.

        The keys are those of the request: the ones in the heap may have been damaged since they
        were compared, and the daemon must not journal the removal of another key.
        """
        blocks = self._blocks
        records = blocks.book.records[rows]
        blocks.book.mark_removed(rows)
        blocks.retire(rows, records)
        self._post(keys, rows, records["sequence"])

    def _post(self, keys: list[bytes], rows: I64, sequences: U64) -> None:
        """Versions of `keys` up to `sequences` are gone."""
        if not len(keys):
            return
        blocks = self._blocks
        after: U64 = sequences + np.uint64(1)
        blocks.removed_below = max(blocks.removed_below, int(after.max()))
        if self._daemon.attached:
            self._events.removed(keys, rows, after, blocks.segment.epoch)

    def remove_all(self, now: float, *, force: bool) -> int:
        """Remove everything but, unless forced, what is leased; returns how many keys went."""
        book = self._blocks.book
        kept: Bools = np.zeros(len(book), np.bool_)
        if not force:
            kept = (book.state == SlotState.PUBLISHED) & (self._blocks.lease_until > now)
        count = self.start_epoch(kept)
        self._blocks.note_removed("remove_all", [])
        event(_LOG, logging.INFO, "removed all", blocks=count, kept=int(kept.sum()))
        return count

    def make_room(self) -> bool:
        """Free the slots of removals that no daemon takes, by beginning a new epoch.

        Everything on disk is then older than the epoch, removed or not, and never comes back;
        what is resident moves to the new epoch and stays. False if that is not worth its price,
        which is all that is on disk.
        """
        state = self._blocks.book.state
        removed = int((state == SlotState.REMOVED).sum())
        taken = self._daemon.attached and not self._daemon.late
        if taken or removed < len(state) // REMOVED_SHARE:
            return False
        self.start_epoch(state == SlotState.PUBLISHED)
        event(
            _LOG,
            logging.WARNING,
            "removals filled the slot table while no daemon took them; new epoch begun",
            removals=removed,
        )
        return True

    def bound_pending(self) -> None:
        """Removals of keys that no slot holds take memory until the daemon has them. When a disk
        has refused very many, a new epoch says them all at once, at the same price as above."""
        waiting = self._events.slotless
        if waiting > SLOTLESS_EVENTS_MAX:
            self.start_epoch(self._blocks.book.state == SlotState.PUBLISHED)
            event(
                _LOG, logging.WARNING, "too many removals wait; new epoch begun", removals=waiting
            )

    def start_epoch(self, kept: Bools) -> int:
        """`BlockStore.begin_epoch`, and say so to the daemon; returns how many keys died."""
        blocks = self._blocks
        dead = blocks.begin_epoch(kept)
        sequence = int(blocks.segment.take_sequences(1)[0])
        blocks.removed_below = sequence
        blocks.counters.removals += len(dead)
        if self._daemon.attached:
            self._events.removed_all(sequence, blocks.segment.epoch)
        return len(dead)

    def check_pending(self) -> None:
        """Before a daemon is told of the removals that lie in slots: one whose key is damaged
        cannot be told, and its key may be on disk. So nothing on disk counts any more."""
        book = self._blocks.book
        records = book.records[book.state == SlotState.REMOVED]
        hashes = self._blocks.segment.mapping.keys_of(records).hashes()
        damaged = int((hashes != records["key_hash"]).sum())
        if damaged:
            self._blocks.counters.corrupt += damaged
            self.start_epoch(book.state == SlotState.PUBLISHED)
            event(_LOG, logging.ERROR, "removals damaged; new epoch begun", removals=damaged)
