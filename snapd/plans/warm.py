"""`windows`: cut an order of blocks into pieces that are loaded or written one at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from snapd.blocks.keys import I64, U64


def windows(
    order: I64, size: U64, *, bytes_max: int, blocks_max: int, bytes_total_max: int | None = None
) -> Iterator[I64]:
    """Pieces of `order` (rows, int64) in turn, each at most `bytes_max` bytes, `blocks_max` rows.

    `size` uint64 [n] holds the bytes of each row of `order`, in that order. A block larger than
    `bytes_max` is a piece of its own. `bytes_total_max` ends the whole: the tail of the order, its
    coldest part, is left out.
    """
    total = np.concatenate([np.zeros(1, np.int64), np.cumsum(size.astype(np.int64))])
    end = len(order)
    if bytes_total_max is not None:
        end = int(np.searchsorted(total, bytes_total_max, side="right")) - 1
    at = 0
    while at < end:
        fits = int(np.searchsorted(total, total[at] + bytes_max, side="right")) - 1
        stop = min(end, max(at + 1, min(fits, at + blocks_max)))
        yield order[at:stop]
        at = stop
