"""A Mooncake of SGLang 0.5.6's time, whose `setup` knows neither SSD offload nor tenants."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mooncake_site import MooncakeSite
from sglang_ranks import RankError, SglangRanks, states_of, together


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory, sglang_old_import: SglangRanks
) -> Iterator[MooncakeSite]:
    directory = tmp_path_factory.mktemp("mooncake")
    with MooncakeSite(directory, python=sglang_old_import.python) as site:
        site.start_master()
        yield site


def on(site: MooncakeSite, **extra: Any) -> dict[str, Any]:
    return {
        "extra": {
            "snapd_store": "mooncake",
            "snapd_trace": False,
            "master_server_address": site.master,
            "metadata_server": site.metadata,
            "local_hostname": "127.0.0.1",
            "global_segment_size": 64 << 20,
            "protocol": "tcp",
            **extra,
        }
    }


def test_exactly_what_it_lacks_is_left_out_and_said_once(
    site: MooncakeSite, sglang_old: SglangRanks, tmp_path: Path
) -> None:
    root = tmp_path / "offload"
    (rank,) = sglang_old.start(on(site, enable_ssd_offload=True, ssd_offload_path=str(root)))
    warned = [line for line in rank.log().splitlines() if "left out" in line]
    assert len(warned) == 2, rank.log()
    assert {line.partition("parameter=")[2].split()[0] for line in warned} == {
        "enable_ssd_offload",
        "ssd_offload_path",
    }
    assert all("installed=0.3.8.post1 needed=0.3.10" in line for line in warned), warned
    assert not root.exists()
    assert together([rank], "fill", first=0, count=10) == [[True] * 10]
    assert states_of([rank], 0, 10) == {"right": 10}


def test_a_tenant_is_never_left_out(site: MooncakeSite, sglang_old: SglangRanks) -> None:
    with pytest.raises(RankError, match=r"tenant_id = 'somebody'.*install 0\.3\.12 or newer"):
        sglang_old.start(on(site, tenant_id="somebody"))


def test_a_wrong_argument_is_an_error(site: MooncakeSite, sglang_old: SglangRanks) -> None:
    with pytest.raises(RankError, match="TypeError: setup"):
        sglang_old.start(on(site, local_hostname=5, enable_ssd_offload=True))


def test_pipeline_stages_that_share_keys_are_refused(
    site: MooncakeSite, sglang_old: SglangRanks
) -> None:
    with pytest.raises(RankError, match=r"pp_size = 2.*use snapd_store = bundled"):
        sglang_old.start({**on(site), "server": {"model_path": "m", "pp_size": 2}})
