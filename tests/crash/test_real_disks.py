"""Real file systems that fill up, turn read-only, die, hang or go away under a real daemon.

The store serves as before; what is wrong is counted, logged once, and said by /readyz and /status;
when the disk is back it is used again, which is logged once; what was committed is there."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from daemon_site import DaemonSite, block, put_all, wrong_keys
from fault_ledger import FaultClass, case
from real_disks import LoopDisk, filled, memory_disk, run

KEYS = [f"key-{number}" for number in range(60)]
SERVED_SECONDS_MAX = 2.0
"""No put, get or probe takes longer, whatever the disk does."""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[DaemonSite]:
    with DaemonSite(tmp_path / "site", snapshot_interval_sec=0.3, flush_sec=0.1) as site:
        yield site


def serves(site: DaemonSite, name: str) -> list[str]:
    """Put and get new blocks, each within its time; returns the keys."""
    client, keys = site.client(), [f"{name}-{number}" for number in range(30)]
    for key in keys:
        began = time.monotonic()
        assert client.put(key, block(key)) == 0
        assert client.get(key) == block(key)
        assert time.monotonic() - began < SERVED_SECONDS_MAX
    assert wrong_keys(client, KEYS) == []
    return keys


def probes(site: DaemonSite) -> str:
    """Both probes are answered at once and say yes; the body of /readyz."""
    began = time.monotonic()
    assert site.ask("/healthz")[0] == 200
    code, body = site.ask("/readyz")
    assert time.monotonic() - began < SERVED_SECONDS_MAX
    assert code == 200, body
    return body


def restarted_from_disk(site: DaemonSite, keys: list[str]) -> None:
    site.kill_daemon()
    site.kill_store()
    site.wipe_segment()
    site.start()
    assert wrong_keys(site.client(), keys) == []


@contextmanager
def inodes_used_up(directory: Path) -> Iterator[None]:
    """No file can be made for the length of the block."""
    place = directory / "many"
    place.mkdir()
    try:
        for number in range(10_000):
            try:
                (place / str(number)).touch()
            except OSError:
                break
        yield
    finally:
        shutil.rmtree(place)


@pytest.mark.parametrize(
    ("fault", "options", "says"),
    [
        (filled, "size=64m", "the disk is full"),
        pytest.param(
            inodes_used_up, "size=64m,nr_inodes=80", "No space left", marks=pytest.mark.long
        ),
    ],
)
def test_a_disk_without_room_is_said_once_and_so_is_its_end(
    site: DaemonSite, fault: Callable[[Path], AbstractContextManager[None]], options: str, says: str
) -> None:
    with memory_disk(site.repository, options), case(FaultClass.FULL, f"{says}: {options}"):
        site.start()
        put_all(site.client(), KEYS)
        site.snapshot()
        with fault(site.repository):
            more = serves(site, "meanwhile")
            site.until("said", lambda: says in site.ask("/readyz")[1])
            assert says in probes(site)
            assert any(says in error for error in site.status()["errors"])
            time.sleep(2.0)
            for line in ("cannot flush", "cannot commit a snapshot", "blocks wait to be written"):
                assert site.logged(line) <= 1
            assert serves(site, "again")
        site.until("over", lambda: site.status()["errors"] == [])
        assert probes(site) == "ok\n"
        assert site.logged("cannot flush") == site.logged("can flush again")
        site.flushed()
        restarted_from_disk(site, KEYS + more)


@pytest.mark.parametrize("budget", ["0", pytest.param("32mb", marks=pytest.mark.long)])
def test_a_disk_that_somebody_else_filled_still_has_all_that_was_durable(
    site: DaemonSite, budget: str
) -> None:
    site.configure(repository_bytes_max=budget)
    with (
        memory_disk(site.repository, "size=64m"),
        case(FaultClass.POWER_CUT, f"node lost while others fill the disk, budget {budget}"),
    ):
        site.start()
        put_all(site.client(), KEYS)
        blocks = site.snapshot()["blocks"]
        with filled(site.repository):
            serves(site, "meanwhile")
            site.until("said", lambda: "the disk is full" in site.ask("/readyz")[1])
            for _ in range(3):
                time.sleep(1.0)  # the compactor looks, and commits are tried
                assert site.status()["budget"]["dropped"] == 0
                assert site.status()["snapshot"]["blocks"] >= blocks
            # The name of the new segment goes into the journal, which has its ballast for that.
            restarted_from_disk(site, KEYS)
            time.sleep(1.0)
            assert site.status()["budget"]["dropped"] == 0
        restarted_from_disk(site, KEYS)


@pytest.mark.parametrize("how", ["fail_read_only", pytest.param("die", marks=pytest.mark.long)])
def test_a_disk_that_breaks_costs_only_what_came_after(
    site: DaemonSite, tmp_path: Path, how: str
) -> None:
    """ext4 meets an error, or is shut down: it never works again until somebody repairs it."""
    with (
        LoopDisk(site.repository, tmp_path / "image") as disk,
        case(FaultClass.FULL, f"ext4 breaks under the daemon: {how}"),
    ):
        site.start()
        put_all(site.client(), KEYS)
        site.snapshot()
        getattr(disk, how)()
        serves(site, "meanwhile")
        site.until("failed", lambda: site.metric("flush_failures_total", reason="disk") >= 3)
        assert len(probes(site).splitlines()) > 1
        assert (site.logged("cannot flush"), site.logged("can flush again")) == (1, 0)
        site.kill_daemon()
        site.start_daemon(wait=False)
        site.until("says why", lambda: "waiting for the disk" in site.ask("/readyz")[1])
        assert site.ask("/healthz")[0] == 200
        assert wrong_keys(site.client(), KEYS) == []
        assert site.ask("/status")[0] == 200
        disk.repair()
        site.wait_ready()
        assert site.logged("cannot open the repository") == 1
        assert site.logged("can open the repository again") == 1
        restarted_from_disk(site, KEYS)


@pytest.mark.long
def test_a_disk_that_hangs_hangs_no_reader_and_no_probe(site: DaemonSite, tmp_path: Path) -> None:
    with LoopDisk(site.repository, tmp_path / "image") as disk:
        site.start()
        put_all(site.client(), KEYS)
        site.snapshot()
        with case(FaultClass.FULL, "ext4 frozen under flush and commit"), disk.frozen():
            more = serves(site, "meanwhile")
            time.sleep(1.0)
            for _ in range(12):
                probes(site)
                assert site.ask("/status", timeout=SERVED_SECONDS_MAX)[0] == 200
                assert site.ask("/metrics", timeout=SERVED_SECONDS_MAX)[0] == 200
            serves(site, "again")
        site.flushed()
        restarted_from_disk(site, KEYS + more)


@pytest.mark.long
def test_a_repository_that_is_deleted_is_missed_loudly(site: DaemonSite) -> None:
    with case(FaultClass.FULL, "the repository's directory deleted under the daemon"):
        site.start()
        put_all(site.client(), KEYS)
        site.snapshot()
        shutil.rmtree(site.repository)
        more = serves(site, "meanwhile")
        site.until("failed", lambda: site.metric("flush_failures_total", reason="disk") >= 2)
        assert "No such file" in probes(site)
        site.kill_daemon()
        site.start_daemon()  # from the store's memory all of it goes to a new one
        site.snapshot()
        restarted_from_disk(site, KEYS + more)


@pytest.mark.long
def test_a_repository_of_garbage_is_moved_aside_and_the_daemon_is_loud(site: DaemonSite) -> None:
    site.start()
    put_all(site.client(), KEYS)
    site.snapshot()
    site.kill_daemon()
    site.kill_store()
    site.wipe_segment()
    files = [*(site.repository / "packs").iterdir(), *(site.repository / "manifests").iterdir()]
    for path in files:
        path.write_bytes(bytes(path.stat().st_size))
    with case(FaultClass.FULL, "every manifest and pack is garbage"):
        site.start()
        aside = {path.name for path in site.repository.glob("aside-*/*")}
        assert {path.name for path in files} <= aside
        assert site.status()["repository"]["recovered_from"] == "empty"
        assert "moved aside" in probes(site)
        assert site.logged("moved a file aside") == len(files)
        put_all(site.client(), KEYS)
        site.snapshot()
        restarted_from_disk(site, KEYS)


def test_what_cannot_even_be_moved_aside_is_waited_for(site: DaemonSite, tmp_path: Path) -> None:
    """No end and no new start, which somebody would repeat for ever: the store serves, the probe
    says why the daemon is not ready, and when the disk gives in it goes on by itself."""
    with LoopDisk(site.repository, tmp_path / "image"):
        site.start()
        put_all(site.client(), KEYS)
        site.snapshot()
        site.kill_daemon()
        places = [site.repository / "packs", site.repository / "manifests"]
        for path in (path for place in places for path in place.iterdir()):
            path.write_bytes(bytes(path.stat().st_size))
        run("chattr", "+i", *places)
        with case(FaultClass.FULL, "garbage in directories that refuse a rename"):
            site.start_daemon(wait=False)
            site.until("says why", lambda: "cannot" in site.ask("/readyz")[1])
            code, body = site.ask("/readyz")
            assert code == 503
            assert "Operation not permitted" in body
            time.sleep(1.0)
            assert site.ask("/healthz")[0] == 200
            assert site.logged("cannot read the repository") == 1
            assert wrong_keys(site.client(), KEYS) == []
            run("chattr", "-i", *places)
            site.wait_ready()
            assert site.logged("can read the repository again") == 1
            assert len(list(site.repository.glob("aside-*"))) == 1, "not one for each attempt"
            site.snapshot()
        restarted_from_disk(site, KEYS)


# --- shared memory --------------------------------------------------------------------------------


def test_shared_memory_without_room_ends_the_store_and_says_so(
    site: DaemonSite, tmp_path: Path
) -> None:
    with memory_disk(tmp_path / "shm", "size=4m"):
        site.configure(segment_path=tmp_path / "shm" / "segment")
        with case(FaultClass.FULL, "shared memory too small for the segment, at start"):
            store = site._spawn("snapd.store")
            assert store.wait(20) == 1
            said = site.log.read_text().splitlines()[-1]
            assert "segment" in said
            assert f"{tmp_path / 'shm'} has" in said
            assert "Traceback" not in site.log.read_text()


def test_a_store_that_can_never_start_is_told_of_by_the_daemon(
    site: DaemonSite, tmp_path: Path
) -> None:
    with memory_disk(tmp_path / "shm", "size=4m"):
        site.configure(segment_path=tmp_path / "shm" / "segment")
        with case(FaultClass.FULL, "shared memory too small, under --with-store"):
            site.start_daemon("--with-store", wait=False)
            site.until("told", lambda: "exit code 1" in site.ask("/readyz")[1])
            code, body = site.ask("/readyz")
            assert code == 503
            assert "segment" in body.split("exit code 1")[1]
            time.sleep(2.0)
            assert site.logged("cannot keep the store running") == 1
            run("mount", "-o", "remount,size=128m", tmp_path / "shm")
            site.wait_ready()
            put_all(site.client(), KEYS)
            assert site.stop_daemon() == 0
