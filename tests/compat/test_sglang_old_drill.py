"""SGLang 0.5.6, which imports Mooncake's class inside a function, knows no v2 calls, and leaves
pipeline ranks, the model and, in one call, the tag out of its keys."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from daemon_site import DaemonSite
from fault_ledger import FaultClass, case
from sglang_ranks import RankError, SglangRanks, fill_all, states_of, together
from sglang_sites import at, lose_everything

PAGES = 150


@pytest.fixture
def site(tmp_path: Path) -> Iterator[DaemonSite]:
    with DaemonSite(tmp_path, global_segment_size="96mb") as site:
        site.start()
        yield site


@pytest.mark.parametrize(
    ("name", "ranks"),
    [
        pytest.param(
            "MHA",
            [{"tp_rank": rank, "tp_size": 2} for rank in range(2)],
            marks=pytest.mark.long,
        ),
        pytest.param(
            "MLA",
            [{"tp_rank": rank, "tp_size": 2, "pool": {"mla": True}} for rank in range(2)],
            marks=pytest.mark.long,
        ),
        (
            "pipeline stages whose keys are equal",
            [{"pool": {"layers": [2 * rank, 2 * rank + 2]}, "pp_rank": rank} for rank in range(2)],
        ),
    ],
)
def test_pages_are_identical_after_everything_was_killed(
    site: DaemonSite, sglang_old: SglangRanks, name: str, ranks: list[dict[str, Any]]
) -> None:
    options = [at(site, each, extra={"extra_backend_tag": "tagged"}) for each in ranks]
    first = sglang_old.start(*options)
    fill_all(first, 0, PAGES)
    with case(FaultClass.KILL, f"SGLang 0.5.6, store, daemon and shared memory under {name}"):
        sglang_old.kill()
        lose_everything(site)
        second = sglang_old.start(*options)
        assert together(second, "exists", count=PAGES + 1) == [PAGES] * len(ranks)
        assert states_of(second, 0, PAGES) == {"right": PAGES * len(ranks)}


def test_what_this_version_cannot_do_is_refused(site: DaemonSite, sglang_old: SglangRanks) -> None:
    with pytest.raises(RankError, match=r"layout 'layer_first'.*--hicache-mem-layout page_first"):
        sglang_old.start(at(site, pool={"layout": "layer_first", "mla": True}))
    with pytest.raises(RankError, match=r"interface_v1 = None.*add \"interface_v1\": 1"):
        sglang_old.start(at(site, extra={"interface_v1": None}))
