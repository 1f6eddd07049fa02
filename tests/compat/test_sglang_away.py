"""What goes wrong around SGLang: a store or a daemon that is away, host pools of the wrong kind,
weights that change while it runs. SGLang goes on: misses, then hits, and nothing waits for long."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from daemon_site import DaemonSite
from fault_ledger import FaultClass, case
from sglang_ranks import Rank, RankError, SglangRanks, fill_all, states_of, together
from sglang_sites import at, lose_everything

PAGES = 20
NOWHERE = {"master_server_address": "127.0.0.1:1"}
CALL_SECONDS = 9.0
"""More than a request's deadline, less than two."""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[DaemonSite]:
    with DaemonSite(tmp_path, global_segment_size="32mb") as site:
        yield site


def timed(rank: Rank, command: str, **arguments: Any) -> Any:
    """A command that must not take longer than one deadline."""
    said = rank.do("timed", command=command, **arguments)
    assert said["seconds"] < CALL_SECONDS, (command, said)
    return said["answer"]


def until_found(site: DaemonSite, rank: Rank, pages: int) -> None:
    site.until("SGLang finds its pages", lambda: timed(rank, "exists", count=pages) == pages)


def test_a_store_that_is_away_at_start_is_a_miss(site: DaemonSite, sglang: SglangRanks) -> None:
    with case(FaultClass.KILL, "no store yet when SGLang starts"):
        (rank,) = sglang.start(at(site))
        assert timed(rank, "exists", count=PAGES) == 0
        assert timed(rank, "fill", first=0, count=PAGES) == [False] * PAGES
        assert timed(rank, "read", first=0, count=PAGES, versions=[1]) == ["missing"] * PAGES
        assert rank.log().count("no store yet: every lookup misses until one answers") == 1
    site.start_store()  # and no daemon
    with case(FaultClass.KILL, "no daemon yet when SGLang writes"):
        site.until("it can write", lambda: all(timed(rank, "fill", first=0, count=PAGES)))
        assert states_of([rank], 0, PAGES) == {"right": PAGES}


@pytest.mark.long
def test_a_store_or_a_daemon_that_dies_is_a_miss_until_it_is_back(
    site: DaemonSite, sglang: SglangRanks
) -> None:
    site.start()
    (rank,) = sglang.start(at(site))
    fill_all([rank], 0, PAGES)
    site.flushed()
    site.kill_daemon()
    with case(FaultClass.KILL, "the daemon alone under SGLang"):
        assert timed(rank, "exists", count=PAGES) == PAGES
        assert states_of([rank], 0, PAGES) == {"right": PAGES}
        fill_all([rank], PAGES, 5)
    with case(FaultClass.KILL, "the store alone under SGLang"):
        site.kill_store()
        assert timed(rank, "exists", count=PAGES) == 0
        assert timed(rank, "read", first=0, count=PAGES, versions=[1]) == ["missing"] * PAGES
        site.start()
        until_found(site, rank, PAGES + 5)
        assert states_of([rank], 0, PAGES + 5) == {"right": PAGES + 5}


@pytest.mark.long
def test_a_store_that_stands_still_costs_one_deadline(
    site: DaemonSite, sglang: SglangRanks
) -> None:
    site.start()
    (rank,) = sglang.start(at(site))
    fill_all([rank], 0, PAGES)
    assert site.store is not None
    with case(FaultClass.STOP, "the store under SGLang"):
        site.store.send_signal(19)
        try:
            assert timed(rank, "exists", count=PAGES) == 0
            begin = time.monotonic()
            for _ in range(3):
                assert timed(rank, "exists", count=PAGES) == 0
            assert time.monotonic() - begin < CALL_SECONDS
        finally:
            site.store.send_signal(18)
        until_found(site, rank, PAGES)
        assert states_of([rank], 0, PAGES) == {"right": PAGES}


def test_other_weights_find_none_of_the_old_pages(site: DaemonSite, sglang: SglangRanks) -> None:
    site.start_store()
    (rank,) = sglang.start(at(site, server={"weight_version": "one"}))
    fill_all([rank], 0, PAGES)
    rank.do("serve", weight_version="two")
    assert rank.do("exists", count=PAGES) == 0
    assert "weight_version=two" in rank.do("label")
    # SGLang's backup thread may still hold pages of the old weights until the caches are flushed.
    assert together([rank], "fill", first=0, count=PAGES) == [[False] * PAGES]
    assert rank.do("exists", count=PAGES) == 0
    assert rank.log().count("pages are not stored until SGLang flushes its cache") == 1
    rank.do("flush")
    fill_all([rank], 0, PAGES // 2, version=2)
    assert states_of([rank], 0, PAGES, 2) == {"right": PAGES // 2, "missing": PAGES // 2}


@pytest.mark.long
def test_old_weights_and_a_clear_stay_what_they_are_after_a_kill(
    site: DaemonSite, sglang: SglangRanks
) -> None:
    site.start()
    server = {"weight_version": "one"}
    old, new = sglang.start(at(site, server=server), at(site, server={"weight_version": "two"}))
    fill_all([old], 0, PAGES)
    fill_all([new], 0, PAGES // 2, version=2)
    with case(FaultClass.KILL, "everything under two versions of the weights"):
        sglang.kill()
        lose_everything(site)
        new, old = sglang.start(at(site, server={"weight_version": "two"}), at(site, server=server))
        assert states_of([new], 0, PAGES, 2) == {"right": PAGES // 2, "missing": PAGES // 2}
        assert states_of([old], 0, PAGES, 1) == {"right": PAGES}
    new.do("clear")
    with case(FaultClass.KILL, "everything after a clear"):
        sglang.kill()
        lose_everything(site)
        (again,) = sglang.start(at(site, server={"weight_version": "two"}))
        assert again.do("exists", count=1) == 0


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"dtype": "bfloat16"}, {"dtype": "float16"}),
        pytest.param(
            {"layout": "page_first"}, {"layout": "page_first_direct"}, marks=pytest.mark.long
        ),
        pytest.param({"layers": [0, 4]}, {"layers": [4, 8]}, marks=pytest.mark.long),
    ],
)
def test_a_pool_of_another_kind_finds_nothing(
    site: DaemonSite, sglang: SglangRanks, one: dict[str, Any], other: dict[str, Any]
) -> None:
    """Their keys and sizes are equal, their bytes mean something else."""
    site.start()
    first, second = sglang.start(at(site, pool=one), at(site, pool=other))
    fill_all([first], 0, PAGES)
    assert second.do("exists", count=PAGES) == 0
    assert states_of([second], 0, PAGES) == {"missing": PAGES}
    assert states_of([first], 0, PAGES) == {"right": PAGES}


def test_what_cannot_work_is_refused_by_name(site: DaemonSite, sglang: SglangRanks) -> None:
    site.start_store()
    mla = {"mla": True}
    refused = [
        ({"pool": {"layout": "layer_first"}}, r"layout 'layer_first' has a page in 8 pieces.*"),
        ({"extra": {"interface_v1": 0}}, r'interface_v1 = 0.*add "interface_v1": 1'),
        (
            {"extra": {"standalone_storage": True, "snapd_store": "mooncake", **NOWHERE}},
            r"standalone_storage = true in the extra config.*leave it out",
        ),
        (
            {
                "extra": {"snapd_store": "mooncake"},
                "environment": {
                    "MOONCAKE_MASTER": "127.0.0.1:1",
                    "MOONCAKE_STANDALONE_STORAGE": "yes",
                },
            },
            r"standalone_storage = true in the environment",
        ),
        ({"extra": {"snapd_stor": "bundled"}}, r"snapd_stor'.*did you mean snapd_store"),
        ({"extra": {"snapd_store": "other"}}, r"snapd_store = 'other': use 'bundled' or"),
        ({"extra": {"tenant_id": "mine"}}, r"tenant_id = 'mine'.*use extra_backend_tag"),
        (
            {"pool": mla, "tp_size": 2, "dcp_size": 2, "logical_page_size": 32},
            r"dcp_size = 2.*use --hicache-storage-backend mooncake",
        ),
    ]
    for options, words in refused:
        with pytest.raises(RankError, match=words):
            sglang.start(at(site, options))
    # One piece for each layer is what MLA can do.
    (rank,) = sglang.start(at(site, pool={**mla, "layout": "layer_first"}))
    fill_all([rank], 0, PAGES)
    assert states_of([rank], 0, PAGES) == {"right": PAGES}
