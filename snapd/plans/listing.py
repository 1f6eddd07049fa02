"""What a listing of keys says, beside what was known before; and how much of it to look at when."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from snapd.blocks.keys import I64, U64, Bools

LOOK_SHARE = 10.0
"""Looks take at most one part in so many of the time."""


@dataclass(frozen=True, slots=True)
class ListingDiff:
    """A listing of keys beside the resident slots, all int64."""

    kept: I64
    """Positions among the resident slots of those that are listed."""
    kept_rows: I64
    """Rows of the listing, in the same order."""
    vanished: I64
    """Positions of the resident slots that are not listed."""


def diff_listing(slots: I64, resident: I64) -> ListingDiff:
    """`slots` int64 [keys] is the slot of each listed key, -1 where it has none; `resident` int64
    [m], ascending, are the slots that should be listed. No slot is named twice."""
    if not len(resident):
        none = np.empty(0, np.int64)
        return ListingDiff(none, none, none)
    at = np.minimum(np.searchsorted(resident, slots), len(resident) - 1)
    hit = resident[at] == slots
    rows = np.flatnonzero(hit)
    listed = np.zeros(len(resident), np.bool_)
    listed[at[rows]] = True
    order = np.argsort(at[rows], kind="stable")
    return ListingDiff(at[rows][order], rows[order], np.flatnonzero(~listed))


def oldest_first(looked_at: U64, size: U64, *, bytes_max: int, rows_max: int) -> I64:
    """Rows whose last look is longest ago, at most `rows_max` and `bytes_max` bytes of them, but
    one row if there is any; int64, ascending."""
    if not len(size):
        return np.empty(0, np.int64)
    order = np.argsort(looked_at, kind="stable")[:rows_max]
    total = np.cumsum(size[order].astype(np.int64))
    fits = max(1, int(np.searchsorted(total, bytes_max, side="right")))
    return np.sort(order[:fits])


def seconds_to_next_look(poll_seconds: float, look_seconds: float) -> float:
    """From the end of one look, which took `look_seconds`, to the start of the next: so that the
    master is not asked all the time, however many keys it has."""
    return max(0.0, max(poll_seconds, LOOK_SHARE * look_seconds) - look_seconds)


class ForeignKeys:
    """Keys, by hash, that were found in nobody's segment of ours: other hosts' keys, mostly.

    Locating all of them at each look would cost as much as all other work together, so a share is
    located again each time. A key of another host's that was removed and put into a segment of
    ours between two looks is found that much later. (Two keys of one hash, 64 bits, are not.)
    """

    __slots__ = ("_hash", "_looked")

    def __init__(self) -> None:
        self._hash: U64 = np.empty(0, np.uint64)
        """Ascending."""
        self._looked: U64 = np.empty(0, np.uint64)

    def __len__(self) -> int:
        return len(self._hash)

    def to_locate(self, hashes: U64, *, rows_min: int, parts: int) -> Bools:
        """Which of these listed keys, without a slot, to locate now, bool [n]: all that are not
        known to be foreign, and one part in `parts` of the others, `rows_min` at least."""
        at, known = self._find(hashes)
        result: Bools = ~known
        rows = np.flatnonzero(known)
        if len(rows):
            share = max(rows_min, -(-len(rows) // parts))
            oldest = np.argsort(self._looked[at[rows]], kind="stable")[:share]
            result[rows[oldest]] = True
        return result

    def update(self, listed: U64, located: Bools, foreign: Bools, look: int) -> None:
        """After the look number `look`: of the `listed` hashes those that were `located` and are
        `foreign` now; what is not listed any more is forgotten."""
        at, known = self._find(listed)
        kept = (known & ~located) | foreign
        looked = np.full(len(listed), look, np.uint64)
        old = np.flatnonzero(known & ~located)
        looked[old] = self._looked[at[old]]
        self._hash, first = np.unique(listed[kept], return_index=True)
        self._looked = looked[kept][first]

    def clear(self) -> None:
        """Nothing is known."""
        self._hash, self._looked = np.empty(0, np.uint64), np.empty(0, np.uint64)

    def _find(self, hashes: U64) -> tuple[I64, Bools]:
        if not len(self._hash):
            return np.zeros(len(hashes), np.int64), np.zeros(len(hashes), np.bool_)
        at = np.minimum(np.searchsorted(self._hash, hashes), len(self._hash) - 1)
        known: Bools = self._hash[at] == hashes
        return at.astype(np.int64), known
