"""A real model end to end: its bfloat16 pages go through SGLang's host pool and backend into the
store, everything is killed, and the conversation goes on as if it had not been, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from daemon_site import DaemonSite
from fault_ledger import FaultClass, case
from sglang_ranks import SglangRanks
from sglang_sites import at, lose_everything

SEED = 20_261
REPEAT = "./check -- tests/compat/test_sglang_model.py"
PAGES = 12
NEW_TOKENS = 24
POOL = {"layers": [0, 3], "heads": 2, "head_width": 16}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[DaemonSite]:
    with DaemonSite(tmp_path, global_segment_size="32mb") as site:
        site.start()
        yield site


def model(site: DaemonSite, layout: str) -> dict[str, Any]:
    return at(site, pool={**POOL, "layout": layout}, model_name="snapd/tiny")


@pytest.mark.parametrize(
    "layout", ["page_first", pytest.param("page_first_direct", marks=pytest.mark.long)]
)
def test_tokens_and_logits_are_those_of_a_run_without_the_kill(
    site: DaemonSite, sglang: SglangRanks, layout: str
) -> None:
    said = f"seed={SEED} layout={layout}; repeat it with {REPEAT}"
    (first,) = sglang.start(model(site, layout))
    first.do("begin_conversation", seed=SEED, pages=PAGES)
    assert first.do("offload") == [True] * PAGES, said
    undisturbed = first.do("decode", count=NEW_TOKENS)
    assert len(set(undisturbed["tokens"])) > NEW_TOKENS // 3, "the model says the same all the time"
    with case(FaultClass.KILL, f"everything under a model's conversation, {layout}"):
        sglang.kill()
        lose_everything(site)
        (second,) = sglang.start(model(site, layout))
        second.do("begin_conversation", seed=SEED, pages=PAGES, compute=False)
        assert second.do("fetch") == PAGES, said
        continued = second.do("decode", count=NEW_TOKENS)
    assert continued == undisturbed, said
    # The pages did matter: one bit of one of them, and the logits are others.
    second.do("begin_conversation", seed=SEED, pages=PAGES, compute=False)
    assert second.do("fetch") == PAGES, said
    second.do("flip", page=PAGES // 2)
    assert second.do("decode", count=NEW_TOKENS)["logits"] != undisturbed["logits"], said
