"""In which order blocks are written under pressure, and loaded back from packs."""

from __future__ import annotations

import numpy as np

from snapd.blocks.keys import I64, U64
from snapd.blocks.table import F32, U32
from snapd.plans.heat import chain_depth, lift_parents, parent_rows, quantise
from snapd.plans.pageheat import UNKNOWN_DEPTH, PageRanks

_PAGE_BYTES = 4096
_STEPS_AN_OCTAVE = 64
"""Steps of the heat of pages: 1 %, or 14 seconds. Pages of one look-up tie, and few others."""
_STEPS_AN_OCTAVE_OF_READS = 8
"""As in `quantise`."""
_COLDEST_OCTAVE = -64.0
_OFFSET_BITS = 36
"""Bits of a page's number in a pack: packs of up to 256 TiB."""


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


def pages_hottest_first(ranks: PageRanks, age_order: U64) -> I64:
    """Rows from hottest to coldest, int64 [n], the parts of a page together.

    Among pages of one heat the one nearer to the start of its chain comes first, then the smaller
    id: heat, depth and id are all that decides, so whoever holds parts of the same pages puts them
    in the same order. Blocks whose page or depth is not known follow as in `hottest_first`.
    """
    placed = ranks.depth != UNKNOWN_DEPTH
    with np.errstate(divide="ignore"):
        octaves = np.maximum(np.log2(np.maximum(ranks.heat, 0.0)), _COLDEST_OCTAVE)
    steps = np.where(placed, _STEPS_AN_OCTAVE, _STEPS_AN_OCTAVE_OF_READS)
    coldness = -np.rint(octaves * steps) * (_STEPS_AN_OCTAVE / steps)
    depth = np.where(placed, ranks.depth, np.iinfo(np.int64).max)
    page = np.where(placed, ranks.page, np.uint64(0))
    return np.lexsort((age_order, page, depth, coldness)).astype(np.int64)


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
    pages = offset // np.uint64(_PAGE_BYTES)
    place = pack.astype(np.uint64) << np.uint64(_OFFSET_BITS)
    place += pages
    del pages  # a million rows are 8 MB a column: no more of them at a time than it takes
    by_place = np.argsort(place, kind="stable").astype(np.int64)
    if not len(by_place):
        return by_place
    place = place[by_place]
    page = place & np.uint64((1 << _OFFSET_BITS) - 1)
    place -= page  # the pack alone; with the number of the stretch it names the stretch
    page //= np.uint64(max(1, stretch_bytes // _PAGE_BYTES))
    place += page
    del page
    firsts = np.flatnonzero(np.concatenate([[True], place[1:] != place[:-1]]))
    del place
    weight = length[by_place].astype(np.float32)
    total = np.add.reduceat(weight, firsts)
    weight *= heat[by_place]
    density = (np.add.reduceat(weight, firsts) / total).astype(np.float32)
    coldness = 255 - quantise(density).astype(np.int16)
    del weight
    of_row = np.repeat(coldness, np.diff(firsts, append=len(by_place)))
    return by_place[np.argsort(of_row, kind="stable")]
