"""Configuration by extra config, JSON file and environment: whatever SGLang's own Mooncake backend
makes of them, `SnapdHiCache` makes of them too."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

from daemon_site import DaemonSite
from sglang_ranks import SglangRanks, fill_all
from sglang_sites import at

VALUES: dict[str, dict[str, Any]] = {
    "extra": {
        "master_server_address": "extra:1",
        "enable_ssd_offload": True,
        "ssd_offload_path": "/extra",
        "tenant_id": " extra ",
    },
    "file": {
        "master_server_address": "file:1",
        "ssd_offload_path": "/file",
        "local_hostname": "file-host",
    },
    "environment": {
        "MOONCAKE_MASTER": "environment:1",
        "MOONCAKE_ENABLE_SSD_OFFLOAD": "yes",
        "MOONCAKE_OFFLOAD_FILE_STORAGE_PATH": "/environment",
        "MOONCAKE_TENANT_ID": "",
    },
}


def test_sources_are_taken_as_sglang_takes_them(
    tmp_path: Path, sglang: SglangRanks, monkeypatch: Any
) -> None:
    """Every combination of the three, with and without an address in the extra config."""
    path = tmp_path / "mooncake.json"
    path.write_text(json.dumps(VALUES["file"]))
    without_address = {
        name: value for name, value in VALUES["extra"].items() if name != "master_server_address"
    }
    with DaemonSite(tmp_path / "site") as site:
        site.start_store()
        (rank,) = sglang.start(at(site))
        extras = ({}, VALUES["extra"], without_address)
        seen = set()
        for extra, has_file, has_variables in itertools.product(extras, (0, 1), (0, 1)):
            variables = dict(VALUES["environment"]) if has_variables else {}
            if has_file:
                variables["SGLANG_HICACHE_MOONCAKE_CONFIG_PATH"] = str(path)
            said = rank.do("configured", extra=extra, environment=variables)
            if said["sglang"] is None:  # no address anywhere: SGLang raises
                assert said["snapd"]["master"] == ""
                continue
            assert said["snapd"] == said["sglang"], (extra, variables)
            seen.add(said["snapd"]["master"])
        assert seen == {"extra:1", "file:1", "environment:1"}


def test_the_store_is_found_by_each_source(tmp_path: Path, sglang: SglangRanks) -> None:
    path = tmp_path / "snapd.json"
    with DaemonSite(tmp_path / "site") as site:
        site.start_store()
        path.write_text(json.dumps({"snapd_runtime_dir": str(site.runtime)}))
        by_extra = at(site)
        by_file = {"environment": {"SGLANG_HICACHE_MOONCAKE_CONFIG_PATH": str(path)}}
        by_variable = {"environment": {"SNAPD_RUNTIME_DIR": str(site.runtime)}}
        by_address = {"extra": {"master_server_address": f"unix:{site.runtime}"}}
        # What a deployment on Mooncake has set says nothing of the bundled store.
        beside = {
            "environment": {
                **by_variable["environment"],
                "MOONCAKE_MASTER": "10.0.0.1:50051",
                "MOONCAKE_CHECK_SERVER": "true",
                "MOONCAKE_STANDALONE_STORAGE": "true",
                "MOONCAKE_GLOBAL_SEGMENT_SIZE": "64gb",
                "MOONCAKE_PROTOCOL": "rdma",
            }
        }
        ranks = sglang.start(by_extra, by_file, by_variable, by_address, beside)
        fill_all(ranks[:1], 0, 3)
        assert [rank.do("exists", count=3) for rank in ranks] == [3] * len(ranks)
