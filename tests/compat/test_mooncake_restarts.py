"""Restarts that follow each other faster than the daemon can mount anything."""

from __future__ import annotations

from pathlib import Path

import pytest
from fault_ledger import FaultClass, case
from mooncake_site import MooncakeSite

KEYS = [f"restart-{number}" for number in range(200)]


@pytest.mark.parametrize("launcher", [False, pytest.param(True, marks=pytest.mark.long)])
def test_a_store_and_then_the_master_before_anything_is_mounted(
    launcher: bool, tmp_path: Path
) -> None:
    """The first call of the store's client to a new master fails. Were that a mount, the store
    would refuse every later one."""
    name = f"Mooncake's store killed, then its master before the next mount; launcher: {launcher}"
    with (
        MooncakeSite(tmp_path, segment_bytes=32 << 20) as site,
        case(FaultClass.KILL, name),
    ):
        site.start_master()
        site.start_store(launcher=launcher)
        site.start_daemon()
        client = site.client()
        client.put_all(KEYS)
        site.snapd.snapshot()
        site.kill_store()
        site.start_store(launcher=launcher)
        site.kill_master()
        site.start_master()
        site.until("ready", lambda: site.snapd.ask("/readyz")[0] == 200)
        site.until("all are back", lambda: site.keys() >= set(KEYS))
        client.read(KEYS)  # a client's first call after a death of the master may bring nothing
        assert set(client.read(KEYS).values()) == {1}
