"""`hottest_first`: the one order in which blocks are written under pressure and loaded back."""

from __future__ import annotations

import numpy as np

from snapd.blocks.keys import I64, U64
from snapd.blocks.table import F32
from snapd.plans.heat import chain_depth, lift_parents, parent_rows, quantise


def hottest_first(heat: F32, age_order: U64) -> I64:
    """Rows from hottest to coldest, int64 [n].

    `age_order` uint64 [n] rises with the time of a block's put (its sequence, say). Blocks of one
    quantised heat keep that order: pages are put parents first, and packs are written in it, so
    ties are both useful prefixes and long sequential reads.
    """
    return np.lexsort((age_order, 255 - quantise(heat).astype(np.int16))).astype(np.int64)


def chains_hottest_first(heat: F32, age_order: U64, key_hash: U64, parent: U64) -> I64:
    """As `hottest_first`, with each page after its parent where `parent` (a key hash) is known.

    A page is first lifted to the heat of the hottest page that follows it; among equals the one
    nearer to the start of its chain comes first.
    """
    if not parent.any():
        return hottest_first(heat, age_order)
    rows = parent_rows(key_hash, parent)
    lifted = quantise(lift_parents(heat, rows)).astype(np.int16)
    return np.lexsort((age_order, chain_depth(rows), 255 - lifted)).astype(np.int64)
