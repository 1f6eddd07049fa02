"""The drill on real Mooncake: what it starts, finds and leaves behind."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from snapd.drill.content import block_keys, block_stamp
from snapd.drill.load import LoadSpec
from snapd.drill.mooncake_audit import RemoteAuditor
from snapd.drill.mooncake_scenarios import MOONCAKE_SCENARIOS, flip_behind
from snapd.drill.mooncake_site import PEERS, MooncakeSettings, MooncakeSite, find_wheel
from snapd.drill.offload import CASES
from snapd.drill.plan import make_plan
from snapd.drill.scenarios import create_shared
from snapd.drill.trace import MultiTurn, generate_trace
from snapd.drill.verdict import DAMAGED_ON_DISK
from snapd.errors import SettingError

PYTHON = os.environ["SNAPD_TEST_MOONCAKE_PYTHON"]
SNAPCTL = [sys.executable, "-c", "from snapd.cli.snapctl import main; main()"]
PLAN = make_plan(
    generate_trace(MultiTurn(requests=400), 3),
    seed=3,
    block_bytes=8192,
    clients=2,
    load_seconds=3.0,
    speed=None,
    inject=False,
    flush_seconds=0.25,
    snapshot_seconds=2.0,
    deadline_seconds=2.0,
)
UPSERT = """
import sys, mooncake.store
store = mooncake.store.MooncakeDistributedStore()
assert store.setup("127.0.0.1", sys.argv[2], 0, 1 << 24, "tcp", "", sys.argv[1]) == 0
assert store.upsert(sys.argv[3], bytes(int(sys.argv[4]))) == 0
"""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[MooncakeSite]:
    place = tmp_path / f"snapd-drill-test-{random.getrandbits(64):x}"
    place.mkdir()
    mooncake = MooncakeSettings(PYTHON, own_memory=True)
    with MooncakeSite(place, PLAN.site_settings, mooncake) as site:
        site.start_master()
        site.wait_master()
        site.start_store()
        site.wait_store(20)
        yield site


def test_the_audit_finds_bytes_that_are_wrong_and_blocks_that_are_gone(site: MooncakeSite) -> None:
    """A drill whose audit is blind proves nothing."""
    state = create_shared(PLAN, site.shared)
    spec = LoadSpec(
        directory=str(site.shared),
        socket=site.master_address,
        metadata=PEERS,
        seed=PLAN.seed,
        block_bytes=PLAN.block_bytes,
        deadline_seconds=2.0,
        upsert_ratio=0.0,
        remove_ratio=0.0,
    )
    file = site.shared / "spec.json"
    file.write_bytes(msgspec.json.encode(spec))
    auditor = RemoteAuditor(site, file)
    blocks = auditor.fill(PLAN.kill_request)
    assert blocks > 500
    acknowledged = state.ledger.acknowledged()
    good = auditor.read_back(acknowledged)
    assert (good.blocks, good.wrong_bytes) == (blocks, 0)

    key = block_keys(PLAN.seed, PLAN.trace.block_count)[0][np.flatnonzero(acknowledged)[0]]
    overwrite = [PYTHON, "-c", UPSERT, site.master_address, PEERS, key, str(PLAN.block_bytes)]
    subprocess.run(overwrite, check=True, capture_output=True, timeout=30)
    bad = auditor.read_back(acknowledged)
    assert bad.blocks == blocks - 1
    assert bad.wrong_bytes > PLAN.block_bytes // 2

    store = site.store
    assert store is not None
    store.kill()
    site.store = None
    gone = auditor.read_back(acknowledged)
    assert gone.blocks == 0, "the master lists them still; the audit believes what it reads"
    verdict = auditor.sweep(acknowledged, acknowledged > 0, [])
    assert verdict.lost_blocks == blocks


def test_an_interpreter_without_the_wheel_is_refused_with_the_way_out(tmp_path: Path) -> None:
    assert find_wheel(PYTHON) == PYTHON
    with pytest.raises(SettingError, match=r"install\s+'mooncake-snapd\[mooncake\]'"):
        find_wheel(sys.executable)
    with pytest.raises(SettingError, match="--mooncake-python"):
        find_wheel(str(tmp_path / "none"))


def test_a_byte_is_flipped_behind_a_blocks_stamp_only(tmp_path: Path) -> None:
    stamp = block_stamp(np.uint64(7), np.uint32(64))
    file = tmp_path / "memory"
    before = bytes(1000) + stamp + bytes(1000)
    file.write_bytes(before)
    assert flip_behind(file, stamp)
    after = file.read_bytes()
    assert [place for place in range(len(after)) if after[place] != before[place]] == [
        1000 + len(stamp) + 64
    ]
    assert not flip_behind(file, block_stamp(np.uint64(8), np.uint32(64)))


def drill(directory: Path, *arguments: str, timeout_seconds: float) -> dict[str, Any]:
    """The drill's document; 1 is a hit rate that came back late, as on a busy machine."""
    process = subprocess.Popen(
        [
            *SNAPCTL,
            "drill",
            "--store=mooncake",
            f"--mooncake-python={PYTHON}",
            f"--directory={directory}",
            f"--report={directory / 'report.html'}",
            "--json",
            *arguments,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        out, messages = process.communicate(timeout=timeout_seconds)
    finally:
        process.kill()
    assert process.returncode in {0, 1}, messages + out
    left = [n for n in os.listdir("/dev/shm") if n.startswith(f"snapd-drill-{process.pid}-")]
    assert left == [], "no shared memory is left"
    assert [path.name for path in directory.iterdir()] == ["report.html"], "it cleaned up"
    document: dict[str, Any] = json.loads(out)
    assert all("hit rate" in finding for finding in document["findings"]), document["findings"]
    return document


def by_name(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in document["scenarios"]}


def check_survival(result: dict[str, Any]) -> None:
    assert result["wrong_bytes"] == result["lost_committed_blocks"] == 0
    assert result["restored_blocks"] > 500
    assert result["hit_rate"] > result["hit_rate_baseline"] - result["undurable_at_kill"] - 0.1


def check_nothing_read(result: dict[str, Any]) -> None:
    """By the daemon's count; the kernel's has what the file system reads for itself as well."""
    assert result["nvme_blocks_read"] == 0
    assert result["nvme_bytes_read"] < result["restored_blocks"] * PLAN.block_bytes // 4


@pytest.mark.long
def test_a_store_that_died_is_filled_again_from_shared_memory(tmp_path: Path) -> None:
    document = drill(tmp_path, "--scenario=shm", "--seconds=3", timeout_seconds=120)
    results = by_name(document)
    assert list(results) == ["baseline", "shm"]
    check_survival(results["shm"])
    check_nothing_read(results["shm"])


@pytest.mark.long
@pytest.mark.parametrize("store", ["vanilla", "launcher"])
def test_the_cache_survives_every_scenario(tmp_path: Path, store: str) -> None:
    document = drill(tmp_path, f"--mooncake-store={store}", timeout_seconds=500)
    results = by_name(document)
    assert list(results) == list(MOONCAKE_SCENARIOS)
    for name in ("shm", "nvme", "sigterm", "master", "all"):
        check_survival(results[name])
        assert results[name]["hit_rate"] > results["cold"]["hit_rate"] + 0.1, name
    check_nothing_read(results["shm"])
    assert results["cold"]["restored_blocks"] == results["cold"]["wrong_bytes"] == 0
    assert [(one["keeper"], one["kill"]) for one in document["offload"]] == [
        (case.keeper, case.kill) for case in CASES
    ]
    for one in document["offload"]:
        assert one["wrong_bytes"] == 0
        assert one["blocks_back"] <= one["blocks"]
        if one["keeper"] == "snapd" and one["kill"] != "1 s":
            assert one["blocks_back"] == one["blocks"], "also where it is back at once"


@pytest.mark.long
def test_damage_is_noticed_and_not_served(tmp_path: Path) -> None:
    scenarios = [f"--scenario={name}" for name in ("shm", "nvme", "master", "all")]
    document = drill(tmp_path, "--inject", *scenarios, timeout_seconds=300)
    for name, result in by_name(document).items():
        assert result["wrong_bytes"] == result["lost_committed_blocks"] == 0, name
        assert (result["rejected_blocks"] > 0) == (name in DAMAGED_ON_DISK), name
