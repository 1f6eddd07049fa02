"""SIGSTOP past every deadline, then SIGCONT, of each kind of process: the late one does no harm."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon_site import block
from fault_ledger import FaultClass, case
from real_site import RealSite, wait_for

from snapd.wire.codes import ReturnCode

PAST_SECONDS = 6.0
"""Longer than a client waits for an answer (5 s), and the daemon for the store's."""
LONG = pytest.mark.long


@pytest.fixture
def site(tmp_path: Path) -> Iterator[RealSite]:
    with RealSite(
        tmp_path / "site", seed=5, lease_sec=0.2, load={"busy_ratio": 0.2}, flush_sec=0.1
    ) as site:
        site.start()
        for number in range(2):
            site.start_client(number)
        wait_for(lambda: site.shared.moved > 60, 20.0, 0.01)
        yield site


def in_flush(site: RealSite) -> bool:
    return wait_for(
        lambda: any(p.name.endswith(".tmp") for p in (site.repository / "packs").iterdir()), 3.0
    )


@LONG
@pytest.mark.parametrize("seconds", [1.0, PAST_SECONDS])
@pytest.mark.parametrize("who", ["store", "daemon"])
def test_a_server_that_stood_still_goes_on_where_it_was(
    site: RealSite, who: str, seconds: float
) -> None:
    process = site.store if who == "store" else site.daemon
    assert process is not None
    promise = site.committed()
    when = "in a flush" if in_flush(site) else "between flushes"
    with case(FaultClass.STOP, f"{who} {when}, {seconds:g} s"):
        with site.stopped(process):
            time.sleep(seconds)
        site.wait_ready()
        site.audit(promise)
        site.check_clients()
        before = site.shared.moved
        site.until("the load works", lambda: site.shared.moved > before + 20)
        assert site.metric("blocks_quarantined_total") == 0


def test_a_daemon_that_stands_still_keeps_its_lock_and_nobody_takes_over(site: RealSite) -> None:
    """The kernel holds it for the stopped process: the second is refused, so that the late journal
    and manifest of the first find no other writer's files."""
    assert site.daemon is not None
    promise = site.committed()
    with case(FaultClass.STOP, "daemon, while another one tries to take over"):
        in_flush(site)
        with site.stopped(site.daemon):
            second = site._spawn("snapd.daemon")
            assert second.wait(20) == 5
            assert site.logged("is locked by another process") == 1
        site.wait_ready()
        site.audit(promise)


@LONG
@pytest.mark.parametrize("seconds", [0.5, PAST_SECONDS])
def test_a_daemon_stopped_in_a_fill_publishes_nothing_that_is_not_cold_any_more(
    site: RealSite, seconds: float
) -> None:
    site.configure(io_bytes_per_sec_max=300_000)
    promise = site.committed()
    site.power_cut()
    site.start()
    site.until("fills", lambda: site.status()["warmup"]["handled"] > 3)
    assert site.daemon is not None
    with case(FaultClass.STOP, f"daemon in a fill, {seconds:g} s"):
        with site.stopped(site.daemon):
            time.sleep(seconds)  # the load upserts and removes what is being filled
            site.kill_store()
            site.start_store()
        site.wait_ready()
        site.audit(promise)
        assert site.metric("blocks_quarantined_total") == 0


@pytest.mark.parametrize("store", [pytest.param("serves on", marks=LONG), "is killed meanwhile"])
def test_a_client_that_stood_still_changes_no_other_block(site: RealSite, store: str) -> None:
    """In the middle of whatever it did, with the store's memory under its hands."""
    held = site.held_now()
    with case(FaultClass.STOP, f"client at work, the store {store}"):
        wait_for(lambda: bool((site.shared.ledger._claimed[:] == 1).any()), 2.0)
        with site.stopped(site.load_processes[0]):
            time.sleep(0.5)
            if store == "is killed meanwhile":
                site.kill_store()
                site.start_store()
            site.wait_ready()
            site.audit(held)
        site.audit(held)
        site.check_clients()


@LONG
def test_a_verify_that_stands_still_delays_pruning_and_nothing_else(site: RealSite) -> None:
    """It holds a pin: packs wait for it, commits do not."""
    verify = subprocess.Popen(
        [str(Path(sys.executable).parent / "snapctl"), "verify", "--all"],
        env=site.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        with case(FaultClass.STOP, "snapctl verify with a pin"):
            time.sleep(0.6)
            verify.send_signal(signal.SIGSTOP)
            first = site.snapshot()["generation"]
            for _ in range(6):
                assert site.snapshot()["generation"] > first
            promise = site.committed()
            verify.send_signal(signal.SIGCONT)
            assert verify.wait(60) == 0, "what it read was there to the end"
            site.snapshot()
            assert len(list((site.repository / "manifests").iterdir())) <= 5
            site.audit(promise)
    finally:
        verify.kill()
        verify.wait()


@LONG
def test_everything_stands_still_and_goes_on(site: RealSite) -> None:
    """As when a laptop or a virtual machine sleeps."""
    promise = site.committed()
    everybody = [site.store, site.daemon, *site.load_processes.values()]
    with case(FaultClass.STOP, "all processes at once"):
        for process in everybody:
            assert process is not None
            process.send_signal(signal.SIGSTOP)
        time.sleep(2 * PAST_SECONDS)
        for process in reversed(everybody):
            assert process is not None
            process.send_signal(signal.SIGCONT)
        site.wait_ready()
        site.audit(promise)
        site.check_clients()
        assert site.client().put("after", block("after")) in {0, ReturnCode.OBJECT_ALREADY_EXISTS}
