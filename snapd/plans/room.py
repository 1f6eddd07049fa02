"""`share_out`: which of several places with bounded room each block goes to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from snapd.blocks.keys import I64, U64


def share_out(sizes: U64, rooms: Sequence[int]) -> I64:
    """The place of each block, int64 [n], -1 where there is none left.

    Places are filled one after another with blocks in their order, `rooms` are their bytes. Once a
    block has found no room, none after it gets any: blocks come hottest first, and a small cold one
    must not take what a large hot one is to have when there is room again.
    """
    places: I64 = np.full(len(sizes), -1, np.int64)
    totals, at = sizes.astype(np.int64), 0
    for place, room in enumerate(rooms):
        fits = int(np.searchsorted(np.cumsum(totals[at:]), room, side="right"))
        places[at : at + fits] = place
        at += fits
    return places
