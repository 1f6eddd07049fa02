"""The space plan against naive oracles, and over a long life of a log with a budget."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapd.plans.space import (
    HOTTER_FACTOR,
    WORTH_SHARE,
    HeatCurve,
    LiveRows,
    PackSpace,
    SpaceLimits,
    SpacePlan,
    admit,
    copies,
    plan_space,
)

PAGE = 4096
ROW = st.tuples(
    st.integers(0, 5),  # pack
    st.integers(1, 40),  # pages
    st.sampled_from([0.0, 0.5, 1.0, 2.0, 8.0]),  # heat
    st.integers(-1, 30),  # row before in the chain
)
PACK = st.tuples(st.integers(0, 60), st.booleans())  # dead pages, named


def columns(
    rows: list[tuple[int, int, float, int]], packs: list[tuple[int, bool]]
) -> tuple[PackSpace, LiveRows]:
    """Packs with these live rows and dead pages; a row's parent is a row before it."""
    pack = np.array([row[0] for row in rows], np.int64)
    stored = np.array([row[1] * PAGE for row in rows], np.int64)
    hashes = np.arange(1, len(rows) + 1, dtype=np.uint64)
    parent = [row[3] + 1 if 0 <= row[3] < at else 0 for at, row in enumerate(rows)]
    live = np.bincount(pack, weights=stored, minlength=len(packs)).astype(np.int64)
    data = live + np.array([one[0] * PAGE for one in packs], np.int64)
    space = PackSpace(data + 3 * PAGE, data, np.array([one[1] for one in packs], np.bool_))
    heat = np.array([row[2] for row in rows], np.float32)
    return space, LiveRows(pack, stored, heat, hashes, hashes, np.array(parent, np.uint64))


def lifted(rows: LiveRows) -> list[float]:
    """Each row's heat, at least that of all rows behind it."""
    heat = rows.heat.tolist()
    for at in range(len(heat) - 1, -1, -1):
        if parent := int(rows.parent[at]):
            heat[parent - 1] = max(heat[parent - 1], heat[at])
    return heat


def check(plan: SpacePlan, packs: PackSpace, rows: LiveRows, limits: SpaceLimits) -> None:
    """What must hold of every plan, whatever it is made of."""
    dropped = set(plan.drop.tolist())
    assert len(dropped) == len(plan.drop), "a row is dropped twice"
    assert len(set(plan.compact.tolist())) == len(plan.compact)
    live = [0] * len(packs.file_bytes)
    for at, (pack, size) in enumerate(zip(rows.pack, rows.stored_bytes, strict=True)):
        live[pack] += 0 if at in dropped else int(size)
    used = int(packs.file_bytes.sum())
    cost = int(copies(packs, np.array(live, np.int64))[plan.compact].sum())
    assert cost == plan.copy_bytes
    assert all(live[pack] > 0 for pack in plan.compact.tolist()), "nothing to copy"
    if len(plan.compact):
        assert used + cost <= limits.copies_up_to, "copies without room"
    dead = [1 - live[pack] / int(packs.data_bytes[pack]) for pack in plan.compact.tolist()]
    if plan.pressed:
        assert dead == sorted(dead, reverse=True), "not the deadest first"
        assert all(share > WORTH_SHARE for share in dead)
    else:
        assert not dropped
        assert not plan.shrink_retention


@given(
    st.lists(ROW, min_size=1, max_size=30),
    st.lists(PACK, min_size=6, max_size=6),
    st.integers(40, 1200),
    st.integers(40, 1200),
)
def test_nothing_that_lives_goes_for_the_sake_of_others(
    listed: list[tuple[int, int, float, int]],
    packed: list[tuple[int, bool]],
    pages: int,
    own_pages: int,
) -> None:
    """However little is left to write into, only the repository's own limit drops blocks."""
    packs, rows = columns(listed, packed)
    limits = SpaceLimits(min(pages, own_pages) * PAGE, 8 * PAGE, 4 * PAGE)
    own = SpaceLimits(own_pages * PAGE, 8 * PAGE, 4 * PAGE)
    plan = plan_space(packs, rows, limits, other_bytes=0, pack_bytes_max=64 * PAGE, own=own)
    check(plan, packs, rows, limits)
    live = int(rows.stored_bytes.sum())
    used = int(packs.file_bytes.sum())
    if used <= own.start or (len(plan.compact) and live <= own.live_max):
        assert not len(plan.drop)
    if len(plan.drop):
        alone = plan_space(packs, rows, own, other_bytes=0, pack_bytes_max=64 * PAGE)
        assert alone.pressed


@given(
    st.lists(ROW, min_size=1, max_size=30),
    st.lists(PACK, min_size=6, max_size=6),
    st.integers(40, 1200),
    st.integers(0, 40),
)
def test_a_plan_stays_inside_its_budget_and_gives_relief_in_order(
    listed: list[tuple[int, int, float, int]],
    packed: list[tuple[int, bool]],
    pages: int,
    other: int,
) -> None:
    packs, rows = columns(listed, packed)
    limits = SpaceLimits(pages * PAGE, headroom_bytes=8 * PAGE, reserve_bytes=4 * PAGE)
    room = other * PAGE
    plan = plan_space(packs, rows, limits, other_bytes=room, pack_bytes_max=64 * PAGE)
    check(plan, packs, rows, limits)
    used = room + int(packs.file_bytes.sum())
    live = np.bincount(rows.pack, weights=rows.stored_bytes, minlength=len(packs.file_bytes))
    obsolete = int(packs.file_bytes[(live == 0) & ~packs.named].sum())
    held = int(packs.file_bytes[(live == 0) & packs.named].sum())
    assert plan.pressed == (used - obsolete > limits.start)
    if not plan.pressed:
        return
    stay = [at for at in range(len(rows.pack)) if at not in set(plan.drop.tolist())]
    going = set(range(len(packs.file_bytes))) - set(rows.pack[stay].tolist())
    going |= set(plan.compact.tolist())
    assert plan.shrink_retention == any(packs.named[one] for one in going)
    if used - obsolete - held <= limits.start:
        assert not len(plan.drop), "dropped what older generations held the space of"
    # Whatever is left to do, something is: the budget is met in the end.
    assert plan.commit or plan.used_bytes_after <= limits.start or not live.any()


@given(st.lists(ROW, min_size=1, max_size=30), st.integers(1, 400))
def test_the_coldest_go_first_and_chains_are_cut_at_their_tails(
    listed: list[tuple[int, int, float, int]], pages: int
) -> None:
    packs, rows = columns(listed, [(60, False)] * 6)
    limits = SpaceLimits(pages * PAGE, headroom_bytes=0, reserve_bytes=0)
    # Room for any copy, so that no whole pack has to go.
    plan = plan_space(packs, rows, limits, other_bytes=0, pack_bytes_max=64 * PAGE)
    if not plan.pressed or not len(plan.compact):
        return
    total = int(rows.stored_bytes.sum())
    dropped = int(rows.stored_bytes[plan.drop].sum())
    if len(plan.drop):
        assert total - dropped <= limits.live_max
        last = int(rows.stored_bytes[plan.drop[-1]])
        assert total - dropped + last > limits.live_max, "more dropped than it takes"
    heat = lifted(rows)
    gone = set(plan.drop.tolist())
    kept = [heat[at] for at in range(len(heat)) if at not in gone]
    assert not gone or not kept or max(heat[at] for at in gone) <= min(kept) * 1.1
    for at in range(len(heat)):
        if parent := int(rows.parent[at]):
            assert parent - 1 not in gone or at in gone, "a page stays without the page before it"


@given(
    st.lists(st.tuples(st.integers(0, 8), st.integers(1, 9)), max_size=20),
    st.lists(st.tuples(st.integers(0, 8), st.integers(1, 9)), max_size=20),
    st.integers(-30, 60),
)
def test_only_what_is_hotter_than_what_would_go_comes_in(
    new: list[tuple[int, int]], live: list[tuple[int, int]], room: int
) -> None:
    new.sort(key=lambda one: -one[0])
    curve = HeatCurve.of(
        np.array([one[0] for one in live], np.float32), np.array([one[1] for one in live], np.int64)
    )
    got = admit(
        np.array([one[0] for one in new], np.float32),
        np.array([one[1] for one in new], np.int64),
        room,
        curve,
    )
    total = 0
    for at, (heat, size) in enumerate(new):
        total += size
        wanted = total <= room
        pushed, hottest = 0, None
        for other, other_size in sorted(live):
            if pushed >= total - room:
                break
            pushed, hottest = pushed + other_size, other
        if not wanted and pushed >= total - room and hottest is not None:
            wanted = heat > HOTTER_FACTOR * hottest
        assert bool(got[at]) == wanted, (at, heat, size)


@pytest.mark.parametrize("seed", range(3))
def test_a_log_with_a_budget_never_fills_and_cleaning_costs_little(seed: int) -> None:
    """Ten times the budget is written into a log of which a tenth gets nine tenths of the writes.
    Whoever writes stops where the plan says, so cleaning alone keeps it going."""
    random = np.random.default_rng(seed)
    budget, pack_max = 4096 * PAGE, 128 * PAGE
    limits = SpaceLimits(budget, headroom_bytes=pack_max, reserve_bytes=32 * PAGE)
    keys = int(0.65 * 4096 / 2)
    packs: dict[int, dict[int, int]] = {}  # pack: keys with their pages, as they were written
    where: dict[int, int] = {}
    number = written = copied = blocked = 0

    def used() -> int:
        return sum((sum(one.values()) + 3) * PAGE for one in packs.values())

    def write(batch: dict[int, int]) -> int:
        nonlocal number
        number += 1
        packs[number] = batch
        where.update(dict.fromkeys(batch, number))
        assert used() <= limits.copies_up_to, "over the budget"
        return (sum(batch.values()) + 3) * PAGE

    for _ in range(800):
        if used() + pack_max <= limits.flushes_up_to:
            hot = random.random(50) < 0.9
            picks = np.where(hot, random.integers(0, keys // 10, 50), random.integers(0, keys, 50))
            written += write({int(key): 2 for key in picks})
        else:
            blocked += 1
        numbers = sorted(packs)
        at = {one: place for place, one in enumerate(numbers)}
        data = np.array([sum(packs[one].values()) * PAGE for one in numbers], np.int64)
        live_keys = list(where)
        rows = LiveRows(
            np.array([at[where[key]] for key in live_keys], np.int64),
            np.full(len(live_keys), 2 * PAGE, np.int64),
            np.ones(len(live_keys), np.float32),
            np.arange(len(live_keys), dtype=np.uint64),
            np.array(live_keys, np.uint64) + np.uint64(1),
            np.zeros(len(live_keys), np.uint64),
        )
        space = PackSpace(data + 3 * PAGE, data, np.zeros(len(numbers), np.bool_))
        plan = plan_space(space, rows, limits, other_bytes=0, pack_bytes_max=pack_max)
        check(plan, space, rows, limits)
        assert not len(plan.drop), "dropped although all that is live fits"
        gathered: dict[int, int] = {}
        for place in plan.compact.tolist():
            source = numbers[place]
            gathered |= {key: 2 for key in packs[source] if where[key] == source}
        while gathered:
            part = dict(list(gathered.items())[: pack_max // PAGE // 2])
            gathered = dict(list(gathered.items())[len(part) :])
            copied += write(part)
        if plan.commit:
            alive = set(where.values())
            packs = {one: batch for one, batch in packs.items() if one in alive}
    assert written > 10 * budget // 2
    assert blocked < 80, "the flusher waits for the cleaner"
    amplification = (written + copied) / written
    assert amplification < 2.0, f"every byte is written {amplification:.2f} times"
