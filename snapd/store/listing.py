"""The keys of everything that is served, page by page."""

from __future__ import annotations

import numpy as np

from snapd.blocks.keys import I64
from snapd.errors import ProtocolError
from snapd.formats.segment import SlotState
from snapd.store.blocks import BlockStore
from snapd.store.daemon import DaemonSession
from snapd.wire.messages import Listed, ListKeys, encode_keys

PAGE_KEYS_MAX = 8192
"""Keys in one reply: at their longest half a frame, and some milliseconds of everybody's time."""


class KeyListing:
    """Answers from the store's own copy of the slots: nobody else can write that."""

    def __init__(self, blocks: BlockStore, daemon: DaemonSession) -> None:
        self._blocks = blocks
        self._daemon = daemon

    def page(self, request: ListKeys) -> Listed:
        """The keys in the slots from `first` on. Raises ProtocolError if there is no such slot."""
        book = self._blocks.book
        if not 0 <= request.first <= len(book):
            raise ProtocolError(f"slot {request.first} is not in the table")
        state = book.state[request.first :]
        rows: I64 = np.flatnonzero((state == SlotState.PUBLISHED) | (state == SlotState.COLD))
        more = len(rows) > PAGE_KEYS_MAX
        rows = rows[:PAGE_KEYS_MAX] + request.first
        records = book.records[rows]
        keys = self._blocks.segment.mapping.keys_of(records)
        intact = keys.hashes() == records["key_hash"]
        known = self._daemon.serves_cold or not self._daemon.attached
        return Listed(
            encode_keys(keys.take(intact)),
            int(rows[-1]) + 1 if more else 0,
            self._blocks.counters.filled,
            known and bool(intact.all()),
        )
