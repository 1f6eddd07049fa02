"""Removals on a disk that somebody else has filled: durable as long as the journal's ballast lasts,
and then an answer that says so, for as long as there is no room. Real processes on a tmpfs."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon_site import DaemonSite, block, put_all, wrong_keys
from fault_ledger import FaultClass, case
from real_disks import filled, memory_disk

from snapd.wire.codes import ReturnCode

KEYS = [f"key-{number}" for number in range(70)]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[DaemonSite]:
    # A budget of 16 MiB has a ballast of 256 KiB, enough for about 30 single removals.
    with (
        memory_disk(tmp_path / "site" / "repository", "size=64m"),
        DaemonSite(
            tmp_path / "site",
            snapshot_interval_sec=0.5,
            flush_sec=0.1,
            repository_bytes_max="16mb",
        ) as site,
    ):
        site.start()
        put_all(site.client(), KEYS)
        site.snapshot()
        assert (site.repository / "journal" / "ballast").stat().st_size == 256 * 1024
        time.sleep(0.1)  # until the leases are over
        yield site


@contextlib.contextmanager
def topped_up(directory: Path) -> Iterator[None]:
    """Whoever fills the disk takes what becomes free as well."""

    def fill() -> None:
        with (directory / "more").open("ab", buffering=0) as file:
            while not done.wait(0.002):
                with contextlib.suppress(OSError):
                    file.write(bytes(4096))

    done = threading.Event()
    filler = threading.Thread(target=fill)
    filler.start()
    try:
        yield
    finally:
        done.set()
        filler.join()
        (directory / "more").unlink()


def restarted_from_disk(site: DaemonSite) -> None:
    """A power cut: what was in memory is gone."""
    site.kill_daemon()
    site.kill_store()
    site.wipe_segment()
    site.start()


def test_removed_and_replaced_on_a_full_disk_is_so_for_good(site: DaemonSite) -> None:
    client = site.client()
    with case(FaultClass.FULL, "tmpfs filled by others: remove and upsert, then a power cut"):
        with filled(site.repository):
            assert [client.remove(key) for key in KEYS[:10]] == [0] * 10
            assert client.upsert(KEYS[10], block("other bytes", 2)) == 0
            assert not (site.repository / "journal" / "ballast").exists()
            site.kill_daemon()
            site.kill_store()
            site.wipe_segment()
        site.start()
        client = site.client()
        assert [key for key in KEYS[:11] if client.is_exist(key)] == []
        assert wrong_keys(client, KEYS[11:]) == []
        site.snapshot()
        site.until("ballast", (site.repository / "journal" / "ballast").exists)


@pytest.mark.long
def test_remove_all_on_a_full_disk_is_so_for_good(site: DaemonSite) -> None:
    with case(FaultClass.FULL, "tmpfs filled by others: remove_all, then a power cut"):
        with filled(site.repository):
            assert site.client().remove_all() == len(KEYS)
            site.kill_daemon()
            site.kill_store()
            site.wipe_segment()
        site.start()
        assert [key for key in KEYS if site.client().is_exist(key)] == []


def test_when_the_ballast_is_used_up_it_is_said_until_there_is_room(site: DaemonSite) -> None:
    client, codes = site.client(), []
    with case(FaultClass.FULL, "tmpfs filled by others until removals are refused, then freed"):
        with filled(site.repository), topped_up(site.repository):
            for key in KEYS[:60]:
                codes.append(client.remove(key))
                if codes[-1]:
                    break
            assert codes[:20] == [0] * 20
            assert codes[-1] == ReturnCode.WRITE_FAIL, codes
            began = time.monotonic()
            assert client.remove(KEYS[60]) == ReturnCode.WRITE_FAIL
            assert client.remove("never there") == ReturnCode.WRITE_FAIL
            assert client.upsert(KEYS[61], block("other bytes", 2)) == ReturnCode.WRITE_FAIL
            assert time.monotonic() - began < 2.0, "nobody waits long any more"
            began = time.monotonic()
            assert client.get(KEYS[61]) == block("other bytes", 2), "it stands in memory"
            assert client.get(KEYS[60]) == b""
            put_all(client, ["new"])
            assert client.get("new") == block("new")
            assert time.monotonic() - began < 1.0
            assert site.logged("cannot journal removals") == 1
            assert site.logged("removals are not durable in time") == 1
        site.until("durable again", lambda: client.remove("never there") == -704)
        restarted_from_disk(site)
        client, gone = site.client(), [*KEYS[: len(codes)], KEYS[60]]
        assert [key for key in gone if client.is_exist(key)] == []
        assert client.get(KEYS[61]) in (b"", block("other bytes", 2))
        assert wrong_keys(client, KEYS[62:]) == []
