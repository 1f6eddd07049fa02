"""Lives that are hard to tell apart: a master that dies twice, or is used before snapd has looked
at it, and a store that the master forgot and that came back as it was."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_ledger import FaultClass, case
from mooncake_driver import MISSING
from mooncake_site import MooncakeSite

KEYS = [f"key-{number}" for number in range(100)]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[MooncakeSite]:
    with MooncakeSite(tmp_path, segment_bytes=16 << 20, http="") as one:
        one.start()
        one.start_daemon()
        client = one.client()
        client.put_all(KEYS)
        client.close()
        one.snapd.snapshot()
        yield one


def session(site: MooncakeSite) -> str:
    return str(site.status()["store"].get("boot_id", ""))


def put_back(site: MooncakeSite, before: str) -> None:
    """Wait until another session than this one is complete."""

    def done() -> bool:
        store = site.status()["store"]
        ready = site.snapd.ask("/readyz")[0] == 200
        return ready and store.get("settled", False) and store["boot_id"] != before

    site.until("put back", done, 60.0)


def test_what_is_removed_in_a_new_life_before_the_first_look_stays_removed(
    site: MooncakeSite,
) -> None:
    before = session(site)
    assert site.snapd.daemon is not None
    with case(FaultClass.STOP, "snapd, while Mooncake's master dies and its keys are removed"):
        site.kill_master()
        site.snapd.daemon.send_signal(signal.SIGSTOP)
        site.start_master()
        client = site.client()
        assert set(client.remove(KEYS[:10], force=True)) == {-704}
        site.snapd.daemon.send_signal(signal.SIGCONT)
        put_back(site, before)
        assert set(client.read(KEYS[:10]).values()) == {MISSING}


def test_a_store_that_the_master_forgot_is_filled_again(site: MooncakeSite) -> None:
    before = session(site)
    store = site.stores[0].pid
    with case(FaultClass.STOP, "Mooncake store, just long enough to be forgotten by the master"):
        os.kill(store, signal.SIGSTOP)
        site.until("forgotten", lambda: not site.segments())
        os.kill(store, signal.SIGCONT)
        put_back(site, before)
        assert set(site.client().read(KEYS).values()) == {1}


def test_what_is_put_and_removed_between_two_looks_does_not_leave_what_waited(
    tmp_path: Path,
) -> None:
    with (
        MooncakeSite(
            tmp_path,
            segment_bytes=16 << 20,
            http="",
            poll_sec=0.5,
            io_bytes_per_sec_max=1_000_000,  # so that the last keys wait for some seconds
        ) as site,
        case(FaultClass.KILL, "store of Mooncake, and waiting keys put and removed after it"),
    ):
        site.start()
        site.start_daemon()
        site.client().put_all(KEYS)
        site.snapd.snapshot()
        before = session(site)
        site.kill_store()
        site.start_store()
        site.until("a new session", lambda: session(site) not in ("", before), 30.0)
        client = site.client()
        # The dead store's keys are listed until client_ttl; then they wait, the coldest longest.
        site.until("waiting", lambda: not any(client.exist(KEYS[-10:]).values()), 20.0)
        waiting = KEYS[-10:]
        time.sleep(2)  # until two looks have seen that the dead segment is gone
        assert set(client.upsert(waiting, version=2)) == {0}
        assert set(client.remove(waiting, force=True)) == {0}
        put_back(site, before)
        assert set(client.read(waiting, (1, 2)).values()) == {MISSING}


@pytest.mark.long
@pytest.mark.parametrize("line", ["mounted a segment", "looked at", "attached", "serving every"])
@pytest.mark.parametrize("party", ["master", "store"])
def test_a_second_death_at_once_loses_nothing(site: MooncakeSite, line: str, party: str) -> None:
    """The new session dies as soon as it has come so far."""
    before, seen = session(site), site.snapd.logged(line)
    with case(FaultClass.KILL, f"Mooncake {party}, twice: the second time at '{line}'"):
        for _ in range(2):
            if party == "master":
                site.kill_master()
                site.start_master()
            else:
                site.kill_store()
                site.start_store()
            site.until(line, lambda: site.snapd.logged(line) > seen)
        put_back(site, before)
        assert set(site.client().read(KEYS).values()) == {1}
