"""The systemd units: checked by systemd's own tools, and run by a real systemd."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from systemd_machine import UNITS, SystemdMachine

EXPOSURE_MAX = 2.0
DAEMON, STORE = "mooncake-snapd.service", "mooncake-snapd-store.service"
SEGMENT = "/dev/shm/mooncake-snapd.segment"
SETTINGS = """
global_segment_size = "32mb"
flush_sec = 0.2
"""
PUT = """
from snapd.client import MooncakeDistributedStore
store = MooncakeDistributedStore()
socket = "unix:/run/mooncake-snapd/store.sock"
assert store.setup("localhost", "P2PHANDSHAKE", 0, 0, "tcp", "", socket) == 0
names, values = [f"unit-{n}" for n in range(64)], [bytes([n]) * 5000 for n in range(64)]
assert store.put_batch(names, values) == 0
"""
READ = """
from snapd.client import MooncakeDistributedStore
store = MooncakeDistributedStore()
socket = "unix:/run/mooncake-snapd/store.sock"
assert store.setup("localhost", "P2PHANDSHAKE", 0, 0, "tcp", "", socket) == 0
found = store.get_batch([f"unit-{n}" for n in range(64)])
print(sum(value == bytes([n]) * 5000 for n, value in enumerate(found)))
"""


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[SystemdMachine]:
    with SystemdMachine(tmp_path) as made:
        made.write("/etc/mooncake-snapd/snapd.toml", SETTINGS)
        made.drop_in(DAEMON, RestartSec="100ms")
        made.drop_in(STORE, RestartSec="100ms")
        yield made


@pytest.mark.parametrize("unit", [DAEMON, STORE])
def test_the_sandbox_leaves_little_exposed(unit: str) -> None:
    said = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", UNITS / unit],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", said)
    assert found, said
    assert float(found[1]) <= EXPOSURE_MAX


def test_the_stop_timeout_holds_the_last_flush() -> None:
    text = (UNITS / DAEMON).read_text()
    found = re.search(r"^TimeoutStopSec=(\d+)$", text, re.MULTILINE)
    assert found
    assert int(found[1]) >= 25 + 10


def test_a_life_under_systemd(machine: SystemdMachine) -> None:
    assert machine.ask("systemd-analyze", "verify", DAEMON, STORE) == ""
    machine.do("systemctl", "start", STORE, DAEMON)
    assert machine.property(STORE, "StatusText") == "serving"
    assert machine.property(DAEMON, "StatusText") == "running"
    machine.python(PUT)

    # Both stop, the daemon first; what they leave in shared memory and on disk stays.
    machine.do("systemctl", "stop", DAEMON, STORE)
    assert machine.property(DAEMON, "Result") == "success"
    assert machine.property(STORE, "Result") == "success"
    assert machine.path(SEGMENT).stat().st_size > 32 << 20
    machine.do("systemctl", "start", STORE, DAEMON)
    assert "adopted=64" in machine.journal(STORE)
    assert machine.python(READ).strip() == "64"

    # Without the segment, from the disk.
    machine.do("systemctl", "stop", DAEMON, STORE)
    machine.path(SEGMENT).unlink()
    machine.do("systemctl", "start", STORE, DAEMON)
    machine.until(
        "everything is served",
        lambda: "Warm up from persistent path: /var/lib/mooncake-snapd" in machine.journal(DAEMON),
    )
    machine.until("all read", lambda: machine.python(READ).strip() == "64")


def test_a_daemon_that_hangs_is_started_again(machine: SystemdMachine) -> None:
    machine.drop_in(DAEMON, WatchdogSec=3, RestartSec="100ms")
    machine.do("systemctl", "start", STORE, DAEMON)
    first = machine.property(DAEMON, "MainPID")
    machine.do("systemctl", "kill", "--signal=SIGSTOP", DAEMON)
    machine.until("another one", lambda: machine.property(DAEMON, "NRestarts") != "0")
    machine.until("it runs", lambda: machine.property(DAEMON, "SubState") == "running")
    assert machine.property(DAEMON, "MainPID") != first
    machine.do("systemctl", "kill", "--signal=SIGKILL", STORE)
    machine.until("it runs", lambda: machine.property(STORE, "NRestarts") == "1")


def test_a_reload_takes_effect(machine: SystemdMachine) -> None:
    machine.do("systemctl", "start", STORE, DAEMON)
    machine.write("/etc/mooncake-snapd/snapd.toml", SETTINGS + 'log_level = "debug"\n')
    machine.do("systemctl", "reload", DAEMON)
    machine.until("reloaded", lambda: "changed=log_level" in machine.journal(DAEMON))
    assert machine.property(DAEMON, "NRestarts") == "0"


def test_a_bad_setting_is_not_tried_again(machine: SystemdMachine) -> None:
    machine.write("/etc/mooncake-snapd/snapd.toml", "flush_sec = -1\n")
    machine.ask("systemctl", "start", DAEMON)
    assert machine.property(DAEMON, "ActiveState") == "failed"
    assert machine.property(DAEMON, "ExecMainStatus") == "2"
    assert "flush_sec" in machine.journal(DAEMON)
