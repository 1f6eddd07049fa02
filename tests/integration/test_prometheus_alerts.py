"""The shipped alert rules in a real Prometheus, over a real daemon on a disk that fails."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from client_wheel import free_ports
from daemon_site import DaemonSite
from prometheus_site import BINARIES, RULES, PrometheusSite
from real_disks import LoopDisk, filled

BLOCKS = [f"alerts-{number}" for number in range(16)]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[LoopDisk]:
    with LoopDisk(tmp_path / "disk", tmp_path / "image", 64 << 20) as made:
        yield made


@pytest.fixture
def site(tmp_path: Path, disk: LoopDisk) -> Iterator[DaemonSite]:
    repository = disk.path / "repository"
    address = f"127.0.0.1:{free_ports(1)[0]}"
    with DaemonSite(tmp_path / "site", http=address, persistent_path=repository) as made:
        made.repository = repository
        yield made


@pytest.fixture
def prometheus(tmp_path: Path, site: DaemonSite) -> Iterator[PrometheusSite]:
    port = free_ports(1)[0]
    with PrometheusSite(tmp_path / "prometheus", str(site.setting("http")), port) as made:
        yield made


def put(site: DaemonSite, names: list[str]) -> None:
    client = site.client()
    assert client.put_batch(names, [name.encode() * 5000 for name in names]) == 0


def test_the_rules_pass_their_unit_tests() -> None:
    done = subprocess.run(
        [BINARIES / "promtool", "test", "rules", str(RULES.with_name("alerts.test.yaml"))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_fire_and_resolve_over_a_life_of_a_daemon(
    disk: LoopDisk, site: DaemonSite, prometheus: PrometheusSite
) -> None:
    prometheus.until("nobody answers", lambda firing: firing == {"SnapdDown"})

    site.start_daemon(wait=False)
    slow = {"SnapdStoreDown", "SnapdLoadTimeHigh"}
    prometheus.until("it waits for its store", lambda firing: slow <= firing)
    site.start_store()
    site.wait_ready()
    put(site, BLOCKS)
    site.flushed()
    assert site.stop_daemon() == 0
    site.start_daemon()  # how long it took to be ready stays until a start goes better
    prometheus.until("all is well", lambda firing: not firing)

    with filled(disk.path):
        put(site, [f"more-{number}" for number in range(8)])
        full = {"SnapdFlushLag", "SnapdDiskUsed"}
        prometheus.until("the disk is full", lambda firing: full <= firing)
    prometheus.until("there is room again", lambda firing: not firing)

    grow(disk.path / "others", until=lambda: "SnapdDiskFullSoon" in prometheus.firing())
    prometheus.until("it grows no more", lambda firing: not firing)

    disk.fail_read_only()
    put(site, [f"unwritten-{number}" for number in range(8)])
    broken = {"SnapdSnapshotFailed", "SnapdSnapshotTooOld", "SnapdFlushLag"}
    prometheus.until("the disk refuses", lambda firing: broken <= firing)
    site.kill_daemon()
    site.kill_store()
    site.wipe_segment()
    disk.repair()
    damage_packs(site.repository)
    site.start_store()
    site.start_daemon()
    prometheus.until("blocks are damaged", lambda firing: "SnapdBlocksQuarantined" in firing)
    prometheus.until("that is over", lambda firing: not firing)


def grow(path: Path, until: Callable[[], bool]) -> None:
    """Somebody fills the disk, a megabyte at a time, until that is noticed; and frees it again."""
    deadline = time.monotonic() + 30
    with path.open("wb") as stream:
        while not until():
            assert time.monotonic() < deadline
            if stream.tell() < 30 << 20:
                stream.write(bytes(1 << 20))
                stream.flush()
            time.sleep(0.25)
    path.unlink()


def damage_packs(repository: Path) -> None:
    """Change a byte in every page of every pack but the first and the last two."""
    for pack in (repository / "packs").iterdir():
        data = bytearray(pack.read_bytes())
        for at in range(4096 + 512, len(data) - 8192, 4096):
            data[at] ^= 0xFF
        pack.write_bytes(data)
