"""What changed in a store since it was last looked at, and what of that needs a write.

A scan is one number for each slot: the sequence of the version published there, 0 where nothing
is. Sequences are never used twice in a segment, so comparing two numbers compares two versions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from snapd.blocks.keys import I64, U64, Bools


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
    settled version (-1: none, it was rejected) and `live` bool [rows] tells which rows a snapshot
    would name. A version whose row has died meanwhile (it matched an older copy of its key, whose
    removal was learned of later) is new again: it must be written under its own sequence.
    """
    published = scan != 0
    same = scan == settled
    lapsed = np.zeros(len(scan), np.bool_)
    held = np.flatnonzero(same & published & (row >= 0))
    lapsed[held] = ~live[row[held]]
    return ScanDiff(
        new=np.flatnonzero(published & (~same | lapsed)).astype(np.int64),
        gone=np.flatnonzero((settled != 0) & ~same).astype(np.int64),
    )


def same_bytes(size: U64, checksum: U64, other_size: U64, other_checksum: U64) -> Bools:
    """Which blocks, of keys already known to be equal, hold the same bytes, bool [n]."""
    equal: Bools = (size == other_size) & (checksum == other_checksum)
    return equal
