"""Attaching to real Mooncake: what is put reaches the packs, whoever dies or comes again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_ledger import FaultClass, case
from mooncake_driver import MISSING
from mooncake_packs import packed_versions
from mooncake_site import MooncakeSite

from snapd.attach.mooncake.files import create_segment_file
from snapd.attach.mooncake.record import SegmentRecord
from snapd.attach.mooncake.service import StoreService


def names(prefix: str, count: int) -> list[str]:
    return [f"{prefix}-{number}" for number in range(count)]


def flushed(site: MooncakeSite) -> None:
    """Everything put before this call is in a snapshot."""
    site.snapd.snapshot()


def session(site: MooncakeSite) -> str:
    return str(site.status()["store"].get("boot_id", ""))


def settled(site: MooncakeSite, after: str = "") -> None:
    """Wait until a session, another one than `after`, has everything back."""

    def done() -> bool:
        if site.snapd.ask("/readyz")[0] != 200:
            return False
        return bool(site.status()["store"].get("settled")) and session(site) != after

    site.until("attached and put back", done)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[MooncakeSite]:
    with MooncakeSite(tmp_path, segment_bytes=32 << 20, http="") as one:
        yield one


def test_what_clients_put_upsert_and_remove_is_on_disk_as_it_is(site: MooncakeSite) -> None:
    site.start()
    site.start_daemon()
    client = site.client()
    client.put_all(names("a", 300), size=5000)
    flushed(site)
    assert packed_versions(site.snapd.repository) == dict.fromkeys(names("a", 300), 1)
    # Of the same size an upsert writes over the bytes in place: same address, another version.
    assert set(client.upsert(names("a", 50), 2, size=5000)) == {0}
    assert set(client.remove(names("a", 300)[250:], force=True)) == {0}
    client.put_all(names("b", 100), size=64 << 10)
    flushed(site)
    expected = dict.fromkeys(names("a", 50), 2) | dict.fromkeys(names("a", 250)[50:], 1)
    expected |= dict.fromkeys(names("b", 100), 1)
    assert packed_versions(site.snapd.repository, (1, 2)) == expected
    client.remove_all(force=True)
    client.put_all(names("c", 10))
    flushed(site)
    assert packed_versions(site.snapd.repository) == dict.fromkeys(names("c", 10), 1)


def test_a_store_and_a_master_that_start_after_the_daemon(site: MooncakeSite) -> None:
    site.start_daemon(wait=False)
    site.until("the control socket answers", lambda: site.snapd.ask("/healthz")[0] == 200)
    assert "cannot reach" in site.snapd.ask("/readyz")[1] or site.snapd.ask("/readyz")[0] == 503
    site.start_master()
    time.sleep(0.5)
    assert site.snapd.ask("/readyz")[0] == 503
    site.start_store()
    settled(site)
    site.client().put_all(names("k", 20))
    flushed(site)
    assert len(packed_versions(site.snapd.repository)) == 20


def test_blocks_of_a_killed_store_that_no_pack_had_are_written_from_its_memory(
    tmp_path: Path,
) -> None:
    with (
        MooncakeSite(tmp_path, segment_bytes=32 << 20, http="", flush_sec=3600) as site,
        case(FaultClass.KILL, "Mooncake store: SIGKILL before a flush"),
    ):
        site.start()
        site.start_daemon()
        settled(site)
        site.client().put_all(names("k", 100))
        site.until(
            "seen", lambda: site.snapd.metric("mooncake_look_blocks_total", result="new") >= 100
        )
        site.kill_store()
        site.until("noticed", lambda: not site.status()["store"]["up"])
        site.start_store()
        site.until("attached again", lambda: site.status()["store"]["up"])
        site.until("written", lambda: len(packed_versions(site.snapd.repository)) == 100)
        assert set(packed_versions(site.snapd.repository).values()) == {1}


@pytest.mark.parametrize(
    "who",
    [
        "store",
        "master",
        *(pytest.param(who, marks=pytest.mark.long) for who in ("daemon", "store and master")),
        pytest.param("all", marks=pytest.mark.long),
    ],
)
def test_after_a_death_everything_durable_is_back_and_removed_stays_removed(
    site: MooncakeSite, who: str
) -> None:
    site.start()
    site.start_daemon()
    client = site.client()
    client.put_all(names("kept", 200))
    client.put_all(names("gone", 50))
    flushed(site)
    assert set(client.remove(names("gone", 50), force=True)) == {0}
    site.until("journaled", lambda: site.snapd.metric("removals_journaled_total") >= 50)
    client.close()
    before = session(site)
    with case(FaultClass.KILL, f"Mooncake {who}: SIGKILL and start"):
        if who in ("daemon", "all"):
            site.kill_daemon()
        if who in ("store", "store and master", "all"):
            site.kill_store()
        if who in ("master", "store and master", "all"):
            site.kill_master()
            site.start_master()
        if not site.stores:
            site.start_store()
        if who in ("daemon", "all"):
            site.start_daemon()
        settled(site, after=before)
        found = site.client().read(names("kept", 200) + names("gone", 50))
        assert found == dict.fromkeys(names("kept", 200), 1) | dict.fromkeys(
            names("gone", 50), MISSING
        )
        site.until("old files are deleted", lambda: len(site.shared_files()) == 1)


@pytest.mark.long
def test_a_daemon_killed_while_it_puts_back_goes_on_where_it_was(site: MooncakeSite) -> None:
    site.start()
    site.start_daemon()
    client = site.client()
    client.put_all(names("k", 200))
    client.close()
    flushed(site)
    site.kill_daemon()
    site.kill_store()
    site.wipe_shared_memory()
    site.start_store()
    with case(FaultClass.KILL, "daemon: SIGKILL while it puts back into Mooncake"):
        site.snapd.configure(io_bytes_per_sec_max=3 << 20)
        site.start_daemon(wait=False)
        site.until("half is back", lambda: 20 < len(site.keys()) < 180, 60)
        site.kill_daemon()
        site.snapd.configure(io_bytes_per_sec_max=0)
        site.start_daemon()
        settled(site)
        assert site.keys() == set(names("k", 200))
        assert set(site.client().read(names("k", 200)).values()) == {1}


@pytest.mark.long
def test_a_mount_that_nobody_finished_is_undone(site: MooncakeSite) -> None:
    """A daemon that is killed between the mount and the note of it leaves a segment that nobody
    would ever read: it is unmounted, and its file removed."""
    site.start()
    service = StoreService(site.store_url())
    file = create_segment_file(f"{site.stem}.segment", site.segment_bytes, group_shared=False)
    record = SegmentRecord(
        store_url=site.store_url(),
        segment_ids=(),
        base_addresses=(),
        sizes=(),
        client_id="",
        endpoint="",
        life_id=bytes(16),
        counters={},
        mounted_at=0.0,
    )
    with case(FaultClass.KILL, "daemon: between a mount and its record"):
        file.write_record(record)
        service.mount(file.name, file.size_bytes)
        file.close()
        client = site.client()
        client.put_all(names("orphan", 10))
        site.start_daemon()
        settled(site)
        assert len(site.segments()) == 1
        assert len(site.shared_files()) == 1
        assert site.shared_files() != [Path(file.path)]
        client.put_all(names("k", 10))
        flushed(site)
        assert packed_versions(site.snapd.repository) == dict.fromkeys(names("k", 10), 1)
    service.close()


def test_nothing_comes_back_that_was_removed_while_the_daemon_was_away(site: MooncakeSite) -> None:
    site.start()
    site.start_daemon()
    client = site.client()
    client.put_all(names("k", 100))
    flushed(site)
    files = site.shared_files()
    with case(FaultClass.KILL, "daemon beside Mooncake: SIGKILL, and removals while it is away"):
        site.kill_daemon()
        assert set(client.remove(names("k", 100)[:40], force=True)) == {0}
        client.put_all(names("new", 10))
        site.start_daemon()
        settled(site)
        assert site.shared_files() == files  # adopted: the store was left alone
        assert site.keys() == {*names("k", 100)[40:], *names("new", 10)}
        flushed(site)
        # Nor later, when a change of life has everything put back that is live on disk.
        before = session(site)
        site.kill_store()
        site.start_store()
        settled(site, after=before)
        assert site.keys() == {*names("k", 100)[40:], *names("new", 10)}
