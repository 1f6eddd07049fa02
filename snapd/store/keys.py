"""Keys in the segment's key heap: stored padded to whole units and compared a unit at a time."""

from __future__ import annotations

import numpy as np

from snapd.blocks.keys import I64, U8, U64, Bools, KeyColumn
from snapd.formats.segment import KEY_UNIT_BYTES, key_units

_UNIT_WORDS = KEY_UNIT_BYTES // 8


class PaddedKeys:
    """A request's keys, padded with zeros to whole units, and their hashes.

    `words` uint64 [units, 4]; `starts` (in units), `units` and `lengths` (bytes), int64 [n].
    """

    __slots__ = ("hashes", "keys", "lengths", "starts", "units", "words")

    def __init__(self, keys: KeyColumn, hashes: U64 | None = None) -> None:
        self.keys = keys
        self.hashes = keys.hashes() if hashes is None else hashes
        self.lengths = keys.lengths
        self.units = key_units(self.lengths)
        ends = np.cumsum(self.units)
        self.starts: I64 = ends - self.units
        padded = np.zeros(int(ends[-1]) * KEY_UNIT_BYTES if len(ends) else 0, np.uint8)
        if len(keys) and bool((self.lengths == self.lengths[0]).all()):
            heap = keys.heap[keys.offsets[0] : keys.offsets[-1]].reshape(len(keys), -1)
            padded.reshape(len(keys), -1)[:, : heap.shape[1]] = heap
        elif len(keys):
            shift = np.repeat(self.starts * KEY_UNIT_BYTES - keys.offsets[:-1], self.lengths)
            padded[np.arange(keys.offsets[0], keys.offsets[-1]) + shift] = keys.heap[
                keys.offsets[0] : keys.offsets[-1]
            ]
        self.words = padded.view(np.uint64).reshape(-1, _UNIT_WORDS)

    def __len__(self) -> int:
        return len(self.hashes)

    def take(self, rows: I64) -> PaddedKeys:
        """The keys of these rows."""
        return PaddedKeys(self.keys.take(rows), self.hashes[rows])


class KeyHeap:
    """The key heap of a segment, as units of 4 words."""

    def __init__(self, heap: U8) -> None:
        self._words: U64 = heap.view(np.uint64).reshape(-1, _UNIT_WORDS)

    def write(self, keys: PaddedKeys, rows: I64, offsets: I64) -> None:
        """Store key `rows[i]` at unit `offsets[i]`."""
        source = _runs(keys.starts[rows], keys.units[rows])
        self._words[_runs(offsets, keys.units[rows])] = keys.words[source]

    def equal(self, keys: PaddedKeys, rows: I64, offsets: I64) -> Bools:
        """Whether the key at unit `offsets[i]` is key `rows[i]`, bool [m].

        The caller has compared the lengths; the offsets are within the heap.
        """
        if not len(rows):
            return np.zeros(0, np.bool_)
        units = keys.units[rows]
        same = keys.words[_runs(keys.starts[rows], units)] == self._words[_runs(offsets, units)]
        result: Bools = np.logical_and.reduceat(same.all(axis=1), np.cumsum(units) - units)
        return result


def _runs(starts: I64, lengths: I64) -> I64:
    """start, start + 1, … for each run, one after another."""
    if len(lengths) and bool((lengths == lengths[0]).all()):
        fixed: I64 = (starts[:, None] + np.arange(lengths[0])).reshape(-1)
        return fixed
    ends = np.cumsum(lengths)
    mixed: I64 = np.repeat(starts - (ends - lengths), lengths) + np.arange(
        ends[-1] if len(ends) else 0
    )
    return mixed
