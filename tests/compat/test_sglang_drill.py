"""The drill through SGLang's own classes: ranks as processes fill the bundled store, everything is
killed, and what comes back is byte for byte what was there, on every rank or on none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from daemon_site import DaemonSite
from fault_ledger import FaultClass, case
from sglang_ranks import SglangRanks, fill_all, states_of, together
from sglang_sites import at, lose_everything

PAGES = 150  # more than one of SGLang's batches
TP = [{"tp_rank": rank, "tp_size": 4} for rank in range(4)]
PP = [
    {"pp_rank": rank, "pp_size": 2, "pool": {"layers": (2 * rank, 2 * rank + 2)}}
    for rank in range(2)
]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[DaemonSite]:
    with DaemonSite(tmp_path, global_segment_size="96mb") as site:
        site.start()
        yield site


@pytest.mark.parametrize(
    ("name", "ranks"),
    [
        ("4 TP ranks, MHA", TP),
        pytest.param(
            "4 TP ranks, MLA",
            [{**rank, "pool": {"mla": True}} for rank in TP],
            marks=pytest.mark.long,
        ),
        pytest.param("2 PP ranks, MHA", PP, marks=pytest.mark.long),
        pytest.param(
            "2 PP ranks, MLA",
            [{**rank, "pool": {**rank["pool"], "mla": True}} for rank in PP],
            marks=pytest.mark.long,
        ),
    ],
)
def test_pages_are_identical_after_everything_was_killed(
    site: DaemonSite, sglang: SglangRanks, name: str, ranks: list[dict[str, Any]]
) -> None:
    options = [at(site, each) for each in ranks]
    first = sglang.start(*options)
    fill_all(first, 0, PAGES)
    assert states_of(first, 0, PAGES) == {"right": PAGES * len(ranks)}
    with case(FaultClass.KILL, f"SGLang, store, daemon and shared memory under {name}"):
        sglang.kill()
        lose_everything(site)
        second = sglang.start(*options)
        assert together(second, "exists", count=PAGES + 1) == [PAGES] * len(ranks)
        assert states_of(second, 0, PAGES) == {"right": PAGES * len(ranks)}


def test_a_hybrid_models_states_come_back_with_its_pages(
    site: DaemonSite, sglang: SglangRanks
) -> None:
    """Keys and values by the v1 calls, Mamba states by the v2 calls, on two ranks."""
    ranks = [at(site, each, hybrid=True) for each in TP[:2]]
    ranks = [{**each, "tp_size": 2} for each in ranks]
    first = sglang.start(*ranks)
    fill_all(first, 0, 20)
    # SGLang keeps a state where a conversation ended, not for every page.
    for kept in (7, 15):
        assert together(first, "fill_states", first=kept, count=1) == [[True]] * 2
    before = together(first, "exists_v2", count=20)
    assert before == [[8, 16]] * 2
    with case(FaultClass.KILL, "SGLang, store, daemon and shared memory under a hybrid model"):
        sglang.kill()
        lose_everything(site)
        second = sglang.start(*ranks)
        assert together(second, "exists_v2", count=20) == before
        assert states_of(second, 0, 20) == {"right": 40}
        for kept in (7, 15):
            assert together(second, "read_states", first=kept, count=1) == [["right"]] * 2
        assert together(second, "read_states", first=8, count=2) == [["missing"] * 2] * 2


@pytest.mark.long
def test_servers_of_two_tensor_parallel_sizes_share_their_heads(
    site: DaemonSite, sglang: SglangRanks
) -> None:
    """SGLang's `tp_lcm_size`: one rank stores its heads in the groups that two ranks have."""
    layout = {"layout": "page_head"}
    one = {"tp_lcm_size": 2, "should_split_heads": True, "pool": {**layout, "heads": 4}}
    two = [
        {"tp_lcm_size": 2, "tp_rank": rank, "tp_size": 2, "pool": {**layout, "heads": 2}}
        for rank in range(2)
    ]
    first, *others = sglang.start(at(site, one), *(at(site, each) for each in two))
    fill_all([first], 0, PAGES)
    assert states_of([first], 0, PAGES) == {"right": PAGES}
    assert together(others, "exists", count=PAGES + 1) == [PAGES] * 2
    first.do("clear")
    fill_all(others, 0, PAGES)
    assert first.do("exists", count=PAGES + 1) == PAGES
