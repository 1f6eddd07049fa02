"""`HashIndex`: a vectorised bucket hash table from 64-bit key hashes to row or slot numbers.

The same code serves the store's key index and the daemon's: it works on two arrays that its owner
provides, and keeps no other state. Entries are hints. The owner's `match` decides on the full key.

Layout: `entries` uint64 [buckets, 8], each 0 (free) or tag << 32 | number + 1, where the tag is the
hash's upper half; `displaced` uint32 [buckets], how many entries passed over this full bucket to a
later one. A look-up goes on to the next bucket only where that count is above zero, and a removal
counts down, so there are no tombstones. Writes are ordered so that a process killed between two
of them leaves a count too high (a longer probe) and never one too low (a lost key).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from snapd.blocks.keys import I64, U64, Bools

BUCKET_ENTRIES = 8
"""Entries a bucket: 64 bytes, one cache line."""

_TAG_SHIFT = np.uint64(32)
_NUMBER_MASK = np.uint64(0xFFFFFFFF)
_NUMBER_MAX = 0xFFFFFFFE

_NTH_FREE: npt.NDArray[np.uint8] = np.array(
    [
        (
            [at for at in range(BUCKET_ENTRIES) if free >> at & 1]
            + [BUCKET_ENTRIES] * BUCKET_ENTRIES
        )[:BUCKET_ENTRIES]
        for free in range(1 << BUCKET_ENTRIES)
    ],
    np.uint8,
)
"""For each set of free places as bits, where its first, second, ... is, [256, 8]; 8 is nowhere. A
look-up costs an eighth of sorting the places of every bucket."""

Match = Callable[[I64, I64], Bools]
"""match(queries, numbers): whether row or slot `numbers[i]` holds the key of query `queries[i]`."""


def bucket_count(capacity: int) -> int:
    """Buckets, a power of two, that hold `capacity` entries at a load of one half or less."""
    needed = -(-2 * capacity // BUCKET_ENTRIES)
    return 1 << max(0, needed - 1).bit_length()


class HashIndex:
    """A table over `entries` uint64 [buckets, 8] and `displaced` uint32 [buckets]."""

    __slots__ = ("_buckets", "displaced", "entries")

    def __init__(self, entries: U64, displaced: npt.NDArray[np.uint32]) -> None:
        buckets = len(displaced)
        if entries.shape != (buckets, BUCKET_ENTRIES) or buckets & (buckets - 1):
            raise ValueError(f"entries {entries.shape} do not fit {buckets} buckets")
        self.entries = entries
        self.displaced = displaced
        self._buckets = buckets

    @classmethod
    def allocate(cls, capacity: int) -> HashIndex:
        """An empty table in private memory for up to `capacity` entries."""
        buckets = bucket_count(capacity)
        return cls(np.zeros((buckets, BUCKET_ENTRIES), np.uint64), np.zeros(buckets, np.uint32))

    def find(self, hashes: U64, match: Match) -> I64:
        """The number stored for each hash, int64 [n], -1 where `match` confirms none."""
        result = np.full(len(hashes), -1, np.int64)
        active = np.arange(len(hashes))
        bucket = self._home(hashes)
        tags = hashes >> _TAG_SHIFT
        for _ in range(self._buckets):
            rows = self.entries[bucket]
            hit = ((rows >> _TAG_SHIFT) == tags[active, None]) & (rows != 0)
            at, column = np.nonzero(hit)
            if len(at):
                numbers = (rows[at, column] & _NUMBER_MASK).astype(np.int64) - 1
                good = match(active[at], numbers)
                result[active[at[good]]] = numbers[good]
            onward = (self.displaced[bucket] > 0) & (result[active] < 0)
            if not onward.any():
                return result
            active = active[onward]
            bucket = self._next(bucket[onward])
        return result

    def insert(self, hashes: U64, numbers: I64) -> None:
        """Add entries. The caller has made sure that the keys are not in the table.

        Raises OverflowError when the table has no free entry left, or a number is too large.
        """
        if len(numbers) and (int(numbers.max()) > _NUMBER_MAX or int(numbers.min()) < 0):
            raise OverflowError(f"number {int(numbers.max())} does not fit an index entry")
        words = self._words(hashes, numbers)
        bucket = self._home(hashes)
        for _ in range(self._buckets + 1):
            if not len(words):
                return
            order = np.argsort(bucket, kind="stable")
            bucket, words = bucket[order], words[order]
            firsts = np.flatnonzero(np.diff(bucket, prepend=-1))
            sizes = np.diff(firsts, append=len(bucket))
            rank = np.arange(len(bucket)) - np.repeat(firsts, sizes)
            free = np.packbits(self.entries[bucket] == 0, axis=1, bitorder="little")[:, 0]
            place = _NTH_FREE[free, np.minimum(rank, BUCKET_ENTRIES - 1)]
            fits = (rank < BUCKET_ENTRIES) & (place < BUCKET_ENTRIES)
            rows = np.flatnonzero(fits)
            self.entries[bucket[rows], place[rows]] = words[rows]
            bucket, words = bucket[~fits], words[~fits]
            # Counted before the entry exists further on: a kill in between only lengthens probes.
            np.add.at(self.displaced, bucket, 1)
            bucket = self._next(bucket)
        raise OverflowError(f"the key index of {self._buckets} buckets is full")

    def fill(self, hashes: U64, numbers: I64) -> None:
        """Add entries to an empty table, as `insert` would; a million in a tenth of a second.

        One sort of packed words brings each bucket's entries together, so the places need not be
        looked up.
        """
        bucket = self._home(hashes)
        packed = bucket.astype(np.uint64) << _TAG_SHIFT
        packed |= np.arange(len(bucket), dtype=np.uint64)
        packed.sort()
        order = (packed & _NUMBER_MASK).astype(np.int64)
        bucket = bucket[order]
        firsts = np.flatnonzero(np.diff(bucket, prepend=-1))
        rank = np.arange(len(bucket)) - np.repeat(firsts, np.diff(firsts, append=len(bucket)))
        fits = rank < BUCKET_ENTRIES
        home = order[fits]
        self.entries[bucket[fits], rank[fits]] = self._words(hashes[home], numbers[home])
        away = order[~fits]
        self.insert(hashes[away], numbers[away])

    def remove(self, hashes: U64, numbers: I64) -> int:
        """Remove these entries and return how many were there; one named twice counts once."""
        # Counted down twice, one entry would take another's way-mark with it and lose that key.
        words, once = np.unique(self._words(hashes, numbers), return_index=True)
        bucket = self._home(hashes[once])
        passed: list[I64] = []
        passed_by: list[I64] = []
        ids = np.arange(len(words))
        found = np.zeros(len(words), np.bool_)
        for _ in range(self._buckets):
            hit = self.entries[bucket] == words[ids, None]
            at, column = np.nonzero(hit)
            self.entries[bucket[at], column] = 0
            found[ids[at]] = True
            onward = ~found[ids] & (self.displaced[bucket] > 0)
            if not onward.any():
                break
            bucket, ids = bucket[onward], ids[onward]
            passed.append(bucket)
            passed_by.append(ids)
            bucket = self._next(bucket)
        for buckets, who in zip(passed, passed_by, strict=True):
            np.subtract.at(self.displaced, buckets[found[who]], 1)
        return int(found.sum())

    def replace(self, hashes: U64, old: I64, new: I64) -> None:
        """Point the entries of `old` numbers at `new` ones, each in one 8-byte store.

        Raises KeyError when one of the old entries is not there.
        """
        words, renewed = self._words(hashes, old), self._words(hashes, new)
        bucket, ids = self._home(hashes), np.arange(len(words))
        for _ in range(self._buckets):
            at, column = np.nonzero(self.entries[bucket] == words[ids, None])
            self.entries[bucket[at], column] = renewed[ids[at]]
            missing = np.ones(len(ids), np.bool_)
            missing[at] = False
            if not missing.any():
                return
            if not (self.displaced[bucket[missing]] > 0).all():
                break
            bucket, ids = self._next(bucket[missing]), ids[missing]
        raise KeyError("an entry to replace is not in the index")

    def clear(self) -> None:
        """Remove every entry."""
        self.entries[:] = 0
        self.displaced[:] = 0

    def numbers(self) -> tuple[I64, I64]:
        """All entries as (numbers, flat positions), int64 [m] each."""
        flat = self.entries.reshape(-1)
        positions = np.flatnonzero(flat)
        return (flat[positions] & _NUMBER_MASK).astype(np.int64) - 1, positions

    def _home(self, hashes: U64) -> I64:
        return (hashes & np.uint64(self._buckets - 1)).astype(np.int64)

    def _next(self, bucket: I64) -> I64:
        return (bucket + 1) & (self._buckets - 1)

    @staticmethod
    def _words(hashes: U64, numbers: I64) -> U64:
        high = (hashes >> _TAG_SHIFT) << _TAG_SHIFT
        return high | (numbers + 1).astype(np.uint64)
