"""`merge_reads`: which stored blocks one `preadv` can fetch together.

Blocks that lie one after another in a pack become one run, so that a warm-up of small blocks costs
one system call a run and not one a block. A run is bounded in bytes, which bounds the memory and
the time of one call, and in buffers, because the kernel takes at most 1,024 in one call.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from snapd.blocks.keys import I64, U64
from snapd.blocks.table import U32


@dataclass(frozen=True, slots=True)
class ReadRuns:
    """Runs of reads: run `i` covers the requests `order[starts[i]:starts[i + 1]]`."""

    order: I64
    """Requests by pack and offset, int64 [n]: positions in the columns that were given."""
    starts: I64
    """First position in `order` of each run, and n at the end, int64 [runs + 1]."""

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __iter__(self) -> Iterator[I64]:
        """The requests of each run, int64, in file order."""
        bounds = self.starts.tolist()
        for first, end in zip(bounds[:-1], bounds[1:], strict=True):
            yield self.order[first:end]


def merge_reads(
    pack: U32, offset: U64, length: U64, *, bytes_max: int, buffers_max: int = 1024
) -> ReadRuns:
    """Group n reads (`pack`, byte `offset` and padded byte `length`, all [n]) into runs.

    The reads of a run are in one pack and each starts where the one before it ends. A run is at
    most `bytes_max` bytes, unless it is a single block that is longer, and `buffers_max` reads.
    """
    rows = len(pack)
    order = np.lexsort((offset, pack)).astype(np.int64)
    begin = offset[order].astype(np.int64)
    size = length[order].astype(np.int64)
    broken = np.ones(rows, np.bool_)
    if rows:
        broken[1:] = (pack[order][1:] != pack[order][:-1]) | (begin[1:] != begin[:-1] + size[:-1])
    firsts = np.flatnonzero(broken).astype(np.int64)
    ends = np.append(firsts[1:], rows).astype(np.int64)
    total = np.concatenate([np.zeros(1, np.int64), np.cumsum(size)])
    over = (total[ends] - total[firsts] > bytes_max) | (ends - firsts > buffers_max)
    cuts = [
        _cut(total, int(first), int(end), bytes_max, buffers_max)
        for first, end in zip(firsts[over], ends[over], strict=True)
    ]
    starts = np.concatenate([firsts, *cuts, np.array([rows], np.int64)])
    return ReadRuns(order, np.unique(starts) if rows else np.zeros(1, np.int64))


def _cut(total: I64, first: int, end: int, bytes_max: int, buffers_max: int) -> I64:
    """Where to cut one stretch `first:end` that is over a limit; one step for each run of it."""
    cuts: list[int] = []
    at = first
    while at < end:
        cuts.append(at)
        fits = int(np.searchsorted(total, total[at] + bytes_max, side="right")) - 1
        at = max(at + 1, min(fits, at + buffers_max))
    return np.array(cuts, np.int64)
