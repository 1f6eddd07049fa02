"""The oldest published Mooncake that snapd is for: the same promises as with the newest."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_ledger import FaultClass, case
from mooncake_deaths import DEATHS, die_and_come_back
from mooncake_site import MooncakeSite

OLD_PYTHON_VARIABLE = "SNAPD_TEST_MOONCAKE_OLD_PYTHON"
KEYS = [f"old/{number}" for number in range(200)]


@pytest.fixture(
    params=[
        pytest.param(False, id="service"),
        pytest.param(True, id="launcher", marks=pytest.mark.long),
    ]
)
def site(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[MooncakeSite]:
    with MooncakeSite(tmp_path, python=os.environ[OLD_PYTHON_VARIABLE]) as site:
        site.start_master()
        site.start_store(launcher=request.param)
        site.start_daemon()
        yield site


def test_all_keys_come_back_after_each_death(
    site: MooncakeSite, request: pytest.FixtureRequest
) -> None:
    launcher = request.node.callspec.params["site"]
    client = site.client()
    client.put_all(KEYS)
    removed, kept = KEYS[:20], KEYS[20:]
    assert set(client.remove(removed, force=True)) == {0}
    site.until("everything is on disk", lambda: site.status()["repository"]["blocks"] == len(kept))
    site.snapd.snapshot()
    for death in DEATHS:
        with case(FaultClass.KILL, f"{death} of the oldest Mooncake, launcher={launcher}"):
            die_and_come_back(site, death, launcher=launcher)
            client = site.client()
            assert client.wrong(KEYS) == []
            assert set(client.read(kept).values()) == {1}
            assert not any(client.exist(removed).values())
