"""`PageHeat` against look-ups counted one by one, and what every order made of it must have."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapd.blocks.keys import U64
from snapd.plans.heat import HALF_LIFE_SECONDS as BLOCK_HALF_LIFE_SECONDS
from snapd.plans.order import pages_hottest_first
from snapd.plans.pageheat import (
    HALF_LIFE_GAPS,
    HALF_LIFE_SECONDS,
    HALF_LIFE_SECONDS_MAX,
    HALF_LIFE_SECONDS_MIN,
    UNKNOWN_DEPTH,
    WINDOW_SECONDS,
    PageHeat,
    Touches,
)


@dataclass
class Asked:
    """A look-up of the pages `first` to `last` of the path from the root to a page of a tree."""

    leaf: int
    before: int
    seconds: float
    says_parent: bool
    says_depth: bool


_TREE = st.lists(st.integers(0, 10**6), min_size=1, max_size=25)
"""Page i + 1 follows page `tree[i] % (i + 1)`; page 0 follows none."""

_ASKED = st.lists(
    st.builds(
        Asked,
        leaf=st.integers(0, 10**6),
        before=st.integers(0, 5),
        seconds=st.floats(0, 3000),
        says_parent=st.booleans(),
        says_depth=st.booleans(),
    ),
    min_size=1,
    max_size=25,
)


def _ids(rows: list[int]) -> U64:
    """Page ids in no order that has to do with the tree."""
    return (np.array(rows, np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)


def _path(tree: list[int], leaf: int) -> list[int]:
    path = [leaf]
    while path[-1]:
        path.append(tree[path[-1] - 1] % path[-1])
    return path[::-1]


def _touches(tree: list[int], one: Asked) -> Touches:
    path = _path(tree, one.leaf % (len(tree) + 1))
    before = min(one.before, len(path) - 1)
    parent = int(_ids(path[before - 1 : before])[0]) if before and one.says_parent else 0
    return Touches.of_chain(
        _ids(path[before:]), parent, before if one.says_depth else 0, one.seconds
    )


def _model(tree: list[int], asked: list[Asked], now: float) -> dict[int, float]:
    """Weight now of each page that was asked for, or before one by a link that was told."""
    windows: dict[int, set[int]] = {}
    linked: dict[int, int] = {}
    for one in asked:
        path = _path(tree, one.leaf % (len(tree) + 1))
        before = min(one.before, len(path) - 1)
        for at in range(before, len(path)):
            windows.setdefault(path[at], set()).add(int(one.seconds // WINDOW_SECONDS))
            if at > before or (before and one.says_parent):
                linked[path[at]] = path[at - 1]
    weight = {
        page: sum(2 ** ((w * WINDOW_SECONDS - now) / HALF_LIFE_SECONDS) for w in seen)
        for page, seen in windows.items()
    }
    for _ in range(len(tree) + 1):
        for child, parent in linked.items():
            weight[parent] = max(weight.get(parent, 0.0), weight.get(child, 0.0))
    return weight


def _fold(tree: list[int], asked: list[Asked], cuts: list[int], pages_max: int = 1000) -> PageHeat:
    """All look-ups in the order of time, folded in at these cuts."""
    heat = PageHeat(pages_max, half_life_seconds=HALF_LIFE_SECONDS)
    ordered = sorted(asked, key=lambda one: one.seconds)
    bounds = sorted({min(cut, len(ordered)) for cut in cuts} | {0, len(ordered)})
    for first, last in zip(bounds[:-1], bounds[1:], strict=True):
        part = ordered[first:last]
        heat.fold(Touches.concatenate([_touches(tree, one) for one in part]), part[-1].seconds)
    return heat


@given(_TREE, _ASKED, st.lists(st.integers(0, 25), max_size=4))
def test_heat_is_what_counting_one_by_one_gives(
    tree: list[int], asked: list[Asked], cuts: list[int]
) -> None:
    now = 3000.0
    heat = _fold(tree, asked, cuts)
    expected = _model(tree, asked, now)
    rows = list(range(len(tree) + 1))
    own = np.full(len(rows), 0.125, np.float32)
    ranks = heat.ranks(_ids(rows), own, now)
    assert len(heat) == len(expected)
    scale = HALF_LIFE_SECONDS / BLOCK_HALF_LIFE_SECONDS
    for row in rows:
        want = expected[row] ** scale if row in expected else 0.125
        assert abs(float(ranks.heat[row]) - want) <= 1e-4 * want
        assert (int(ranks.page[row]) != 0) == (row in expected)


@given(_TREE, _ASKED, st.lists(st.integers(0, 25), max_size=4))
def test_when_it_is_folded_in_changes_nothing(
    tree: list[int], asked: list[Asked], cuts: list[int]
) -> None:
    rows = _ids(list(range(len(tree) + 1)))
    own = np.zeros(len(rows), np.float32)
    whole = _fold(tree, asked, []).ranks(rows, own, 3000.0)
    parts = _fold(tree, asked, cuts).ranks(rows, own, 3000.0)
    assert np.allclose(whole.heat, parts.heat, rtol=1e-6)
    assert np.array_equal(whole.page, parts.page)


@given(_TREE, _ASKED, st.integers(1, 12))
def test_a_page_is_at_least_as_hot_as_what_follows_it_and_comes_first(
    tree: list[int], asked: list[Asked], pages_max: int
) -> None:
    """Also after the coldest were dropped; chains that are told from their start have depths."""
    whole = [Asked(one.leaf, 0, one.seconds, True, True) for one in asked]
    heat = _fold(tree, whole, [5, 10, 15], pages_max)
    assert len(heat) <= max(pages_max, 1)
    rows = np.arange(len(tree) + 1)
    ranks = heat.ranks(_ids(rows.tolist()), np.zeros(len(rows), np.float32), 3000.0)
    order = pages_hottest_first(ranks, rows[::-1].astype(np.uint64))
    place = np.argsort(order)
    for child in rows[1:]:
        parent = tree[child - 1] % child
        if ranks.page[child]:
            assert ranks.page[parent], "a parent was dropped before its child"
            assert ranks.heat[parent] >= ranks.heat[child]
            assert ranks.depth[child] == ranks.depth[parent] + 1
            assert place[parent] < place[child]


@given(_TREE, _ASKED, st.randoms(use_true_random=False))
def test_parts_of_a_page_rank_alike_whatever_the_store_says(
    tree: list[int], asked: list[Asked], random: object
) -> None:
    """Rank depends on page and depth: neither own heat nor age nor the order of rows matters."""
    whole = [Asked(one.leaf, 0, one.seconds, True, True) for one in asked]
    heat = _fold(tree, whole, [])
    known = sorted(_model(tree, whole, 3000.0))

    def order(seed: int) -> list[int]:
        rng = np.random.default_rng(seed)
        rows = rng.permutation(np.repeat(known, 2))
        ranks = heat.ranks(_ids(rows.tolist()), rng.random(len(rows)).astype(np.float32), 3000.0)
        result = rows[pages_hottest_first(ranks, rng.integers(0, 99, len(rows)).astype(np.uint64))]
        return [int(row) for row in result]

    first = order(random.getrandbits(32))  # type: ignore[attr-defined]
    assert first == order(random.getrandbits(32))  # type: ignore[attr-defined]
    assert first[::2] == first[1::2], "the two blocks of a page do not follow each other"


@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, 2**64 - 1), max_size=8),
            st.integers(0, 2**64 - 1),
            st.integers(0, 2**32 - 9),
            st.floats(0, 1e7),
        ),
        max_size=12,
    ),
    st.integers(1, 20),
)
def test_nonsense_stays_bounded_and_finite(
    told: list[tuple[list[int], int, int, float]], pages_max: int
) -> None:
    """Cycles, doubles, self-parents, any id, months of time."""
    heat = PageHeat(pages_max)
    for pages, parent, depth, seconds in sorted(told, key=lambda one: one[3]):
        chain = np.array(pages, np.uint64)
        if len(chain):
            heat.fold(Touches.of_chain(chain, parent, depth, seconds), seconds)
        assert len(heat) <= pages_max
        asked = np.append(chain, np.uint64(parent))
        ranks = heat.ranks(asked, np.zeros(len(asked), np.float32), seconds)
        assert np.isfinite(ranks.heat).all()
        assert (ranks.heat >= 0).all()
        assert sorted(pages_hottest_first(ranks, asked).tolist()) == list(range(len(asked)))


def test_a_very_long_chain_is_lifted_at_once() -> None:
    count = 200_000
    chain = np.arange(1, count + 1, dtype=np.uint64)
    heat = PageHeat(count)
    heat.fold(Touches.of_chain(chain, 0, 0, 0.0), 0.0)
    heat.fold(Touches.of_chain(chain[-1:], count - 1, count - 1, 600.0), 600.0)
    ranks = heat.ranks(chain, np.zeros(count, np.float32), 600.0)
    assert (ranks.heat == ranks.heat[-1]).all()
    assert ranks.heat[0] > 1.0
    assert ranks.depth.tolist() == list(range(count))


def test_what_a_manifest_kept_is_where_pages_begin_again() -> None:
    before = PageHeat(100)
    pages = np.array([1, 2, 3], np.uint64)
    before.fold(Touches.of_chain(pages, 0, 0, 0.0), 0.0)
    before.fold(Touches.of_chain(pages[:2], 0, 0, 200.0), 200.0)
    nothing = np.zeros(3, np.float32)
    kept = before.ranks(pages, nothing, 200.0).heat
    after = PageHeat(100)
    # Two blocks a page, and one that belongs to none.
    after.seed(
        np.append(np.repeat(pages, 2), [0]).astype(np.uint64),
        np.append(np.repeat(kept, 2), [9]).astype(np.float32),
        5000.0,
    )
    assert len(after) == 3
    ranks = after.ranks(pages, nothing, 5000.0)
    assert np.allclose(ranks.heat, kept, rtol=1e-4)
    assert (ranks.depth == UNKNOWN_DEPTH).all()
    after.fold(Touches.of_chain(pages[2:], 2, 2, 5000.0), 5000.0)
    again = after.ranks(pages, nothing, 5000.0)
    assert again.heat[2] > kept[2]
    assert again.heat[1] >= again.heat[2]


def _asked_every(seconds: float, times: int, pages: int = 100) -> PageHeat:
    """Look-ups of as many chains of one page, each that often, spread evenly."""
    heat = PageHeat(1000)
    for turn in range(times):
        at = turn * seconds + np.linspace(0, seconds, pages, endpoint=False)
        heat.fold(
            Touches(
                _ids(list(range(pages))),
                np.zeros(pages, np.uint64),
                np.zeros(pages, np.int64),
                at,
            ),
            (turn + 1) * seconds,
        )
    return heat


@pytest.mark.parametrize("seconds", [4.0, 20.0, 60.0, 100.0, 250.0, 600.0, 5000.0])
def test_the_half_life_follows_the_gaps_between_lookups(seconds: float) -> None:
    wanted = min(max(HALF_LIFE_GAPS * seconds, HALF_LIFE_SECONDS_MIN), HALF_LIFE_SECONDS_MAX)
    assert _asked_every(seconds, 8).half_life_seconds == HALF_LIFE_SECONDS, "too few to tell"
    learned = _asked_every(seconds, 40).half_life_seconds
    assert abs(np.log2(learned / wanted)) <= 0.6
    fixed = PageHeat(10, half_life_seconds=77.0)
    assert fixed.half_life_seconds == 77.0


def test_a_new_half_life_turns_no_order_round() -> None:
    """What was ordered by another half-life stays so: heat falls along every chain, and whoever is
    asked for from now on rises."""
    rng = np.random.default_rng(5)
    tree = rng.integers(0, 10**6, 300).tolist()
    heat = PageHeat(10_000)
    seconds, used = 0.0, set()
    for turn in range(800):
        seconds += float(rng.uniform(0.3, 0.7)) * (1 if turn < 400 else 40)
        leaf = int(rng.integers(301))
        one = Asked(leaf, 0, seconds, True, True)
        heat.fold(_touches(tree, one), seconds)
        used.add(heat.half_life_seconds)
    assert len(used) >= 3, "the gaps of the second half are forty times as long"
    rows = list(range(301))
    ranks = heat.ranks(_ids(rows), np.zeros(301, np.float32), seconds)
    known = ranks.page != 0
    for child in rows[1:]:
        if known[child]:
            assert ranks.heat[tree[child - 1] % child] >= ranks.heat[child]
    assert np.isfinite(ranks.heat).all()
    latest = _ids([int(leaf)])
    assert ranks.heat[rows.index(leaf)] >= 0.99
    assert latest[0] in ranks.page


def test_pages_that_nobody_asks_for_any_more_are_forgotten() -> None:
    heat = PageHeat(100)
    heat.fold(Touches.of_chain(np.array([1, 2], np.uint64), 0, 0, 0.0), 0.0)
    heat.forget_cold(4 * 3600.0 - 60)
    assert len(heat) == 2
    heat.forget_cold(4 * 3600.0 + 60)
    assert len(heat) == 0
    assert heat.ranks(np.array([1], np.uint64), np.ones(1, np.float32), 1e5).heat.tolist() == [1.0]
