"""Faults under a running daemon: kills, damage, a full disk. Nothing durable is lost or wrong."""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon_site import DaemonSite, block, put_all, wrong_keys

KEYS = [f"key-{number}" for number in range(120)]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[DaemonSite]:
    with DaemonSite(tmp_path) as site:
        yield site


def scribble(site: DaemonSite, key: str) -> None:
    """Flip a byte in the middle of a block in shared memory."""
    payload = block(key)
    with open(site.segment_path, "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        at = memory.find(payload)
        assert at > 0, key
        memory[at + len(payload) // 2] ^= 0x40


def test_a_killed_store_serves_on_and_loses_nothing(site: DaemonSite) -> None:
    site.start()
    put_all(site.client(), KEYS)
    site.flushed()
    for _ in range(3):
        site.kill_store()
        site.until("noticed", lambda: site.ask("/readyz")[0] == 503)
        site.start_store()
        site.wait_ready()
    site.until("all is well", lambda: site.status()["errors"] == [])
    assert wrong_keys(site.client(), KEYS) == []
    assert site.snapshot()["blocks"] == len(KEYS)
    assert site.metric("flush_blocks_total") == len(KEYS), "nothing was written a second time"


def test_a_killed_daemon_finds_the_store_as_it_is(site: DaemonSite) -> None:
    site.start()
    put_all(site.client(), KEYS)
    site.flushed()
    for _ in range(3):
        site.kill_daemon()
        site.start_daemon()
    assert wrong_keys(site.client(), KEYS) == []
    assert site.snapshot()["blocks"] == len(KEYS)
    assert site.metric("flush_blocks_total") == 0
    assert site.metric("demand_load_blocks_total") == 0


def test_a_store_that_comes_back_empty_is_filled_again(site: DaemonSite) -> None:
    """The segment is gone, the daemon lives: what was not yet flushed is still in its mapping."""
    site.configure(flush_sec=3600, snapshot_interval_sec=3600)
    site.start()
    put_all(site.client(), KEYS[:60])
    site.snapshot()
    put_all(site.client(), KEYS[60:])
    site.kill_store()
    site.wipe_segment()
    site.start_store()
    site.wait_ready()
    assert wrong_keys(site.client(), KEYS) == []
    assert site.snapshot()["blocks"] == len(KEYS)


@pytest.mark.parametrize(
    ("kills", "seed"),
    [(5, 1), *(pytest.param(20, seed, marks=pytest.mark.long) for seed in range(2, 5))],
)
def test_kills_in_the_middle_of_warm_up_lose_nothing(
    site: DaemonSite, kills: int, seed: int
) -> None:
    """Invariant 4: snapshots go on while only a part has been put back."""
    random_number = random.Random(seed)
    site.start()
    put_all(site.client(), KEYS)
    site.flushed()
    site.snapshot()
    site.stop_daemon()
    site.configure(io_bytes_per_sec_max=400_000, snapshot_interval_sec=0.3, flush_sec=0.1)
    for _ in range(kills):
        who = random_number.choice(["store", "both", "wiped"])
        if who == "wiped":
            site.kill_daemon()
            site.kill_store()
            site.wipe_segment()
        elif who == "both":
            site.kill_daemon()
            site.kill_store()
        else:
            site.kill_store()
        site.start_store(wait=False)
        if site.daemon is None:
            site.start_daemon(wait=False)
        site.until("ready", lambda: site.ask("/readyz")[0] == 200)
        time.sleep(random_number.uniform(0.0, 0.6))
    assert site.snapshot()["blocks"] == len(KEYS)
    assert site.client().batch_is_exist(KEYS) == [1] * len(KEYS)
    assert wrong_keys(site.client(), KEYS) == []


def test_removed_stays_removed_when_everything_is_killed(site: DaemonSite) -> None:
    site.start()
    client = site.client()
    put_all(client, KEYS)
    site.flushed()
    site.snapshot()
    for key in KEYS[:30]:
        assert client.remove(key, True) == 0
    site.kill_daemon()
    site.kill_store()
    site.wipe_segment()
    site.start()
    client = site.client()
    assert client.batch_is_exist(KEYS) == [0] * 30 + [1] * 90
    assert client.remove_all(True) == 90
    site.kill_daemon()
    site.kill_store()
    site.wipe_segment()
    site.start()
    assert site.client().batch_is_exist(KEYS) == [0] * len(KEYS)
    assert site.status()["repository"]["blocks"] == 0


@pytest.mark.parametrize("everything", [False, True])
def test_removals_without_a_daemon_reach_the_disk_when_one_comes(
    site: DaemonSite, everything: bool
) -> None:
    site.start()
    client = site.client()
    put_all(client, KEYS)
    site.flushed()
    site.snapshot()
    site.kill_daemon()
    if everything:
        assert client.remove_all(True) == len(KEYS)
    else:
        assert client.remove(KEYS[0], True) == 0
    site.kill_store()
    site.start()
    gone = KEYS if everything else KEYS[:1]
    assert site.client().batch_is_exist(gone) == [0] * len(gone)
    site.kill_daemon()
    site.kill_store()
    site.wipe_segment()
    site.start()
    assert site.client().batch_is_exist(gone) == [0] * len(gone)
    assert wrong_keys(site.client(), [key for key in KEYS if key not in gone]) == []


def test_a_key_put_again_after_its_removal_is_durable_again(site: DaemonSite) -> None:
    site.start()
    client = site.client()
    put_all(client, KEYS)
    site.flushed()
    for key in KEYS[:20]:
        assert client.remove(key, True) == 0
        assert client.put(key, block(key)) == 0
    site.flushed()
    site.kill_daemon()
    site.kill_store()
    site.wipe_segment()
    site.start()
    assert wrong_keys(site.client(), KEYS) == []


def test_the_version_right_after_a_removal_is_not_removed_with_it(site: DaemonSite) -> None:
    """A removal's sequence may be the one that the key's next version gets."""
    site.start()
    client = site.client()
    for version in (1, 2, 3):
        assert client.put("only", block("only", version)) == 0
        if version < 3:
            site.flushed()
            assert client.remove("only", True) == 0
    site.flushed()
    site.kill_daemon()
    site.kill_store()
    site.wipe_segment()
    site.start()
    assert wrong_keys(site.client(), ["only"], version=3) == []


def test_a_replaced_block_never_comes_back(site: DaemonSite) -> None:
    site.start()
    client = site.client()
    put_all(client, KEYS)
    site.flushed()
    site.snapshot()
    for key in KEYS:
        assert client.upsert(key, block(key, 2)) == 0
    site.flushed()
    site.kill_daemon()
    site.kill_store()
    site.wipe_segment()
    site.start()
    assert wrong_keys(site.client(), KEYS, version=2) == []


def test_a_block_scribbled_over_in_memory_is_not_flushed_as_good(site: DaemonSite) -> None:
    site.start_store()
    put_all(site.client(), KEYS)
    scribble(site, KEYS[7])
    site.start_daemon()
    site.until("found", lambda: site.metric("blocks_quarantined_total", reason="segment") == 1)
    assert site.snapshot()["blocks"] == len(KEYS) - 1
    site.kill_daemon()
    site.kill_store()
    site.wipe_segment()
    site.start()
    client = site.client()
    assert client.is_exist(KEYS[7]) == 0
    assert wrong_keys(client, [key for key in KEYS if key != KEYS[7]]) == []


def test_a_block_that_went_bad_in_memory_is_served_from_disk(site: DaemonSite) -> None:
    site.start()
    client = site.client()
    put_all(client, KEYS)
    site.flushed()
    scribble(site, KEYS[3])
    client.get(KEYS[3])  # the reader finds out, and the store drops the block
    site.until("put back", lambda: client.get(KEYS[3]) == block(KEYS[3]))
    assert site.metric("blocks_quarantined_total", reason="segment") == 1
    assert site.snapshot()["blocks"] == len(KEYS)


@pytest.mark.parametrize("warm", ["true", "false"])
def test_a_block_that_went_bad_on_disk_is_never_served(site: DaemonSite, warm: str) -> None:
    site.start()
    put_all(site.client(), KEYS)
    site.flushed()
    site.stop_daemon()
    site.kill_store()
    site.wipe_segment()
    payload = block(KEYS[11])
    for pack in (site.repository / "packs").iterdir():
        raw = bytearray(pack.read_bytes())
        at = raw.find(payload)
        if at >= 0:
            raw[at + 100] ^= 1
            pack.write_bytes(raw)
    site.configure(enable_warmup=warm)
    site.start()
    client = site.client()
    assert client.get(KEYS[11]) != payload
    site.until("found", lambda: site.metric("blocks_quarantined_total", reason="pack") == 1)
    assert client.is_exist(KEYS[11]) == 0
    assert wrong_keys(client, [key for key in KEYS if key != KEYS[11]]) == []
    assert site.snapshot()["blocks"] == len(KEYS) - 1


def test_an_evicted_block_leaves_and_is_live_again_when_it_returns(site: DaemonSite) -> None:
    site.configure(global_segment_size="1mb", snapshot_interval_sec=3600)
    site.start()
    client = site.client()
    put_all(client, KEYS)
    site.snapshot()
    for number in range(300):
        time.sleep(0.001)
        client.put(f"other-{number}", block(f"other-{number}"))
    site.flushed()
    gone = [key for key, there in zip(KEYS, client.batch_is_exist(KEYS), strict=True) if not there]
    assert len(gone) > 50
    site.snapshot()
    written = site.metric("flush_blocks_total")
    put_all(client, gone[:10])
    site.flushed()
    assert site.metric("flush_blocks_total") == written, "their bytes are on disk already"
    site.kill_daemon()
    site.kill_store()
    site.wipe_segment()
    site.start()
    assert wrong_keys(site.client(), gone[:10]) == []
    assert sum(site.client().batch_is_exist(gone[10:])) == 0


@contextlib.contextmanager
def small_file_system(path: Path, size: str) -> Iterator[None]:
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def test_a_full_disk_leaves_the_store_serving_and_shows_in_metrics(
    site: DaemonSite, tmp_path: Path
) -> None:
    with small_file_system(tmp_path / "repository", "4m"):
        site.configure(snapshot_interval_sec=0.3, flush_sec=0.1)
        site.start()
        client = site.client()
        put_all(client, KEYS)
        site.flushed()
        ballast = tmp_path / "repository" / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb") as file:
            while True:
                file.write(bytes(4096))
                file.flush()
        more = [f"more-{number}" for number in range(50)]
        put_all(client, more)
        # Whether a snapshot fails first, or an older one makes room before, is a matter of time.
        site.until("waiting", lambda: any(site.status()["flush"]["left_out"].values()))
        site.until("says so", lambda: site.status()["flush"]["lag_reason"] != "")
        site.until("seen", lambda: site.metric("disk_used_ratio") > 0.99)
        assert site.metric("blocks_waiting") > 0
        assert site.ask("/healthz")[0] == 200
        assert site.ask("/readyz")[0] == 200
        code, body = site.ask("/snapshot", "POST")
        assert code == 200 or "No space left" in body  # older generations may have made room
        assert wrong_keys(client, [*KEYS, *more]) == []
        ballast.unlink()
        site.until("recovered", lambda: site.status()["errors"] == [])
        site.until("written", lambda: not any(site.status()["flush"]["left_out"].values()))
        site.flushed()
        site.kill_daemon()
        site.kill_store()
        site.wipe_segment()
        site.start()
        assert wrong_keys(site.client(), [*KEYS, *more]) == []
        site.stop_daemon()
        assert site.logged("cannot flush") <= 2, "logged once a run of failures"


def test_a_stopped_store_does_not_hang_the_final_flush(site: DaemonSite) -> None:
    site.configure(flush_sec=3600, snapshot_interval_sec=3600, grace_sec=5)
    site.start()
    put_all(site.client(), KEYS)
    assert site.store is not None
    site.store.send_signal(signal.SIGSTOP)
    started = time.monotonic()
    assert site.stop_daemon() == 0
    assert time.monotonic() - started < 20
    site.kill_store()
    site.wipe_segment()
    site.start()
    assert wrong_keys(site.client(), KEYS) == []


def test_a_manifest_that_cannot_be_read_costs_nothing(site: DaemonSite) -> None:
    site.start()
    put_all(site.client(), KEYS)
    site.snapshot()
    site.snapshot()
    site.stop_daemon()
    site.kill_store()
    site.wipe_segment()
    newest = max((site.repository / "manifests").iterdir())
    os.truncate(newest, newest.stat().st_size // 2)
    site.start()
    assert site.status()["repository"]["recovered_from"] == "previous"
    assert wrong_keys(site.client(), KEYS) == []


@pytest.mark.parametrize("how", ["replaced", "removed"])
def test_what_was_evicted_and_then_replaced_or_removed_stays_so(site: DaemonSite, how: str) -> None:
    """No slot of the store has the key any more, but the newest snapshot on disk does."""
    site.configure(global_segment_size="1mb", flush_sec=3600, snapshot_interval_sec=3600)
    site.start()
    client = site.client()
    assert client.put("victim", block("victim")) == 0
    site.snapshot()
    time.sleep(0.1)  # until its lease is over
    for number in range(500):
        time.sleep(0.001)
        client.put(f"other-{number}", block(f"other-{number}"))
    assert client.is_exist("victim") == 0
    if how == "replaced":
        assert client.upsert("victim", block("victim", 2)) == 0
    else:
        assert client.remove("victim", True) == -704
    site.kill_daemon()
    site.kill_store()
    site.wipe_segment()
    site.start()
    assert site.client().get("victim") == b""
