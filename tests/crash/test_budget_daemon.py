"""A real daemon with a real store, whose budget is smaller than the cache."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
from daemon_site import DaemonSite
from fault_ledger import FaultClass, case

BUDGET = 16 * 2**20
SIZE = 100_000
BLOCKS = 240
"""24 MB of them."""
EXPECTED = BUDGET // 2 // SIZE
"""Live blocks take up to 0.70 of a budget (`snapd.plans.space.LIVE_SHARE`), less what packs take
beside them."""


def value(number: int, version: int) -> bytes:
    return np.random.default_rng([number, version]).bytes(SIZE)


def used(directory: Path) -> int:
    """Bytes of all files."""
    total = 0
    for path in directory.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # a pack that was just deleted
            total += path.stat().st_size if path.is_file() else 0
    return total


def committed(site: DaemonSite) -> int:
    """Blocks in the newest manifest."""
    return int(site.status()["snapshot"]["blocks"])


def test_a_real_daemon_stays_inside_its_budget_and_restarts_with_what_is_on_disk(
    tmp_path: Path,
) -> None:
    with (
        DaemonSite(tmp_path) as site,
        case(FaultClass.KILL, "daemon and store killed with a budget smaller than the cache"),
    ):
        site.configure(
            repository_bytes_max=BUDGET,
            global_segment_size="64mb",
            flush_sec=0.2,
            snapshot_interval_sec=0.5,
        )
        site.start()
        client = site.client()
        most = 0
        for version in range(2):
            for number in range(BLOCKS):
                assert client.upsert(f"key-{number}", value(number, version)) == 0
                if number % 20 == 0:
                    most = max(most, used(site.repository))
        # Upserts leave the disk full of dead versions. Their space comes back with commits and
        # looks of the compactor; only then do the new versions get their share of the budget.
        site.until("the budget holds live blocks", lambda: committed(site) >= EXPECTED)
        most = max(most, used(site.repository))
        assert sum(site.status()["flush"]["left_out"].values()) > 0
        budget = site.status()["budget"]
        assert budget["limited_by"] == "budget"
        assert budget["limit_bytes"] == BUDGET
        assert most <= BUDGET
        assert site.status()["errors"] == []
        durable = committed(site)
        site.kill_daemon()
        site.kill_store()
        site.wipe_segment()
        site.start()
        client = site.client()
        held = 0
        for number in range(BLOCKS):
            found = client.get(f"key-{number}")
            assert found in (b"", value(number, 1)), f"key-{number} has wrong bytes"
            held += bool(found)
        assert held >= durable, f"only {held} of {durable} blocks came back"
        assert used(site.repository) <= BUDGET
