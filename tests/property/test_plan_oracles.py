"""Every plan against a naive Python oracle that loops over blocks."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from snapd.plans import (
    TokenBucket,
    chains_hottest_first,
    diff_scan,
    hottest_first,
    lift_parents,
    merge_reads,
    parent_rows,
    quantise,
    stretches_hottest_first,
    windows,
)
from snapd.plans.heat import chain_depth

SLOT = st.tuples(
    st.integers(0, 4),  # scan
    st.integers(0, 4),  # settled
    st.integers(-1, 5),  # row
)


@given(st.lists(SLOT, max_size=40), st.lists(st.booleans(), min_size=6, max_size=6))
def test_diff_finds_exactly_what_came_and_what_left(
    slots: list[tuple[int, int, int]], live: list[bool]
) -> None:
    scan = np.array([slot[0] for slot in slots], np.uint64)
    settled = np.array([slot[1] for slot in slots], np.uint64)
    row = np.array([slot[2] for slot in slots], np.int64)
    result = diff_scan(scan, settled, row, (row >= 0) & np.array(live)[row])
    new, gone = [], []
    for number, (now, before, held) in enumerate(slots):
        if before and now != before:
            gone.append(number)
        if now and (now != before or (held >= 0 and not live[held])):
            new.append(number)
    assert result.new.tolist() == new
    assert result.gone.tolist() == gone


READ = st.tuples(st.integers(0, 2), st.integers(0, 30))


@given(st.sets(READ, max_size=40), st.integers(1, 12), st.integers(1, 6))
def test_merged_reads_cover_each_request_once_and_are_contiguous(
    reads: set[tuple[int, int]], blocks_bytes_max: int, buffers_max: int
) -> None:
    rows = list(reads)
    pack = np.array([row[0] for row in rows], np.uint32)
    offset = np.array([row[1] * 4096 for row in rows], np.uint64)
    length = np.full(len(rows), 4096, np.uint64)
    runs = merge_reads(
        pack, offset, length, bytes_max=blocks_bytes_max * 4096, buffers_max=buffers_max
    )
    seen: list[int] = []
    merged = list(runs)
    assert len(merged) == len(runs)
    for run in merged:
        seen += run.tolist()
        assert len(run) <= min(buffers_max, blocks_bytes_max)
        assert len(set(pack[run].tolist())) == 1
        assert (np.diff(offset[run].astype(np.int64)) == 4096).all()
    assert sorted(seen) == list(range(len(rows)))
    # Greedy is the least number of runs: two neighbours never fit into one.
    for left, right in zip(merged[:-1], merged[1:], strict=True):
        joined = pack[left[-1]] == pack[right[0]] and offset[left[-1]] + 4096 == offset[right[0]]
        full = len(left) == min(buffers_max, blocks_bytes_max)
        assert full or not joined


@given(st.lists(st.integers(1, 9), max_size=20), st.integers(1, 12))
def test_merged_reads_of_mixed_sizes_stay_under_the_byte_limit(
    sizes: list[int], limit: int
) -> None:
    length = np.array(sizes, np.uint64) * np.uint64(4096)
    offset = np.cumsum(length) - length
    pack = np.ones(len(sizes), np.uint32)
    runs = list(merge_reads(pack, offset.astype(np.uint64), length, bytes_max=limit * 4096))
    assert sum(len(run) for run in runs) == len(sizes)
    for run in runs:
        assert len(run) == 1 or int(length[run].sum()) <= limit * 4096


CHAINS = st.lists(st.integers(-1, 30), max_size=30)
HEATS = st.lists(st.floats(0, 1000, width=32), min_size=30, max_size=30)


def _forest(parents: list[int]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Rows whose parent is an earlier row, so that there is no cycle."""
    return np.array([min(p, row - 1) for row, p in enumerate(parents)], np.int64)


@given(CHAINS, HEATS)
def test_a_page_is_as_hot_as_its_hottest_descendant(parents: list[int], heats: list[float]) -> None:
    parent = _forest(parents)
    heat = np.array(heats[: len(parent)], np.float32)
    expected = heat.copy()
    depth = [0] * len(parent)
    for row in range(len(parent)):
        depth[row] = depth[parent[row]] + 1 if parent[row] >= 0 else 0
    for row in reversed(range(len(parent))):
        if parent[row] >= 0:
            expected[parent[row]] = max(expected[parent[row]], expected[row])
    assert np.array_equal(lift_parents(heat, parent), expected)
    assert chain_depth(parent).tolist() == depth


@given(st.lists(st.integers(0, 9), min_size=1, max_size=10))
def test_a_cycle_of_parents_ends(parents: list[int]) -> None:
    parent = np.array(parents, np.int64)
    heat = np.arange(len(parent), dtype=np.float32)
    lifted = lift_parents(heat, np.where(parent < len(parent), parent, -1))
    assert (lifted >= heat).all()
    assert len(chain_depth(np.where(parent < len(parent), parent, -1))) == len(parent)


@given(CHAINS, HEATS, st.randoms(use_true_random=False))
def test_chain_order_puts_each_parent_before_its_children(
    parents: list[int], heats: list[float], random: object
) -> None:
    parent = _forest(parents)
    rows = len(parent)
    key_hash = (np.arange(rows, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    parent_hash = np.where(parent >= 0, key_hash[parent], 0).astype(np.uint64)
    assert np.array_equal(parent_rows(key_hash, parent_hash), parent)
    age = np.array(sorted(range(rows), key=lambda _: random.random()), np.uint64)  # type: ignore[attr-defined]
    order = chains_hottest_first(np.array(heats[:rows], np.float32), age, key_hash, parent_hash)
    assert sorted(order.tolist()) == list(range(rows))
    place = {row: at for at, row in enumerate(order.tolist())}
    for row in range(rows):
        if parent[row] >= 0:
            assert place[int(parent[row])] < place[row]


@given(st.lists(st.tuples(st.floats(0, 1e6, width=32), st.integers(0, 5)), max_size=40))
def test_hottest_first_is_stable_on_quantised_heat(blocks: list[tuple[float, int]]) -> None:
    heat = np.array([block[0] for block in blocks], np.float32)
    age = np.array([block[1] for block in blocks], np.uint64)
    steps = quantise(heat)
    expected = sorted(range(len(blocks)), key=lambda row: (-int(steps[row]), int(age[row]), row))
    assert hottest_first(heat, age).tolist() == expected


@given(st.lists(st.floats(0, 2.0**100, width=32), min_size=2, max_size=40))
def test_quantised_heat_never_turns_the_order_round(heats: list[float]) -> None:
    heat = np.sort(np.array(heats, np.float32))
    assert (np.diff(quantise(heat).astype(np.int16)) >= 0).all()


@given(
    st.lists(st.integers(1, 50), max_size=40),
    st.integers(1, 60),
    st.integers(1, 7),
    st.one_of(st.none(), st.integers(0, 500)),
)
def test_windows_are_bounded_and_cut_only_the_tail(
    sizes: list[int], bytes_max: int, blocks_max: int, total_max: int | None
) -> None:
    size = np.array(sizes, np.uint64)
    order = np.arange(len(sizes), dtype=np.int64)[::-1]
    pieces = list(
        windows(
            order,
            size[order],
            bytes_max=bytes_max,
            blocks_max=blocks_max,
            bytes_total_max=total_max,
        )
    )
    flat = [int(row) for piece in pieces for row in piece]
    assert flat == order[: len(flat)].tolist()
    for piece in pieces:
        assert len(piece) == 1 or (len(piece) <= blocks_max and size[piece].sum() <= bytes_max)
    used = sum(sizes[row] for row in flat)
    if total_max is None:
        assert len(flat) == len(sizes)
    else:
        assert used <= total_max
        assert len(flat) == len(sizes) or used + sizes[int(order[len(flat)])] > total_max


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=50), st.integers(10, 1000))
def test_the_mean_rate_holds_when_every_wait_is_kept(amounts: list[int], rate: int) -> None:
    now, burst = 5.0, 100.0
    bucket = TokenBucket.full(rate, burst, now)
    for amount in amounts:
        bucket, wait = bucket.take(amount, now)
        now += wait
    assert sum(amounts) <= burst + rate * (now - 5.0) + 1e-6 * sum(amounts)


def test_no_rate_is_no_limit() -> None:
    bucket, wait = TokenBucket.full(0, 0, 0.0).take(1e12, 0.0)
    assert wait == 0.0
    assert bucket.take(1e12, 0.0)[1] == 0.0


@given(
    st.sets(st.tuples(st.integers(1, 3), st.integers(0, 20)), max_size=40),
    st.lists(st.integers(0, 100), min_size=40, max_size=40),
    st.integers(1, 6),
)
def test_stretches_come_by_their_heat_and_blocks_by_their_offset(
    places: set[tuple[int, int]], heats: list[int], pages: int
) -> None:
    rows = list(places)
    pack = np.array([place[0] for place in rows], np.uint32)
    offset = np.array([place[1] * 4096 for place in rows], np.uint64)
    length = np.full(len(rows), 4096, np.uint64)
    heat = np.array(heats[: len(rows)], np.float32)
    order = stretches_hottest_first(heat, pack, offset, length, stretch_bytes=pages * 4096)
    stretches: dict[tuple[int, int], list[int]] = {}
    for row, (number, page) in enumerate(rows):
        stretches.setdefault((number, page // pages), []).append(row)

    def density(stretch: tuple[int, int]) -> int:
        mean = np.mean(heat[stretches[stretch]].astype(np.float64))
        return int(quantise(np.array([mean], np.float32))[0])

    expected = [
        row
        for stretch in sorted(stretches, key=lambda one: (-density(one), one))
        for row in sorted(stretches[stretch], key=lambda row: rows[row])
    ]
    assert order.tolist() == expected
