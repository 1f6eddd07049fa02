"""Several stores on one master: of one daemon, of two, and one that dies while others live."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from daemon_site import DaemonSite
from fault_ledger import FaultClass, case
from mooncake_packs import packed_versions
from mooncake_site import MooncakeSite

SIZE = 20_000


def names(prefix: str, count: int) -> list[str]:
    return [f"{prefix}-{number}" for number in range(count)]


def session(daemon: DaemonSite) -> str:
    return str(daemon.status()["store"].get("boot_id", ""))


def ready(site: MooncakeSite, daemon: DaemonSite, after: str = "") -> None:
    def done() -> bool:
        up = daemon.ask("/readyz")[0] == 200 and daemon.status()["store"]["settled"]
        return up and session(daemon) != after

    site.until("ready", done)


def endpoints(site: MooncakeSite, keys: Sequence[str]) -> dict[str, str]:
    """The segment that each key is in, by its endpoint."""
    body = site.get_admin(f"/batch_query_keys?keys={','.join(keys)}")
    assert body is not None
    found = json.loads(body)["data"]
    return {key: found[key]["values"][0]["transport_endpoint_"] for key in keys}


def test_two_stores_of_one_daemon_and_one_is_killed(tmp_path: Path) -> None:
    with MooncakeSite(tmp_path, stores=2, segment_bytes=16 << 20, http="") as site:
        site.start()
        site.start_daemon()
        ready(site, site.snapd)
        keys = names("k", 200)
        client = site.client()
        client.put_all(keys, size=SIZE)
        client.close()
        site.snapd.snapshot()
        assert packed_versions(site.snapd.repository) == dict.fromkeys(keys, 1)
        before, first = endpoints(site, keys), session(site.snapd)
        with case(FaultClass.KILL, "one of two Mooncake stores: SIGKILL and start"):
            site.kill_store(0)
            site.until("noticed", lambda: session(site.snapd) != first)
            site.start_store(0)
            site.until("both are mounted", lambda: len(site.shared_files()) >= 2)
            site.until("all are back", lambda: site.keys() == set(keys))
            ready(site, site.snapd, after=first)
            site.until(
                "two live segments",
                lambda: len(site.segments()) == 2 and len(site.shared_files()) == 2,
            )
            ready(site, site.snapd)
            after = endpoints(site, keys)
            stayed = [key for key in keys if before[key] in set(after.values())]
            assert 0 < len(stayed) < len(keys)
            # What the other store had was not touched.
            assert all(after[key] == before[key] for key in stayed)
            assert set(site.client().read(keys).values()) == {1}


@pytest.mark.long
def test_two_daemons_on_one_master_see_their_own_keys_only(tmp_path: Path) -> None:
    with (
        MooncakeSite(tmp_path, stores=2, segment_bytes=16 << 20, http="") as site,
        DaemonSite(
            tmp_path / "second",
            **site.settings(
                mooncake_stores=site.store_url(1), segment_path=f"/dev/shm/{site.stem}-b"
            ),
        ) as second,
    ):
        site.snapd.configure(mooncake_stores=site.store_url(0))
        site.start()
        site.start_daemon()
        second.start_daemon()
        ready(site, site.snapd)
        ready(site, second)
        keys = names("k", 200)
        client = site.client()
        client.put_all(keys, size=SIZE)
        client.close()
        site.snapd.snapshot()
        second.snapshot()
        one, two = packed_versions(site.snapd.repository), packed_versions(second.repository)
        assert one
        assert two
        assert not one.keys() & two.keys()
        assert one | two == dict.fromkeys(keys, 1)
        before, first = endpoints(site, keys), session(site.snapd)
        sessions = session(second)
        with case(FaultClass.KILL, "one of two hosts' Mooncake stores: SIGKILL and start"):
            site.kill_store(0)
            site.start_store(0)
            ready(site, site.snapd, after=first)
            site.until("all are back", lambda: site.keys() == set(keys))
            after = endpoints(site, keys)
            assert all(after[key] == before[key] for key in two)
            assert session(second) == sessions
            assert set(site.client().read(keys).values()) == {1}
