"""What changed in a store since it was last looked at, and what of that needs a write.

A scan is one number for each slot: the sequence of the version published there, 0 where nothing
is. Sequences are never used twice in a segment, so comparing two numbers compares two versions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from snapd.blocks.keys import I64, U64, Bools

_SLOTS_AT_A_TIME = 1 << 18
"""Slots compared at a time, which bounds the memory of temporary columns."""


@dataclass(frozen=True, slots=True)
class ScanDiff:
    """Slots by what happened to them; each int64, ascending."""

    new: I64
    """A version is published that was not settled before."""
    gone: I64
    """The version that was settled is no longer there."""


def diff_scan(scan: U64, settled: U64, row: I64, live: Bools) -> ScanDiff:
    """Compare a scan with what was settled before.

    `scan` and `settled` are uint64 [slots]; `row` int64 [slots] is the catalog row that holds the
    settled version (-1: none, it was rejected) and `live` bool [slots] tells whether a snapshot
    would name that row. A version whose row has died meanwhile (it matched an older copy of its
    key, whose removal was learned of later) is new again: it must be written under its own
    sequence.
    """
    new: list[I64] = [np.empty(0, np.int64)]
    gone: list[I64] = [np.empty(0, np.int64)]
    for at in range(0, len(scan), _SLOTS_AT_A_TIME):
        part = slice(at, at + _SLOTS_AT_A_TIME)
        published = scan[part] != 0
        same = scan[part] == settled[part]
        lapsed = (row[part] >= 0) & ~live[part]
        new.append(np.flatnonzero(published & (~same | lapsed)) + at)
        gone.append(np.flatnonzero((settled[part] != 0) & ~same) + at)
    return ScanDiff(np.concatenate(new), np.concatenate(gone))


def same_bytes(size: U64, checksum: U64, other_size: U64, other_checksum: U64) -> Bools:
    """Which blocks, of keys already known to be equal, hold the same bytes, bool [n]."""
    equal: Bools = (size == other_size) & (checksum == other_checksum)
    return equal
