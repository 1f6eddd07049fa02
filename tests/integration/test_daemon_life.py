"""The daemon's life against real processes: start, stop, adopt, refuse, report."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon_site import DaemonSite, block, put_all, wrong_keys

KEYS = [f"key-{number}" for number in range(60)]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[DaemonSite]:
    with DaemonSite(tmp_path) as site:
        yield site


def test_what_was_put_comes_back_after_a_power_cut(site: DaemonSite) -> None:
    site.start()
    put_all(site.client(), KEYS)
    site.flushed()
    site.kill_daemon()
    site.kill_store()
    site.wipe_segment()
    site.start()
    client = site.client()
    assert client.batch_is_exist(KEYS) == [1] * len(KEYS)
    assert wrong_keys(client, KEYS) == []
    line = f"Warm up from persistent path: {site.repository}, found {len(KEYS)} cached entries."
    assert site.logged(line) == 1


def test_sigterm_flushes_what_the_interval_has_not(site: DaemonSite) -> None:
    site.configure(flush_sec=3600, snapshot_interval_sec=3600)
    site.start()
    put_all(site.client(), KEYS)
    assert site.stop_daemon() == 0
    site.kill_store()
    site.wipe_segment()
    site.start()
    assert site.status()["repository"]["recovered_from"] == "manifest"
    assert wrong_keys(site.client(), KEYS) == []


def test_sigterm_of_a_store_that_died_first_still_flushes_its_segment(site: DaemonSite) -> None:
    site.configure(flush_sec=3600, snapshot_interval_sec=3600)
    site.start()
    put_all(site.client(), KEYS)
    site.stop_store()
    assert site.stop_daemon() == 0
    site.wipe_segment()
    site.start()
    assert wrong_keys(site.client(), KEYS) == []


def test_a_snapshot_on_request_writes_what_is_new_and_then_only_a_manifest(
    site: DaemonSite,
) -> None:
    site.configure(flush_sec=3600, snapshot_interval_sec=3600)
    site.start()
    put_all(site.client(), KEYS)
    first = site.snapshot()
    assert first["blocks"] == len(KEYS)
    assert first["bytes_written"] > 5000 * len(KEYS)
    second = site.snapshot()
    assert second["generation"] == first["generation"] + 1
    assert second["blocks"] == len(KEYS)
    assert second["bytes_written"] < 64 * 1024
    code, body = site.ask("/generations")
    assert code == 200
    listed = json.loads(body)["generations"]
    assert [one["generation"] for one in listed] == [second["generation"], first["generation"]]
    assert site.metric("snapshot_total", result="success") == 2
    assert site.metric("snapshot_blocks") == len(KEYS)
    assert time.time() - site.metric("snapshot_last_success_timestamp_seconds") < 60


def test_the_age_of_the_last_snapshot_survives_a_restart(site: DaemonSite) -> None:
    site.configure(snapshot_interval_sec=3600)
    site.start()
    site.snapshot()
    before = site.metric("snapshot_last_success_timestamp_seconds")
    site.kill_daemon()
    site.start_daemon()
    assert abs(site.metric("snapshot_last_success_timestamp_seconds") - before) < 0.5


def test_a_daemon_without_a_store_is_alive_and_says_why_it_is_not_ready(site: DaemonSite) -> None:
    site.start_daemon(wait=False)
    site.until("alive", lambda: site.ask("/healthz")[0] == 200)
    site.until("told why", lambda: "store.sock" in site.ask("/readyz")[1])
    code, reason = site.ask("/readyz")
    assert code == 503
    assert "away" in reason
    assert site.metric("store_up") == 0
    site.start_store()
    site.wait_ready()
    assert site.metric("store_up") == 1
    assert site.metric("ready_duration_seconds") > 0


def test_the_control_socket_is_for_its_owner_only(site: DaemonSite) -> None:
    site.start()
    mode = os.stat(site.runtime / "snapd.sock").st_mode
    assert stat.S_IMODE(mode) == 0o600
    assert site.ask("/nothing")[0] == 404
    assert site.ask("/snapshot")[0] == 405


def test_a_second_daemon_is_refused_and_the_first_goes_on(site: DaemonSite) -> None:
    site.start()
    second = site._spawn("snapd.daemon")
    assert second.wait(20) == 5
    assert site.ask("/readyz")[0] == 200
    assert site.logged("lock") >= 1


@pytest.mark.parametrize(
    ("settings", "code", "word"),
    [
        ({"snapshot_interval_sec": "0"}, 2, "snapshot_interval_sec"),
        ({"snapshot_interval_sec": "abc"}, 2, "snapshot_interval_sec"),
        ({"http": "nonsense"}, 2, "http"),
        ({"persistent_path": "/proc/no/such"}, 1, "/proc/no"),
        ({"runtime_dir": "/proc/no/such"}, 2, "runtime_dir"),
        ({"store": "redis"}, 2, "store"),
    ],
)
def test_a_setting_that_cannot_work_is_named_and_ends_the_daemon(
    site: DaemonSite, settings: dict[str, object], code: int, word: str
) -> None:
    site.configure(**settings)
    process = site._spawn("snapd.daemon")
    assert process.wait(20) == code
    last = site.log.read_text().splitlines()[-1]
    assert word in last
    assert "Traceback" not in site.log.read_text()


def test_switching_warm_up_off_drops_nothing_and_still_loads_on_demand(site: DaemonSite) -> None:
    site.start()
    put_all(site.client(), KEYS)
    site.flushed()
    site.stop_daemon()
    site.kill_store()
    site.wipe_segment()
    site.configure(enable_warmup="false")
    site.start()
    client = site.client()
    assert wrong_keys(client, KEYS[:5]) == []
    assert site.metric("demand_load_blocks_total", result="loaded") == 5
    assert site.status()["store"]["counters"]["cold_blocks"] >= len(KEYS) - 5
    site.snapshot()
    assert site.metric("snapshot_blocks") == len(KEYS)
    assert wrong_keys(client, KEYS) == []


def test_with_store_starts_it_adopts_it_and_stops_it(site: DaemonSite) -> None:
    site.start_daemon("--with-store")
    first = site.store_process()
    put_all(site.client(), KEYS)
    site.flushed()
    site.kill_daemon()
    assert site.store_process() == first, "the store survives its daemon"
    site.start_daemon("--with-store")
    assert site.store_process() == first, "and is adopted by the next"
    assert wrong_keys(site.client(), KEYS) == []
    assert first is not None
    os.kill(first, signal.SIGKILL)
    site.until("restarted", lambda: site.store_process() not in {None, first})
    site.wait_ready()
    assert wrong_keys(site.client(), KEYS) == []
    assert site.stop_daemon() == 0
    assert site.store_process() is None


def test_a_daemon_that_cannot_start_leaves_the_store_of_another_alone(site: DaemonSite) -> None:
    site.start_daemon("--with-store")
    store = site.store_process()
    refused = site._spawn("snapd.daemon", "--with-store")
    assert refused.wait(20) == 5
    site.configure(persistent_path=site.directory / "other", http="127.0.0.1:nonsense")
    unusable = site._spawn("snapd.daemon", "--with-store")
    assert unusable.wait(20) == 2
    assert site.store_process() == store
    assert site.ask("/readyz")[0] == 200


def test_with_store_sigterm_makes_the_very_last_put_durable(site: DaemonSite) -> None:
    site.configure(flush_sec=3600, snapshot_interval_sec=3600)
    site.start_daemon("--with-store")
    put_all(site.client(), KEYS)
    assert site.stop_daemon() == 0
    site.wipe_segment()
    site.start_daemon("--with-store")
    assert wrong_keys(site.client(), KEYS) == []


def test_only_what_changed_is_written_and_returning_bytes_are_not(site: DaemonSite) -> None:
    site.configure(flush_sec=3600, snapshot_interval_sec=3600)
    site.start()
    client = site.client()
    put_all(client, KEYS)
    site.snapshot()
    assert client.upsert(KEYS[0], block(KEYS[0])) == 0  # the same bytes again
    assert client.upsert(KEYS[1], block(KEYS[1], 2)) == 0
    answer = site.snapshot()
    assert answer["blocks"] == len(KEYS)
    assert site.metric("flush_blocks_total") == len(KEYS) + 1


def test_systemd_hears_of_start_and_stop(site: DaemonSite, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(20)
        site.start_store()
        os.environ["NOTIFY_SOCKET"] = str(tmp_path / "notify")
        try:
            site.start_daemon()
        finally:
            del os.environ["NOTIFY_SOCKET"]
        assert manager.recv(200).startswith(b"READY=1")
        assert site.stop_daemon() == 0
        heard = b""
        while b"STOPPING=1" not in heard:
            heard = manager.recv(200)


def test_paced_flushes_keep_to_the_limit(site: DaemonSite) -> None:
    site.configure(io_bytes_per_sec_max=500_000, flush_sec=0.1, snapshot_interval_sec=3600)
    site.start()
    client = site.client()
    keys = [f"large-{number}" for number in range(10)]
    started = time.monotonic()
    for key in keys:
        assert client.put(key, block(key, size=100_000)) == 0
    site.until("written", lambda: site.metric("flush_blocks_total") == len(keys))
    assert time.monotonic() - started > (1_000_000 - 250_000) / 500_000
