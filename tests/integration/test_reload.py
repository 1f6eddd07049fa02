"""SIGHUP: settings that change while the daemon runs, and ones that are wrong."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon_site import DaemonSite

FILE = """
snapshot_interval_sec = {interval}
log_level = "{level}"
{more}
"""


SNAPD = Path(sys.executable).with_name("snapd")


def environment(site: DaemonSite) -> dict[str, str]:
    """Without what the file is to say: the environment would win over it."""
    found = site.environment()
    for name in ("SNAPD_SNAPSHOT_INTERVAL_SEC", "SNAPD_FLUSH_SEC"):
        found.pop(name)
    return found


@pytest.fixture
def site(tmp_path: Path) -> Iterator[DaemonSite]:
    with DaemonSite(tmp_path / "site") as made:
        write(made)
        made.start_store()
        with made.log.open("ab") as log:
            made.daemon = subprocess.Popen(
                [SNAPD, "run", "--config", made.directory / "snapd.toml"],
                env=environment(made),
                stdout=log,
                stderr=log,
            )
        made.wait_ready()
        yield made


def write(site: DaemonSite, interval: float = 300, level: str = "info", more: str = "") -> None:
    text = FILE.format(interval=interval, level=level, more=more)
    (site.directory / "snapd.toml").write_text(text)


def reload(site: DaemonSite, told: str) -> None:
    before = site.logged(told)
    assert site.daemon is not None
    site.daemon.send_signal(signal.SIGHUP)
    site.until("reloaded", lambda: site.logged(told) > before)


def test_another_interval_takes_effect_at_once(site: DaemonSite) -> None:
    assert site.metric("snapshot_total", result="success") == 0
    write(site, interval=0.2)
    reload(site, 'msg="read the settings again" changed=snapshot_interval_sec')
    site.until("snapshots", lambda: site.metric("snapshot_total", result="success") > 2)
    assert site.metric("snapshot_interval_seconds") == 0.2
    assert site.metric("config_last_reload_successful") == 1


@pytest.mark.parametrize(
    "broken",
    [
        {"more": "flush_sec = -1"},
        {"more": "no_such_setting = 1"},
        {"more": "this is no TOML"},
        {"more": "repository_bytes_max = 5"},
    ],
)
def test_a_broken_file_changes_nothing(site: DaemonSite, broken: dict[str, str]) -> None:
    write(site, interval=0.2, **broken)
    reload(site, "kept the settings, the new ones are wrong")
    assert site.metric("config_last_reload_successful") == 0
    assert site.metric("snapshot_interval_seconds") == 300
    assert site.ask("/readyz")[0] == 200
    write(site, interval=400)
    reload(site, "read the settings again")
    assert site.metric("config_last_reload_successful") == 1
    assert site.metric("snapshot_interval_seconds") == 400


def test_what_needs_a_restart_is_said(site: DaemonSite) -> None:
    write(site, more="retain = 9")
    reload(site, 'msg="settings changed that need a restart of the daemon" settings=retain')
    assert site.metric("config_last_reload_successful") == 1
