"""docs/heat.md tells what the benchmark measured, and what it claims holds on a new trace."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from snapd.drill.trace import MultiTurn, generate_trace

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def heat() -> ModuleType:
    spec = importlib.util.spec_from_file_location("heat_benchmark", ROOT / "benchmarks" / "heat.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_tables_and_the_chart_are_those_of_the_figures(heat: ModuleType) -> None:
    """Renew with `python benchmarks/heat.py --trace FILE --trace FILE --write docs`."""
    document = json.loads((DOCS / "heat.json").read_text())
    page = (DOCS / "heat.md").read_text()
    begin, end = heat.MARKS
    assert page.partition(begin)[2].partition(end)[0] == "\n" + heat.table(document["traces"])
    assert (DOCS / "heat.svg").read_text() == heat.chart(document["traces"])
    assert document["half_life_gaps"] == heat.HALF_LIFE_GAPS


def test_the_figures_show_what_is_claimed(heat: ModuleType) -> None:
    """On traces of real services snapd keeps the most of all policies that do not know the future,
    and on generated ones, where a chat may end after any turn, not much less than the best."""
    for report in json.loads((DOCS / "heat.json").read_text())["traces"]:
        for share in heat.SHARES:
            kept = {policy: found[f"{share:.2f}"] for policy, found in report["kept"].items()}
            others = max(kept[one] for one in ("random", "newest", "most_used", "last_used"))
            least = 0.94 if report["trace"].startswith("generated") else 0.999
            assert kept["snapd"] >= least * others, (report["trace"], share, kept)
            if not report["trace"].startswith("generated"):
                assert kept["snapd_cross"] >= 0.999 * others, (report["trace"], share, kept)
            assert kept["snapd_restarted"] >= kept["snapd"] - 0.06, (report["trace"], share, kept)
            assert kept["optimum"] >= max(kept.values()) - 1e-9


@pytest.mark.parametrize("seed", [1, 2])
def test_it_holds_on_traces_that_nobody_looked_at(heat: ModuleType, seed: int) -> None:
    shape = MultiTurn(requests=800, system_prompts=12, turns_mean=4.0, think_seconds_mean=90.0)
    kept = heat.report_on(f"seed {seed}", generate_trace(shape, seed))["kept"]
    for share in ("0.10", "0.25", "0.50"):
        found = {policy: kept[policy][share] for policy in kept}
        assert found["optimum"] >= max(found.values()) - 1e-9, found
        assert found["snapd"] >= found["newest"], found
        assert found["snapd"] >= found["random"] + 0.05, found
        assert found["snapd"] >= 0.85 * max(found["most_used"], found["last_used"]), found


def test_no_set_does_better_than_the_offline_optimum(heat: ModuleType) -> None:
    """Against random sets with all parents, and swaps of one block in the optimum's."""
    trace = generate_trace(MultiTurn(requests=60, turn_blocks_max=3), 3)
    cut, ahead = 30, range(30, 60)
    past = heat.past_of(trace, cut)
    order = heat.optimal_order(trace, past, ahead)
    rng = np.random.default_rng(3)
    for share in (0.1, 0.3, 0.6):
        best = heat.kept_set(order, share, trace.block_count)
        hits, _ = heat.hits_after(trace, best, ahead)
        for _ in range(150):
            other = best.copy()
            swaps = int(rng.integers(1, 4))
            out = rng.choice(np.flatnonzero(best), swaps, replace=False)
            into = rng.choice(np.flatnonzero(past.seen & ~best), swaps, replace=False)
            other[out], other[into] = False, True
            assert heat.hits_after(trace, other, ahead)[0] <= hits
            anything = np.zeros(trace.block_count, np.bool_)
            anything[rng.choice(np.flatnonzero(past.seen), int(best.sum()), replace=False)] = True
            assert heat.hits_after(trace, anything, ahead)[0] <= hits
