"""Removals: of keys and of everything."""

from __future__ import annotations

import logging

import numpy as np

from snapd.blocks.keys import I64, U64, Bools
from snapd.config import event
from snapd.formats.segment import SlotState
from snapd.store.batches import I32, padded_keys, rounds
from snapd.store.blocks import BlockStore
from snapd.store.daemon import DaemonSession
from snapd.store.events import EventQueue
from snapd.wire.codes import ReturnCode
from snapd.wire.messages import Remove

REMOVED_SHARE = 2
"""Removals may take one slot in so many while no daemon takes them."""

_LOG = logging.getLogger(__name__)


class Removals:
    """A removal is durable against a kill of the store when the call returns: it lies in the
    segment. The engine holds the reply back until the daemon has made it durable on disk."""

    def __init__(self, blocks: BlockStore, daemon: DaemonSession, events: EventQueue) -> None:
        self._blocks = blocks
        self._daemon = daemon
        self._events = events

    def remove(self, request: Remove, now: float) -> I32:
        """Remove keys; codes int32 [n]. Raises ProtocolError."""
        keys = padded_keys(request.keys)
        codes = np.full(len(keys), ReturnCode.OBJECT_NOT_FOUND, np.int32)
        for part in rounds(keys.hashes):
            found = (
                self._blocks.find(keys)[part]
                if len(part) < len(keys)
                else (self._blocks.find(keys))
            )
            # A cold block that cannot be loaded is still the key's block: it is removed, too.
            there = found >= 0
            leased = there & self._blocks.is_leased(np.where(there, found, 0), now)
            if not request.force:
                codes[part[leased]] = ReturnCode.OBJECT_HAS_LEASE
                there &= ~leased
            codes[part[there]] = ReturnCode.OK
            self._remove_slots(found[there])
        return codes

    def _remove_slots(self, rows: I64) -> None:
        """PUBLISHED or COLD → REMOVED, one store a slot, then the index and the space.

        Killed in between, the audit takes entries to REMOVED slots out of the index; the space
        of removed slots is free on adoption.
        """
        if not len(rows):
            return
        blocks = self._blocks
        records = blocks.book.records[rows]
        keys = blocks.segment.mapping.keys_of(records).to_list()
        blocks.book.mark_removed(rows)
        blocks.index.remove(records["key_hash"], rows)
        blocks.retire(rows, records)
        after: U64 = records["sequence"] + np.uint64(1)
        blocks.removed_below = max(blocks.removed_below, int(after.max()))
        blocks.counters.removals += len(rows)
        blocks.note_removed("remove", keys)
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
        if self._daemon.attached or removed < len(state) // REMOVED_SHARE:
            return False
        self.start_epoch(state == SlotState.PUBLISHED)
        event(
            _LOG,
            logging.WARNING,
            "removals filled the slot table while no daemon was there; new epoch begun",
            removals=removed,
        )
        return True

    def start_epoch(self, kept: Bools) -> int:
        """Kill every slot but `kept` (bool [slots], published ones); returns how many keys died.

        First the kept ones are stamped with the epoch to come, then the header's epoch rises: the
        one store that counts. Killed before it, adoption stamps them back and nothing has
        happened; killed after it, adoption drops the slots of the old epoch.
        """
        blocks = self._blocks
        book = blocks.book
        rows = np.flatnonzero(kept)
        book.restamp(rows, blocks.segment.epoch + 1)
        blocks.segment.raise_epoch()
        sequence = int(blocks.segment.take_sequences(1)[0])
        blocks.removed_below = sequence
        served = (book.state == SlotState.PUBLISHED) | (book.state == SlotState.COLD)
        dead = np.flatnonzero(served & ~kept)
        blocks.index.clear()
        blocks.index.insert(book.records["key_hash"][rows], rows)
        blocks.free(np.concatenate([dead, np.flatnonzero(book.state == SlotState.REMOVED)]))
        blocks.counters.removals += len(dead)
        if self._daemon.attached:
            self._events.removed_all(sequence, blocks.segment.epoch)
        return len(dead)
