"""`ChangeLog`: what happened in the store and is not durable yet, in the order that it was seen."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace

import numpy as np

from snapd.attach.port import Changes
from snapd.blocks import KeyColumn
from snapd.blocks.keys import U64
from snapd.wire.messages import EventKind

BATCH_ROWS_MAX = 32_768
"""Changes told at a time."""


@dataclass(frozen=True, slots=True)
class _Entry:
    number: int
    kind: int
    """`EventKind`."""
    keys: KeyColumn
    sequences: U64
    epoch: int


class ChangeLog:
    """Removals until they are acknowledged. Thread-safe; waits nowhere."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: list[_Entry] = []
        self._last = 0

    @property
    def is_empty(self) -> bool:
        """Whether everything that was told is acknowledged."""
        with self._lock:
            return not self._entries

    @property
    def last(self) -> int:
        """Number of the newest entry ever; when it is acknowledged, everything up to it is."""
        with self._lock:
            return self._last

    def removed(self, keys: KeyColumn, sequences: U64, epoch: int) -> None:
        """Every version of these keys before these sequences, uint64 [n], is over."""
        for at in range(0, len(keys), BATCH_ROWS_MAX):
            rows = np.arange(at, min(at + BATCH_ROWS_MAX, len(keys)))
            self._append(EventKind.REMOVED, keys.take(rows), sequences[rows], epoch)

    def removed_all(self, epoch: int) -> None:
        """Every version of an epoch before this one is over."""
        self._append(
            EventKind.REMOVE_ALL, KeyColumn.from_list([b""]), np.zeros(1, np.uint64), epoch
        )

    def renumber(self) -> int:
        """A session begins whose epochs start at 0: what is not acknowledged yet is told in its
        numbers. Returns 1 if everything from before it is over, else 0."""
        with self._lock:
            alls = [at for at, one in enumerate(self._entries) if one.kind == EventKind.REMOVE_ALL]
            epoch = 1 if alls else 0
            # The session journals its first epoch itself; removals before that are in it.
            kept = self._entries[alls[-1] + 1 :] if alls else self._entries
            self._entries = [replace(one, epoch=epoch) for one in kept]
            return epoch

    def acknowledge(self, number: int) -> None:
        """Everything up to this number is durable."""
        with self._lock:
            self._entries = [one for one in self._entries if one.number > number]

    def batch(self) -> Changes:
        """What is not acknowledged, oldest first, as much as one answer takes."""
        with self._lock:
            chosen: list[_Entry] = []
            rows = 0
            for one in self._entries:
                rows += len(one.keys)
                if chosen and rows > BATCH_ROWS_MAX:
                    break
                chosen.append(one)
        lengths = [len(one.keys) for one in chosen]
        return Changes(
            chosen[-1].number if chosen else 0,
            np.repeat(np.array([one.kind for one in chosen], np.uint8), lengths),
            KeyColumn.concatenate([one.keys for one in chosen]),
            np.zeros(sum(lengths), np.uint32),
            np.concatenate([np.empty(0, np.uint64), *(one.sequences for one in chosen)]),
            np.repeat(np.array([one.epoch for one in chosen], np.uint32), lengths),
        )

    def _append(self, kind: int, keys: KeyColumn, sequences: U64, epoch: int) -> None:
        with self._lock:
            self._last += 1
            self._entries.append(_Entry(self._last, kind, keys, sequences, epoch))
