"""In which order blocks are written under pressure, and loaded back from packs."""

from __future__ import annotations

import numpy as np

from snapd.blocks.keys import I64, U64
from snapd.blocks.table import F32, U32
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


def stretches_hottest_first(
    heat: F32, pack: U32, offset: U64, length: U64, *, stretch_bytes: int
) -> I64:
    """Rows of blocks in packs, int64 [n], so that little reading brings much heat.

    Each pack is cut into stretches of `stretch_bytes`. The stretch whose blocks have the most heat
    for a byte comes first, and its blocks come in the order of their offsets. Blocks as long as a
    stretch are simply hottest first, the older first among equals; small ones come in reads of
    about `stretch_bytes` where one at a time would cost a system call and a seek each. `length`
    uint64 [n] is the bytes of each block in its pack, `offset` where it begins.
    """
    stretch = (offset // np.uint64(stretch_bytes)).astype(np.int64)
    by_place = np.lexsort((offset, pack)).astype(np.int64)
    if not len(by_place):
        return by_place
    ranked_pack, ranked_stretch = pack[by_place], stretch[by_place]
    begins = np.ones(len(by_place), np.bool_)
    begins[1:] = (ranked_pack[1:] != ranked_pack[:-1]) | (ranked_stretch[1:] != ranked_stretch[:-1])
    firsts = np.flatnonzero(begins)
    weight = length[by_place].astype(np.float64)
    warmth = np.add.reduceat(heat[by_place].astype(np.float64) * weight, firsts)
    density = quantise((warmth / np.add.reduceat(weight, firsts)).astype(np.float32))
    coldness = 255 - density.astype(np.int16)
    of_row = np.repeat(coldness, np.diff(firsts, append=len(by_place)))
    return by_place[np.argsort(of_row, kind="stable")]
