"""`EventQueue`: what the daemon has to make durable, in numbered batches until acknowledged.

Removals lie in their slots (`SlotState.REMOVED`) until then, so that neither a kill of the store
nor of the daemon loses one: whoever attaches is told of all of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

import numpy as np

from snapd.blocks import KeyColumn
from snapd.blocks.keys import I64, U64
from snapd.formats.segment import U32, SlotState
from snapd.store.blocks import BlockStore
from snapd.wire.messages import EventKind, Events, encode_keys

BATCH_EVENTS_MAX = 4096
QUEUE_EVENTS_MAX = 65_536
"""Most events of corrupt blocks kept for a daemon that is away; removals are kept in slots."""


NO_SLOT = 0xFFFFFFFF
"""Slot of the removal of a key that the store does not know."""


@dataclass(frozen=True, slots=True)
class Event:
    """One removal, remove-all or dropped block; see `Events`."""

    kind: int
    key: bytes
    slot: int
    sequence: int
    epoch: int
    stands_from: int = 0
    """Of a remove-all: the first ordinal that is durable only with it."""


class EventQueue:
    """Events in order, each with an ordinal from 1; `acknowledged` is the last one made durable."""

    def __init__(self, blocks: BlockStore) -> None:
        self._blocks = blocks
        self._queue: deque[Event] = deque()
        self._sent: list[Event] = []
        self._number = 0
        self._posted = 0
        self.acknowledged = 0
        self.slotless_last = 0
        """Ordinal of the last removal that lies in no slot."""
        self.slotless = 0
        """How many of those wait to be sent."""
        self.on_posted: Callable[[], None] = lambda: None

    @property
    def posted(self) -> int:
        """Ordinal of the last event."""
        return self._posted

    def removed(self, keys: list[bytes], rows: I64, sequences: U64, epoch: int) -> None:
        """Slots `rows` are REMOVED; versions of their keys below `sequences` are gone."""
        slotless = int((rows == NO_SLOT).sum())
        if slotless:
            self.slotless += slotless
            self.slotless_last = self._posted + len(rows)
        self._post(
            [
                Event(EventKind.REMOVED, key, row, sequence, epoch)
                for key, row, sequence in zip(keys, rows.tolist(), sequences.tolist(), strict=True)
            ]
        )

    def removed_all(self, sequence: int, epoch: int) -> None:
        """Everything of an older epoch is gone. Removals not sent yet are covered by that: who
        waits for one of them waits for this now, so it comes in the place of all that waits."""
        first = self._before_queue() + 1
        kept = [event for event in self._queue if event.kind == EventKind.CORRUPT]
        self._queue.clear()
        self.slotless = 0
        self._post([Event(EventKind.REMOVE_ALL, b"", 0, sequence, epoch, first), *kept])

    def corrupt(self, keys: list[bytes], rows: I64, sequences: U64, epochs: U32) -> None:
        """Blocks were dropped because their bytes were wrong: no eviction."""
        if len(self._queue) >= QUEUE_EVENTS_MAX:
            return
        columns = zip(keys, rows.tolist(), sequences.tolist(), epochs.tolist(), strict=True)
        self._post([Event(EventKind.CORRUPT, *columns_of) for columns_of in columns])

    def restart(self, *, same_daemon: bool) -> None:
        """A daemon attached: every removal that no daemon has acknowledged is posted again, whether
        it lies in a slot or not, and for the same daemon the corrupt blocks."""
        waiting = [*self._sent, *self._queue]
        slotless = [
            event for event in waiting if event.kind == EventKind.REMOVED and event.slot == NO_SLOT
        ]
        corrupt = [event for event in waiting if event.kind == EventKind.CORRUPT]
        self._sent = []
        self._queue.clear()
        self.acknowledged = self._posted
        self._post([*slotless, *(corrupt if same_daemon else [])])
        self.slotless = len(slotless)
        book = self._blocks.book
        rows = np.flatnonzero(book.state == SlotState.REMOVED)
        records = book.records[rows]
        keys = self._blocks.segment.mapping.keys_of(records).to_list()
        epoch = self._blocks.segment.epoch
        self.removed(keys, rows, records["sequence"] + np.uint64(1), epoch)

    def take(self, ack: int) -> Events | None:
        """The next batch after acknowledging batch `ack`; None if there is nothing to send."""
        if self._sent and ack == self._number:
            self._forget(self._sent)
            self._sent = []
            self.acknowledged = self._before_queue()
        if not self._sent and self._queue:
            self._sent = list(islice(self._queue, BATCH_EVENTS_MAX))
            for _ in self._sent:
                event = self._queue.popleft()
                self.slotless -= event.kind == EventKind.REMOVED and event.slot == NO_SLOT
            self._number += 1
        return self._message(self._sent) if self._sent else None

    def nothing(self) -> Events:
        """The empty batch that ends a long poll; its number is that of the last one."""
        return self._message([])

    def _before_queue(self) -> int:
        """Ordinal of the last event that nothing in the queue stands for; a remove-all is its
        first."""
        if self._queue and self._queue[0].stands_from:
            return self._queue[0].stands_from - 1
        return self._posted - len(self._queue)

    def _post(self, events: list[Event]) -> None:
        if events:
            self._queue.extend(events)
            self._posted += len(events)
            self.on_posted()

    def _forget(self, events: list[Event]) -> None:
        """Free the slots of removals that are durable now."""
        removals = [event for event in events if event.kind == EventKind.REMOVED]
        removals = [event for event in removals if event.slot != NO_SLOT]
        rows = np.array([event.slot for event in removals], np.int64)
        before = np.array([event.sequence - 1 for event in removals], np.uint64)
        book = self._blocks.book
        held = book.holds(rows, before) & (book.state[rows] == SlotState.REMOVED)
        self._blocks.free(np.unique(rows[held]))

    def _message(self, events: list[Event]) -> Events:
        return Events(
            number=self._number,
            kinds=np.array([event.kind for event in events], np.uint8).tobytes(),
            keys=encode_keys(KeyColumn.from_list([event.key for event in events])),
            slots=np.array([event.slot for event in events], np.uint32).tobytes(),
            sequences=np.array([event.sequence for event in events], np.uint64).tobytes(),
            epochs=np.array([event.epoch for event in events], np.uint32).tobytes(),
        )
