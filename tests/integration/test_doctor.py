"""`snapctl doctor` on real file systems and beside real daemons."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from client_wheel import free_ports
from daemon_site import DaemonSite
from real_disks import LoopDisk, memory_disk, run

SNAPCTL = Path(sys.executable).with_name("snapctl")


def doctor(directory: Path, *flags: str, **settings: object) -> tuple[int, dict[str, Any]]:
    """Exit code and findings by name."""
    environment = {"PATH": os.environ["PATH"], "SNAPD_RUNTIME_DIR": str(directory / "run")}
    environment |= {"SNAPD_GLOBAL_SEGMENT_SIZE": "8mb"}
    environment |= {f"SNAPD_{name.upper()}": str(value) for name, value in settings.items()}
    done = subprocess.run(
        [SNAPCTL, "doctor", "--json", *flags],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    findings = json.loads(done.stdout)["findings"]
    return done.returncode, {one["name"]: one for one in findings}


def test_a_local_disk_is_good_and_its_speed_is_measured(tmp_path: Path) -> None:
    (tmp_path / "repository").mkdir(mode=0o700)
    code, found = doctor(tmp_path, persistent_path=tmp_path / "repository")
    assert code == 0, found
    assert "GB/s" in found["speed"]["said"]
    assert found["repository"]["level"] == "ok"
    assert list((tmp_path / "repository").iterdir()) == []


def test_memory_is_no_disk(tmp_path: Path) -> None:
    with memory_disk(tmp_path / "disk", "size=64m"):
        code, found = doctor(tmp_path, "--no-speed", persistent_path=tmp_path / "disk" / "deep")
    assert code == 1
    assert found["file system"]["level"] == "error"
    assert "tmpfs" in found["file system"]["said"]
    assert "speed" not in found


def test_mount_options_are_seen(tmp_path: Path) -> None:
    with LoopDisk(tmp_path / "disk", tmp_path / "image", 64 << 20) as disk:
        run("mount", "-o", "remount,strictatime", disk.path)
        _, found = doctor(tmp_path, "--no-speed", persistent_path=disk.path)
        assert found["mount options"]["level"] == "warning"
        assert "ext4" in found["file system"]["said"]
        run("mount", "-o", "remount,noatime", disk.path)
        _, found = doctor(tmp_path, "--no-speed", persistent_path=disk.path)
        assert found["mount options"] == {
            "name": "mount options",
            "level": "ok",
            "said": "noatime",
            "advice": "",
        }
        run("mount", "-o", "remount,ro", disk.path)
        code, found = doctor(tmp_path, "--no-speed", persistent_path=disk.path)
        assert code == 1
        assert "Read-only" in found["repository"]["said"]


def test_beside_a_running_daemon_nothing_is_disturbed(tmp_path: Path) -> None:
    with DaemonSite(tmp_path / "site") as site:
        site.start()
        client = site.client()
        assert client.put("key", b"value") == 0
        site.snapshot()
        code, found = doctor(
            tmp_path,
            "--no-speed",
            persistent_path=site.repository,
            runtime_dir=site.runtime,
            segment_path=site.segment_path,
        )
        assert code == 0, found
        assert found["clock"]["level"] != "error"
        assert client.get("key") == b"value"
        assert site.snapshot()["blocks"] == 1


def test_a_mooncake_that_is_not_there_is_named(tmp_path: Path) -> None:
    rpc, admin, store = free_ports(3)
    code, found = doctor(
        tmp_path,
        "--no-speed",
        store="mooncake",
        persistent_path=tmp_path,
        mooncake_master=f"127.0.0.1:{rpc}",
        mooncake_admin=f"127.0.0.1:{admin}",
        mooncake_stores=f"http://127.0.0.1:{store}",
    )
    assert code == 1
    assert str(admin) in found["Mooncake's master"]["said"]
    assert str(store) in found["Mooncake's stores"]["said"]
    assert found["Mooncake's wheel"]["level"] == "warning"
