"""The pure choices of eviction, against what trying everything finds."""

from __future__ import annotations

import numpy as np

from snapd.store.eviction import cheapest_window

SEED = 8


def test_the_cheapest_window_against_every_window() -> None:
    generator = np.random.default_rng(SEED)
    for _ in range(300):
        capacity = 40
        edges = np.sort(
            generator.choice(capacity, 2 * int(generator.integers(1, 8)), replace=False)
        )
        starts, lengths = edges[::2], edges[1::2] - edges[::2]
        age = generator.choice([1.0, 2.0, 3.0, 9.0, np.inf], len(starts))
        need = int(generator.integers(1, capacity + 2))
        costs = {}
        for begin in range(capacity - need + 1):
            inside = (starts < begin + need) & (starts + lengths > begin)
            costs[begin] = age[inside].max(initial=-np.inf)
        best = min(costs.values(), default=np.inf)
        window = cheapest_window(starts, lengths, age, capacity, need)
        if best == np.inf:
            assert window is None
        else:
            assert window is not None
            assert window[1] - window[0] == need
            assert costs[window[0]] == best


def test_a_window_among_a_million_extents_is_found_in_time() -> None:
    count = 1_000_000
    starts = np.arange(count) * 2
    age = np.random.default_rng(SEED).random(count)
    window = cheapest_window(starts, np.full(count, 2), age, 2 * count, 16_384)
    assert window is not None
