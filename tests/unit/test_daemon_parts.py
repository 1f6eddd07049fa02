"""The small parts of the daemon: pacing, notification, backing off, failing workers."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from pathlib import Path

import pytest

from snapd.attach.backoff import Backoff
from snapd.config import Settings
from snapd.config.load import load_settings
from snapd.config.notify import notify, watchdog_seconds
from snapd.daemon.pacer import Pacer
from snapd.daemon.supervise import store_environment, store_process_id
from snapd.daemon.workers import Workers
from snapd.errors import DiskError


def test_a_pacer_holds_the_rate_and_lets_go_when_the_daemon_stops() -> None:
    stopping = threading.Event()
    pace = Pacer(1_000_000, stopping)
    started = time.monotonic()
    pace(250_000)  # what may be saved up
    pace(100_000)
    assert 0.08 < time.monotonic() - started < 0.5
    threading.Timer(0.1, stopping.set).start()
    started = time.monotonic()
    pace(100_000_000)
    assert time.monotonic() - started < 1.0


def test_systemd_is_told_and_a_missing_one_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        notify("READY=1")
        assert manager.recv(100) == b"READY=1"
    os.unlink(tmp_path / "notify")
    notify("STOPPING=1")
    monkeypatch.delenv("NOTIFY_SOCKET")
    notify("STOPPING=1")


def test_the_watchdog_is_fed_at_half_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    assert watchdog_seconds() is None
    monkeypatch.setenv("WATCHDOG_USEC", "3000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert watchdog_seconds() == 1.5
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert watchdog_seconds() is None


def test_a_run_of_failures_is_logged_once_and_so_is_its_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    backoff = Backoff(logging.getLogger("snapd.test"), "flush", first_seconds=1, most_seconds=5)
    waits = [backoff.failed(DiskError("no space left")) for _ in range(5)]
    assert waits == [1, 2, 4, 5, 5]
    backoff.succeeded()
    backoff.succeeded()
    assert [record.getMessage() for record in caplog.records] == ["cannot flush", "can flush again"]
    assert backoff.error == ""


def test_a_worker_that_fails_stops_the_daemon_and_says_which() -> None:
    stopping = threading.Event()
    workers = Workers(on_failure=stopping.set)

    def broken() -> None:
        raise RuntimeError("a defect")

    workers.start("broken", broken)
    workers.join("broken", 5.0)
    assert stopping.is_set()
    assert workers.failed == "broken"
    assert isinstance(workers.error, RuntimeError)


def test_a_supervised_store_gets_the_same_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(
        persistent_path="/somewhere", flush_sec=0.25, enable_warmup=False, lease_sec=3.5
    )
    monkeypatch.setenv("SNAPD_FLUSH_SEC", "9")
    assert load_settings(None, store_environment(settings)) == settings


def test_nobody_listens_at_a_stale_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "store.sock")
    assert store_process_id(path) is None
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen()
        assert store_process_id(path) == os.getpid()
    assert store_process_id(path) is None
