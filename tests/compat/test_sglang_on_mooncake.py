"""`SnapdHiCache` as a thin layer on real Mooncake: SGLang's pages survive as they do with its own
backend, lookups are told to the daemon, and no two ranks share a place on disk."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fault_ledger import FaultClass, case
from mooncake_deaths import die_and_come_back
from mooncake_site import MooncakeSite
from sglang_ranks import RankError, SglangRanks, fill_all, states_of, together

from snapd.wire.trace import decode_lookup, trace_socket

PAGES = 40


@pytest.fixture
def site(tmp_path: Path, sglang: SglangRanks) -> Iterator[MooncakeSite]:
    with MooncakeSite(tmp_path, python=sglang.python, segment_bytes=64 << 20) as site:
        site.start_master()
        yield site


OWN_MEMORY = {"global_segment_size": 64 << 20}
"""What ranks contribute where there is no store service."""


def on(site: MooncakeSite, **more: Any) -> dict[str, Any]:
    extra = {
        "snapd_store": "mooncake",
        "snapd_runtime_dir": str(site.snapd.runtime),
        "master_server_address": site.master,
        "metadata_server": site.metadata,
        "local_hostname": "127.0.0.1",
        "global_segment_size": 0,
        "protocol": "tcp",
        **more.pop("extra", {}),
    }
    return {**more, "extra": extra}


@pytest.mark.long
def test_pages_survive_and_lookups_are_told(site: MooncakeSite, sglang: SglangRanks) -> None:
    site.start_store()
    site.start_daemon()
    ranks = sglang.start(*(on(site, tp_rank=rank, tp_size=2) for rank in range(2)))
    fill_all(ranks, 0, PAGES)
    assert states_of(ranks, 0, PAGES) == {"right": 2 * PAGES}
    site.until(
        "everything is on disk",
        lambda: site.status()["repository"]["blocks"] >= len(site.keys()) > 0,
    )
    site.snapd.snapshot()
    with case(FaultClass.KILL, "all and its shared memory under SnapdHiCache on Mooncake"):
        die_and_come_back(site, "all")
        site.until(
            "SGLang sees its pages",
            lambda: together(ranks, "exists", count=PAGES + 1) == [PAGES] * 2,
        )
        assert states_of(ranks, 0, PAGES) == {"right": 2 * PAGES}


def test_a_lookup_names_the_pages_and_what_came_before_them(
    site: MooncakeSite, sglang: SglangRanks
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as daemon:
        daemon.bind(trace_socket(str(site.snapd.runtime)))
        daemon.settimeout(10)
        (rank,) = sglang.start(on(site, extra=OWN_MEMORY))
        assert rank.do("fill", first=0, count=4, prefix=True) == [True] * 4
        put = decode_lookup(daemon.recv(1 << 16))
        assert rank.do("exists", count=6) == 4
        asked = decode_lookup(daemon.recv(1 << 16))
        assert (put.parent, put.depth, put.hits) == (0, 0, 4)
        assert (asked.parent, asked.depth, asked.hits, len(asked.pages)) == (0, 0, 4, 6)
        assert asked.pages[:4].tolist() == put.pages.tolist()
        assert rank.do("fill", first=4, count=2, prefix=True) == [True] * 2
        more = decode_lookup(daemon.recv(1 << 16))
        assert (more.parent, more.depth) == (int(put.pages[-1]), 4)
        assert more.pages.tolist() == asked.pages[4:].tolist()


def test_every_rank_has_a_place_on_disk_that_no_other_can_have(
    site: MooncakeSite, sglang: SglangRanks, tmp_path: Path
) -> None:
    root = tmp_path / "offload"
    extra = {"ssd_offload_path": str(root), **OWN_MEMORY}
    tp = [on(site, tp_rank=rank, tp_size=2, extra=extra) for rank in range(2)]
    first, _ = sglang.start(*tp)
    places = sorted(path.name for path in root.iterdir() if not path.name.startswith("."))
    assert places == ["rank_0_0_0_0", "rank_0_1_0_0"]
    first.kill()
    with case(FaultClass.KILL, "a rank whose place on disk the next one takes over"):
        sglang.start(tp[0])
        assert sorted(root.iterdir()) == sorted(root / name for name in (*places, ".snapd-claims"))


def test_a_tenant_is_told_and_a_wrong_argument_is_an_error(
    site: MooncakeSite, sglang: SglangRanks
) -> None:
    """SGLang itself takes a TypeError that names a parameter for a wheel that lacks it."""
    (rank,) = sglang.start(on(site, extra={"tenant_id": "somebody", **OWN_MEMORY}))
    assert rank.do("fill", first=0, count=2) == [True] * 2
    with pytest.raises(RankError, match="TypeError: setup"):
        sglang.start(on(site, extra={"local_hostname": 5, "ssd_offload_path": "/tmp/unused"}))
