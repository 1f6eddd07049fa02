"""Heat: how likely a block is to be read again.

The heat of a block is its number of reads, each counting half as much for every half-life that has
passed, plus a small share for having been kept at all. A page of a token sequence is useful only
after the pages before it, so a page is lifted to the heat of the hottest page that follows it:
then "hottest first" is "parents first" as well, and a budget cuts chains at their tails.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

from snapd.blocks.keys import I64, U8, U64
from snapd.blocks.table import F32

Floats = TypeVar("Floats", npt.NDArray[np.float32], npt.NDArray[np.float64])

HALF_LIFE_SECONDS = 900.0
"""Time in which a read loses half its weight; the bundled store counts reads with the same. What an
hour leaves of the order in which conversations were last read is too little (docs/heat.md)."""

PRESENCE = 0.5
"""Reads that being put counts for: a block that was never read is colder than one read once."""

_STEPS_AN_OCTAVE = 8
"""Steps of the quantised scale for a doubling of heat; as in a manifest."""
_ZERO_OCTAVE = 16


def decay(heat: F32, elapsed_seconds: float, half_life_seconds: float = HALF_LIFE_SECONDS) -> F32:
    """Heat, float32 [n], after `elapsed_seconds` in which nothing was read."""
    cooled: F32 = heat * np.float32(cooling(elapsed_seconds, half_life_seconds))
    return cooled


def cooling(elapsed_seconds: float, half_life_seconds: float = HALF_LIFE_SECONDS) -> float:
    """What heat is multiplied by after `elapsed_seconds` in which nothing was read."""
    return float(2.0 ** (-max(0.0, elapsed_seconds) / half_life_seconds))


def heat_from_reads(
    reads: npt.NDArray[np.number],
    age_seconds: npt.NDArray[np.floating],
    half_life_seconds: float = HALF_LIFE_SECONDS,
) -> F32:
    """Heat, float32 [n], of blocks read `reads` times, the last time `age_seconds` ago."""
    weight = np.exp2(-np.maximum(age_seconds, 0.0) / half_life_seconds)
    heat: F32 = ((reads + PRESENCE) * weight).astype(np.float32)
    return heat


def quantise(heat: F32) -> U8:
    """Heat on a logarithmic scale of 256 steps, uint8 [n], rising with heat; 0 is the coldest.

    One step is 9%, so blocks of about the same heat tie and keep the order of their age, which is
    also the order of their bytes on disk. The scale ends at 2^-16, four hours after a single read:
    a night without any reads must not make everything equal sooner than it has to.
    """
    known = np.nan_to_num(heat.astype(np.float64), nan=0.0, posinf=3.4e38, neginf=0.0)
    with np.errstate(divide="ignore"):
        octaves = np.log2(np.maximum(known, 0.0)) + _ZERO_OCTAVE
    steps: U8 = np.clip(np.rint(octaves * _STEPS_AN_OCTAVE) + 1, 0, 255).astype(np.uint8)
    return steps


def lift_parents(heat: Floats, parent_row: I64) -> Floats:
    """Heat, float [n], in which every page is at least as hot as all pages that follow it.

    `parent_row` int64 [n] is the row of the page before, -1 where there is none. After step k each
    row has the maximum over its descendants within 2^k steps; so the work is the logarithm of the
    longest chain, and a cycle (which no honest client makes) ends too.
    """
    result = heat.copy()
    ancestor = np.where((parent_row >= 0) & (parent_row < len(heat)), parent_row, -1)
    for _ in range(max(1, len(heat)).bit_length()):
        child = np.flatnonzero(ancestor >= 0)
        if not len(child):
            break
        np.maximum.at(result, ancestor[child], result[child])
        further = np.full(len(ancestor), -1, np.int64)
        further[child] = ancestor[ancestor[child]]
        ancestor = further
    return result


def parent_rows(key_hash: U64, parent: U64) -> I64:
    """The row whose `key_hash` is each row's `parent`, int64 [n], -1 where it is 0 or not there.

    Equal hashes of different keys only change an order, so no key is compared.
    """
    result = np.full(len(key_hash), -1, np.int64)
    known = np.flatnonzero(parent)
    if not len(known):
        return result
    order = np.argsort(key_hash, kind="stable")
    ranked = key_hash[order]
    at = np.minimum(np.searchsorted(ranked, parent[known]), len(ranked) - 1)
    found = ranked[at] == parent[known]
    result[known[found]] = order[at[found]]
    return result


def chain_depth(parent_row: I64) -> I64:
    """Pages before each page in its chain, int64 [n]; rows in a cycle get some number."""
    depth = (parent_row >= 0).astype(np.int64)
    ancestor = parent_row.copy()
    for _ in range(max(1, len(parent_row)).bit_length()):
        child = np.flatnonzero(ancestor >= 0)
        if not len(child):
            break
        depth[child] += depth[ancestor[child]]
        further = np.full(len(ancestor), -1, np.int64)
        further[child] = ancestor[ancestor[child]]
        ancestor = further
    return depth
