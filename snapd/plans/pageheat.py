"""`PageHeat`: how likely each page of a token sequence is to be looked up again. No clock, no lock.

A page has a *weight*: each look-up counts 1, and half as much for every half-life since then. Some
services see a conversation again after seconds, others after half an hour; so the half-life is
`HALF_LIFE_GAPS` times the usual time between two look-ups of a page, which is learned on the way.
A look-up of a chain counts for each of its pages. A page then has the greatest weight among its
own and those of all pages that follow it, so none weighs less than one that follows it. What counts
is who asked, not who found: a page that is missed is about to be computed and put.

Weights are kept as of one moment in the past, at which a look-up now counts more than 1 (forward
decay: Cormode, Shkapenyuk, Srivastava and Xu, "Forward Decay: A Practical Time Decay Model for
Streaming Systems", ICDE 2009). So nothing has to be cooled, and the moments at which look-ups are
folded in do not change the result.

Look-ups of a page in the same `WINDOW_SECONDS` count once: the ranks of a tensor-parallel group,
and the steps in which one request asks, fetches and puts, say the same thing several times.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from snapd.blocks.keys import I64, U64, Bools
from snapd.blocks.table import F32
from snapd.plans.heat import HALF_LIFE_SECONDS as BLOCK_HALF_LIFE_SECONDS
from snapd.plans.heat import lift_parents

F64 = npt.NDArray[np.float64]

HALF_LIFE_GAPS = 2.0
"""Where conversations end soon, fewer are better; where prompts are used for long, more. See
docs/heat.md."""

HALF_LIFE_SECONDS = 300.0
"""Until `_GAPS_MIN` gaps were seen."""

HALF_LIFE_SECONDS_MIN, HALF_LIFE_SECONDS_MAX = 30.0, 3600.0
_GAPS_MIN = 1000
_GAPS_MAX = 2**18
"""When so many gaps are counted, all counts are halved: what was long ago is forgotten."""
_STEPS_AN_OCTAVE_OF_GAPS = 4
_GAP_STEPS = 64
_CHANGE_OCTAVES_MIN = 0.5
"""A half-life changes by that at least: each change blurs what earlier look-ups weigh."""

WINDOW_SECONDS = 2.0

UNKNOWN_DEPTH = -1

_STEPS_UP_MAX = 64
"""Links that are followed one by one before all are followed at once by doubling."""

_KEPT_SHARE = 0.9
"""Of the most pages, after the coldest were dropped: so that not every fold has to drop some."""

_REBASE_HALF_LIVES = 512
_OCTAVES_MAX = 1000.0
"""A double has an exponent of 1023: the moment of the weights moves on before they overflow."""

_SEED_HEAT_MAX = 16.0
"""Nothing begins hotter: what was read all the time before a restart must go on being read."""

_FORGET_SECONDS = 4 * 3600.0
"""A page that weighs less than one look-up so long ago is forgotten: where nobody traces any more,
blocks are soon judged by their own reads again."""

_NEVER = -(2**62)
"""A window before all others."""


@dataclass(frozen=True, slots=True)
class Touches:
    """n look-ups of single pages, as columns."""

    page: U64
    parent: U64
    """The page before each, 0 where there is none or it is not known."""
    depth: I64
    """Pages before each; `UNKNOWN_DEPTH` where that is not known."""
    seconds: F64
    """When, on the clock of the caller."""

    @classmethod
    def of_chain(cls, pages: U64, parent: int, depth: int, seconds: float) -> Self:
        """A look-up of a chain, as `snapd.wire.trace.Lookup` has it."""
        before = np.concatenate([np.array([parent], np.uint64), pages[:-1]])
        deep = np.full(len(pages), UNKNOWN_DEPTH, np.int64)
        if depth or not parent:
            deep = depth + np.arange(len(pages))
        return cls(pages, before, deep, np.full(len(pages), seconds))

    @classmethod
    def concatenate(cls, parts: list[Touches]) -> Touches:
        """All of them."""
        return Touches(
            np.concatenate([np.empty(0, np.uint64), *(part.page for part in parts)]),
            np.concatenate([np.empty(0, np.uint64), *(part.parent for part in parts)]),
            np.concatenate([np.empty(0, np.int64), *(part.depth for part in parts)]),
            np.concatenate([np.empty(0, np.float64), *(part.seconds for part in parts)]),
        )


@dataclass(frozen=True, slots=True)
class PageRanks:
    """What decides the order of n blocks; the same for all blocks of a page."""

    heat: F32
    """The page's where it is known, else the block's own."""
    depth: I64
    """Pages before the block's, int64; `UNKNOWN_DEPTH` where that or the page is not known."""
    page: U64
    """Id of the page, 0 where nothing is known of it."""


class PageHeat:
    """Columns over the pages that are known, sorted by id; at most `pages_max` of them.

    48 bytes a page. `fold` and `seed` change it, everything else only looks.
    """

    def __init__(
        self,
        pages_max: int,
        *,
        half_life_gaps: float = HALF_LIFE_GAPS,
        half_life_seconds: float | None = None,
    ) -> None:
        """With `half_life_seconds` the half-life is that, whatever the gaps are."""
        self._pages_max = pages_max
        self._half_life_gaps = half_life_gaps
        self._learns = half_life_seconds is None
        self.half_life_seconds = half_life_seconds or HALF_LIFE_SECONDS
        """The half-life of look-ups that are counted now."""
        self._gaps: F64 = np.zeros(_GAP_STEPS, np.float64)
        """Gaps by the logarithm of their windows."""
        self._origin = 0.0
        """The moment as of which weights are, on the caller's clock."""
        self._page: U64 = np.empty(0, np.uint64)
        self._parent: U64 = np.empty(0, np.uint64)
        self._own: F64 = np.empty(0, np.float64)
        """Weight of each page's own look-ups."""
        self._weight: F64 = np.empty(0, np.float64)
        """The greatest own weight of each page and those that follow it."""
        self._window: I64 = np.empty(0, np.int64)
        """The last window in which each page was looked up."""
        self._depth: I64 = np.empty(0, np.int64)

    def __len__(self) -> int:
        return len(self._page)

    # --- changing -----------------------------------------------------------------------------

    def fold(self, touches: Touches, now: float) -> None:
        """Count these look-ups; none is later than `now`."""
        self._rebase(now)
        window = np.floor(touches.seconds / WINDOW_SECONDS).astype(np.int64)
        order = np.lexsort((-window, touches.page))
        order = order[touches.page[order] != 0]
        if not len(order):
            return
        page, window = touches.page[order], window[order]
        firsts = np.flatnonzero(_changes(page))
        parent = np.maximum.reduceat(touches.parent[order], firsts)
        self._insert(np.union1d(page[firsts], parent[parent != 0]))
        at = np.searchsorted(self._page, page[firsts])
        counted = np.repeat(self._window[at], np.diff(firsts, append=len(page)))
        fresh = (_changes(page) | _changes(window)) & (window > counted)
        weight = np.where(fresh, self._weighs(window * WINDOW_SECONDS), 0.0)
        gaps = _gaps(page, window, counted, fresh)
        self._own[at] += np.add.reduceat(weight, firsts)
        self._window[at] = np.maximum(self._window[at], window[firsts])
        self._link(at, parent, np.maximum.reduceat(touches.depth[order], firsts))
        self._lift(at)
        self._bound(now)
        if self._learns:
            self._learn(gaps, now)

    def seed(self, pages: U64, heat: F32, now: float) -> None:
        """Add what was known of pages before, as `heat` gives it: that of the hottest block of each
        page. Where no page is, 0, nothing is added."""
        self._rebase(now)
        order = np.lexsort((-heat, pages))
        order = order[(pages[order] != 0) & (heat[order] > 0)]
        firsts = order[_changes(pages[order])]
        self._insert(pages[firsts])
        at = np.searchsorted(self._page, pages[firsts])
        known = np.minimum(heat[firsts].astype(np.float64), _SEED_HEAT_MAX)
        power = BLOCK_HALF_LIFE_SECONDS / self.half_life_seconds
        self._own[at] += known**power * self._weighs(now)
        self._lift(at)
        self._bound(now)

    def forget_cold(self, now: float) -> None:
        """Forget pages that have not been looked up for very long."""
        least = float(self._weighs(now - _FORGET_SECONDS))
        if len(self) and float(self._weight.min()) < least:
            self._keep(self._weight >= least)

    # --- looking ------------------------------------------------------------------------------

    def ranks(self, pages: U64, own_heat: F32, now: float) -> PageRanks:
        """Of blocks of these pages, whose own heat is `own_heat`, all [n].

        The heat of a page is that of a block which was read once, at the moment that weighs as much
        as all look-ups of the page together: both are then on one scale, and cool at one rate.
        """
        heat = own_heat.astype(np.float32, copy=True)
        depth = np.full(len(pages), UNKNOWN_DEPTH, np.int64)
        page = np.zeros(len(pages), np.uint64)
        if len(self) and len(pages):
            at = np.minimum(np.searchsorted(self._page, pages), len(self) - 1)
            found = np.flatnonzero(self._page[at] == pages)
            at = at[found]
            heat[found] = self._heat_of(at, now)
            depth[found] = self._depth[at]
            page[found] = pages[found]
        return PageRanks(heat, depth, page)

    def _heat_of(self, at: I64, now: float) -> F32:
        weight = self._weight[at] / self._weighs(now)
        scale = self.half_life_seconds / BLOCK_HALF_LIFE_SECONDS
        heat: F32 = (weight**scale).astype(np.float32)
        return heat

    # --- inside -------------------------------------------------------------------------------

    def _weighs(self, seconds: F64 | float) -> F64:
        """What a look-up at each of these moments weighs."""
        octaves = (np.asarray(seconds) - self._origin) / self.half_life_seconds
        weight: F64 = np.exp2(np.minimum(octaves, _OCTAVES_MAX))
        return weight

    def _rebase(self, now: float) -> None:
        if not len(self):
            self._origin = now
        elapsed = (now - self._origin) / self.half_life_seconds
        if elapsed > _REBASE_HALF_LIVES:
            self._own *= 2.0**-elapsed
            self._weight *= 2.0**-elapsed
            self._origin = now

    def _insert(self, pages: U64) -> None:
        """Make place for those of these pages, ascending and each once, that are not known."""
        at = np.searchsorted(self._page, pages)
        inside = at < len(self)
        known = np.zeros(len(pages), np.bool_)
        known[inside] = self._page[at[inside]] == pages[inside]
        new, at = pages[~known], at[~known]
        if not len(new):
            return
        self._page = np.insert(self._page, at, new)
        self._parent = np.insert(self._parent, at, np.uint64(0))
        self._own = np.insert(self._own, at, 0.0)
        self._weight = np.insert(self._weight, at, 0.0)
        self._window = np.insert(self._window, at, _NEVER)
        self._depth = np.insert(self._depth, at, UNKNOWN_DEPTH)

    def _link(self, at: I64, parent: U64, depth: I64) -> None:
        """What was just learned of these pages' places in their chains.

        A page is the hash of all that comes before it, so it has one parent and one depth for ever.
        Who does not know what comes before the first page that he asks for reports too small a
        depth and no parent; so what is larger is what somebody knew better.
        """
        told = parent != 0
        self._parent[at[told]] = parent[told]
        self._depth[at] = np.maximum(self._depth[at], depth)
        above, known = self._parents(at)
        known &= depth > 0
        np.maximum.at(self._depth, above[known], depth[known] - 1)
        lost = at[self._depth[at] == UNKNOWN_DEPTH]
        for _ in range(_STEPS_UP_MAX):
            above, known = self._parents(lost)
            found = known & (self._depth[above] != UNKNOWN_DEPTH)
            if not found.any():
                break
            self._depth[lost[found]] = self._depth[above[found]] + 1
            lost = lost[~found]

    def _parents(self, at: I64) -> tuple[I64, Bools]:
        """The rows of these rows' parents, and which of them are known."""
        parent = self._parent[at]
        above = np.minimum(np.searchsorted(self._page, parent), max(0, len(self) - 1))
        known: Bools = (parent != 0) & (self._page[above] == parent)
        return above, known

    def _lift(self, at: I64) -> None:
        """The own weight of these pages grew, or they were linked: the pages before them weigh at
        least as much. Own weights never fall, so what was lifted before stays right."""
        self._weight[at] = np.maximum(self._weight[at], self._own[at])
        for _ in range(_STEPS_UP_MAX):
            above, known = self._parents(at)
            lighter = known & (self._weight[above] < self._weight[at])
            at, above = at[lighter], above[lighter]
            if not len(at):
                return
            np.maximum.at(self._weight, above, self._weight[at])
            at = np.unique(above)
        above, known = self._parents(np.arange(len(self)))
        self._weight = lift_parents(self._weight, np.where(known, above, -1))

    def _learn(self, gaps: I64, now: float) -> None:
        """Have the half-life follow the median of the gaps, given in windows."""
        steps = np.rint(np.log2(gaps) * _STEPS_AN_OCTAVE_OF_GAPS).astype(np.int64)
        self._gaps += np.bincount(np.minimum(steps, _GAP_STEPS - 1), minlength=_GAP_STEPS)
        total = float(self._gaps.sum())
        if total < _GAPS_MIN:
            return
        if total > _GAPS_MAX:
            self._gaps /= 2
        median = int(np.searchsorted(np.cumsum(self._gaps), self._gaps.sum() / 2))
        gap_seconds = WINDOW_SECONDS * 2.0 ** (median / _STEPS_AN_OCTAVE_OF_GAPS)
        wanted = self._half_life_gaps * gap_seconds
        wanted = min(max(wanted, HALF_LIFE_SECONDS_MIN), HALF_LIFE_SECONDS_MAX)
        if abs(np.log2(wanted / self.half_life_seconds)) >= _CHANGE_OCTAVES_MIN:
            self._change_half_life(wanted, now)

    def _change_half_life(self, seconds: float, now: float) -> None:
        """What weighs more than one look-up now keeps its weight, and what weighs less the moment
        at which one look-up would weigh as much. So the order of pages, and that no page is colder
        than those that follow it, stay as they are."""
        scale = self.half_life_seconds / seconds
        elapsed = (now - self._origin) / self.half_life_seconds
        for weights in (self._own, self._weight):
            with np.errstate(divide="ignore"):
                octaves = np.log2(weights) - elapsed
            octaves = np.where(octaves < 0, octaves * scale, octaves)
            weights[:] = np.where(weights > 0, np.exp2(np.maximum(octaves, -_OCTAVES_MAX)), 0.0)
        self.half_life_seconds, self._origin = seconds, now

    def _bound(self, now: float) -> None:
        """Drop the coldest, the tails of chains first, if there are too many."""
        if len(self) <= self._pages_max:
            return
        kept = np.zeros(len(self), np.bool_)
        order = np.lexsort((self._page, self._depth, -self._weight))  # parents come first
        kept[order[: int(_KEPT_SHARE * self._pages_max)]] = True
        self._keep(kept)
        self.forget_cold(now)

    def _keep(self, kept: Bools) -> None:
        self._page, self._parent = self._page[kept], self._parent[kept]
        self._own, self._weight = self._own[kept], self._weight[kept]
        self._window, self._depth = self._window[kept], self._depth[kept]


def _gaps(page: U64, window: I64, counted: I64, fresh: Bools) -> I64:
    """Windows between each fresh look-up and the one before it of the same page, where there is
    one. Rows are ordered by page, newest first; `counted` is the window counted before them all."""
    at = np.flatnonzero(fresh)
    before = counted[at]
    follows = np.flatnonzero(page[at[1:]] == page[at[:-1]])
    before[follows] = window[at[follows + 1]]
    known = before != _NEVER
    gaps: I64 = window[at[known]] - before[known]
    return gaps


def _changes(column: npt.NDArray[np.generic]) -> Bools:
    """Which elements differ from the one before, bool [n]; the first does."""
    result: Bools = np.ones(len(column), np.bool_)
    result[1:] = column[1:] != column[:-1]
    return result
