"""A site's processes: started apart from the machine's own snapd, and gone when it is left."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest

from snapd.drill.processes import DrillError, Process, Site, SiteSettings

SETTINGS = SiteSettings(
    segment_bytes=16 << 20,
    segment_blocks_max=1000,
    flush_seconds=0.25,
    snapshot_seconds=2.0,
    get_wait_seconds=1.0,
)
SLEEPER = ["-c", "import time; print('asleep', flush=True); time.sleep(600)"]


def start(path: Path, arguments: list[str]) -> Process:
    return Process("sleeper", arguments, dict(os.environ), path / "sleeper.log")


def test_a_process_that_does_not_end_is_named_with_the_end_of_its_log(tmp_path: Path) -> None:
    process = start(tmp_path, SLEEPER)
    try:
        while "asleep" not in process.log.read_text():
            process.check_alive()
        with pytest.raises(DrillError, match=r"sleeper did not end within 0.05 s\n.*asleep"):
            process.wait(0.05)
    finally:
        process.kill()
    assert process.exit_code == -signal.SIGKILL


def test_a_process_that_ended_early_is_noticed(tmp_path: Path) -> None:
    process = start(tmp_path, ["-c", "raise SystemExit('out of order')"])
    assert process.wait(20) == 1
    with pytest.raises(DrillError, match=r"ended with exit code 1\n.*out of order"):
        process.check_alive()


def test_settings_of_the_shell_do_not_reach_the_site(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SNAPD_CODEC", "zstd")
    monkeypatch.setenv("MOONCAKE_STORE_PERSISTENT_PATH", "/precious")
    monkeypatch.setenv("UNRELATED", "kept")
    with Site(tmp_path / "drill-site", SETTINGS) as site:
        environment = site.environment()
    assert "SNAPD_CODEC" not in environment
    assert environment["MOONCAKE_STORE_PERSISTENT_PATH"] == str(tmp_path / "drill-site/repository")
    assert environment["SNAPD_FLUSH_SEC"] == "0.25"
    assert environment["UNRELATED"] == "kept"


def test_leaving_a_site_kills_and_removes_everything(tmp_path: Path) -> None:
    def fail_inside() -> None:
        with Site(tmp_path / "drill-site", SETTINGS) as site:
            site.segment.write_bytes(b"blocks")
            site.clients.append(start(site.directory, SLEEPER))
            site.store = start(site.directory, SLEEPER)
            pids.extend((site.clients[0].pid, site.store.pid))
            segments.append(site.segment)
            raise KeyboardInterrupt

    pids: list[int] = []
    segments: list[Path] = []
    with pytest.raises(KeyboardInterrupt):
        fail_inside()
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert not segments[0].exists()
    assert not (tmp_path / "drill-site").exists()


def test_a_kept_site_keeps_its_files_but_no_memory(tmp_path: Path) -> None:
    with Site(tmp_path / "drill-site", SETTINGS, keep=True) as site:
        site.segment.write_bytes(b"blocks")
    assert site.repository.is_dir()
    assert not site.segment.exists()
