"""A node that lost its memory and is back before Mooncake's master has noticed: its keys are listed
still, in segments that are dead."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon_site import DaemonSite
from fault_ledger import FaultClass, case
from mooncake_site import MooncakeSite

from snapd.attach.mooncake.notes import NOTED_SECONDS_MAX, NOTES_FILE

SIZE = 65536
CLIENT_TTL_SECONDS = 4


def names(prefix: str, count: int) -> list[str]:
    return [f"{prefix}-{number}" for number in range(count)]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[MooncakeSite]:
    with MooncakeSite(tmp_path, client_ttl=CLIENT_TTL_SECONDS, poll_sec=0.2, stores=2) as one:
        yield one


def durable(site: MooncakeSite, blocks: int) -> None:
    site.until("seen", lambda: site.status()["store"]["counters"]["blocks"] == blocks)
    site.snapd.snapshot()


def lose_node(site: MooncakeSite, *stores: int) -> None:
    """Everything is killed and its memory wiped; the master is elsewhere, and lives."""
    site.kill_daemon()
    for index in stores:
        site.kill_store(index)
    site.wipe_shared_memory()


def attach(site: MooncakeSite) -> None:
    """Start a daemon, and wait until it has mounted something beside what is dead."""
    dead = len(site.segments())
    assert dead >= 2, "too slow to show it"
    site.start_daemon(wait=False)
    site.until("attached", lambda: len(site.segments()) > dead)


def ready(site: MooncakeSite) -> dict[str, float]:
    """Wait until it is; blocks by what became of them."""
    site.until("ready", lambda: site.snapd.ask("/readyz")[0] == 200)
    named = ("loaded", "superseded", "failed")
    return {one: site.snapd.metric("warmup_blocks_total", result=one) for one in named}


def test_what_a_dead_segment_lists_still_is_put_back_when_it_is_gone(site: MooncakeSite) -> None:
    with case(FaultClass.KILL, "node without its memory: back before the master has noticed"):
        site.start()
        site.start_daemon()
        client = site.client()
        keys = names("key", 200)
        client.put_all(keys, size=SIZE)
        durable(site, len(keys))
        before = {one["segment_id"] for one in site.segments()}

        lose_node(site, 0, 1)
        site.start_store(0)
        site.start_store(1)
        attach(site)
        assert {one["segment_id"] for one in site.segments()} > before, "too slow to show it"

        assert ready(site) == {"loaded": len(keys), "superseded": 0, "failed": 0}
        assert set(client.read(keys).values()) == {1}
        assert not before & {one["segment_id"] for one in site.segments()}


@pytest.mark.long
def test_twice_in_a_row_before_the_master_notices_the_first_time(site: MooncakeSite) -> None:
    with case(FaultClass.KILL, "node without its memory: lost again before the master has noticed"):
        site.start()
        site.start_daemon()
        client = site.client()
        keys = names("key", 100)
        client.put_all(keys, size=SIZE)
        durable(site, len(keys))
        for _ in range(2):
            lose_node(site, 0, 1)
            site.start_store(0)
            site.start_store(1)
            attach(site)
        assert ready(site)["loaded"] == len(keys)
        assert set(client.read(keys).values()) == {1}


@pytest.mark.long
def test_what_is_noted_and_lives_on_another_host_is_left_there(tmp_path: Path) -> None:
    """As with a repository that was copied to another host: its note names segments that live."""
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
        keys = names("key", 50)
        client = site.client()
        client.put_all(keys, size=SIZE)
        durable(site, len(keys))
        shutil.copytree(site.snapd.repository, second.repository, dirs_exist_ok=True)
        living = {one["segment_id"] for one in site.segments()}
        noted = json.loads((second.repository / NOTES_FILE).read_bytes())["segments"]
        assert {one for ids in noted.values() for one in ids} == living

        second.start_daemon(wait=False)
        site.until(
            "it gave up to wait",
            lambda: second.ask("/readyz")[0] == 200,
            seconds=2 * NOTED_SECONDS_MAX,
        )
        assert "listed for too long to be dead" in second.log.read_text()
        assert second.metric("warmup_blocks_total", result="superseded") == len(keys)
        assert second.metric("warmup_blocks_total", result="loaded") == 0
        assert living < {one["segment_id"] for one in site.segments()}
        assert site.status()["store"]["counters"]["blocks"] == len(keys)
        assert set(client.read(keys).values()) == {1}
