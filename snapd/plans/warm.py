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
    left = bytes_total_max
    at = 0
    while at < len(order):
        total = np.cumsum(size[at : at + blocks_max].astype(np.int64))
        fits = max(1, int(np.searchsorted(total, bytes_max, side="right")))
        if left is not None:
            fits = min(fits, int(np.searchsorted(total, left, side="right")))
            if not fits:
                return
            left -= int(total[fits - 1])
        yield order[at : at + fits]
        at += fits
