"""The oldest published Mooncake that snapd is for: the same promises as with the newest."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fault_ledger import FaultClass, case
from mooncake_deaths import DEATHS, die_and_come_back
from mooncake_site import MooncakeSite

OLD_PYTHON_VARIABLE = "SNAPD_TEST_MOONCAKE_OLD_PYTHON"
KEYS = [f"old/{number}" for number in range(200)]
REMOVED, KEPT = KEYS[:20], KEYS[20:]


def test_all_keys_come_back_after_everything_died(tmp_path: Path) -> None:
    live_through(tmp_path, ["all"], launcher=False)


@pytest.mark.long
@pytest.mark.parametrize("launcher", [False, True])
def test_all_keys_come_back_after_each_death(tmp_path: Path, launcher: bool) -> None:
    live_through(tmp_path, [*DEATHS, *DEATHS], launcher=launcher)


def live_through(directory: Path, deaths: list[str], *, launcher: bool) -> None:
    """Fill, remove some, and die one death after the other; `launcher` runs our store service."""
    with MooncakeSite(directory, python=os.environ[OLD_PYTHON_VARIABLE]) as site:
        site.start_master()
        site.start_store(launcher=launcher)
        site.start_daemon()
        client = site.client()
        client.put_all(KEYS)
        assert set(client.remove(REMOVED, force=True)) == {0}
        site.until("all are on disk", lambda: site.status()["repository"]["blocks"] == len(KEPT))
        site.snapd.snapshot()
        for death in deaths:
            with case(FaultClass.KILL, f"{death} of the oldest Mooncake, launcher={launcher}"):
                die_and_come_back(site, death, launcher=launcher)
                client = site.client()
                assert set(client.read(KEPT).values()) == {1}
                assert not any(client.exist(REMOVED).values())
