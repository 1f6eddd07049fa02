"""Putting back into real Mooncake: what counts, what is left alone, and what never comes back."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from fault_ledger import FaultClass, case
from mooncake_driver import MISSING, content
from mooncake_site import MooncakeClient, MooncakeSite

SIZE = 65536

_OTHER = """
import sys
from mooncake.store import MooncakeDistributedStore
store = MooncakeDistributedStore()
master, metadata, size = sys.argv[1:]
print(store.setup("127.0.0.1", metadata, int(size), 1 << 24, "tcp", "", master), flush=True)
sys.stdin.read()
"""
"""A store of another host: its memory is its own."""


def names(prefix: str, count: int) -> list[str]:
    return [f"{prefix}-{number}" for number in range(count)]


@pytest.fixture
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MooncakeSite]:
    """The parameter, if there is one, is the time after which a dead client is forgotten."""
    client_ttl = getattr(request, "param", 2)
    with MooncakeSite(tmp_path, segment_bytes=64 << 20, client_ttl=client_ttl, poll_sec=0.2) as one:
        yield one


def start(site: MooncakeSite, *, launcher: bool = True) -> MooncakeClient:
    site.start_master()
    site.start_store(launcher=launcher)
    site.start_daemon()
    return site.client()


def durable(site: MooncakeSite, blocks: int) -> None:
    """So many blocks are resident and on disk."""
    site.until("seen", lambda: site.status()["store"]["counters"]["blocks"] == blocks)
    site.snapd.snapshot()
    assert site.status()["snapshot"]["blocks"] == blocks


def session(site: MooncakeSite) -> str:
    found: str = site.status()["store"]["boot_id"]
    return found


def warmed(site: MooncakeSite, after: str, state: str = "done") -> dict[str, float]:
    """Wait for the end of the warm-up in a session after that one; blocks by result."""

    def ended() -> bool:
        status = site.status()
        return (
            status["store"]["up"]
            and status["store"]["boot_id"] != after
            and site.snapd.ask("/readyz")[0] == 200
            and status["warmup"]["state"] == state
        )

    site.until("put back", ended)
    return results(site)


def results(site: MooncakeSite) -> dict[str, float]:
    named = ("loaded", "from_memory", "superseded", "rejected", "no_space", "failed")
    counts = {name: site.snapd.metric("warmup_blocks_total", result=name) for name in named}
    return {name: count for name, count in counts.items() if count}


@contextlib.contextmanager
def stopped(site: MooncakeSite) -> Iterator[None]:
    """The daemon stands still inside."""
    process = site.snapd.daemon
    assert process is not None
    os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process.pid, signal.SIGCONT)


def dead_segment_gone(site: MooncakeSite) -> None:
    site.until("the dead segment is not listed", lambda: not site.segments())


@contextlib.contextmanager
def other_store(site: MooncakeSite) -> Iterator[str]:
    """Another store on the same master; its endpoint."""
    known = {segment["te_endpoint"] for segment in site.segments()}
    process = subprocess.Popen(
        [site.python, "-c", _OTHER, site.master, site.metadata, str(32 << 20)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        while (line := process.stdout.readline().strip()) != b"0":
            assert line, "the other store does not start"
        (endpoint,) = {segment["te_endpoint"] for segment in site.segments()} - known
        yield endpoint
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def overwrite(path: Path, keys: Sequence[str]) -> None:
    """Other bytes where a file in shared memory has the blocks of these keys."""
    with path.open("r+b") as file:
        held = file.read()
        for key in keys:
            at = held.index(content(key, 1, SIZE))
            file.seek(at + SIZE // 2)
            file.write(b"scribble")


# --- the store alone: out of memory ---------------------------------------------------------------


def test_after_a_store_is_killed_its_blocks_come_from_memory(site: MooncakeSite) -> None:
    client = start(site)
    keys = names("k", 300)
    client.put_all(keys)
    durable(site, 300)
    before = session(site)
    with case(FaultClass.KILL, "Mooncake store with a putter inside: SIGKILL"):
        site.kill_store()
        site.start_store(launcher=True)
        assert warmed(site, before) == {"from_memory": 300}
        assert client.read(keys) == dict.fromkeys(keys, 1)
        site.until("the old file is gone", lambda: len(site.shared_files()) == 1)
    assert site.snapd.logged("started a putter") == 0


@pytest.mark.long
@pytest.mark.parametrize("site", [10], indirect=True)
def test_nothing_counts_while_the_dead_segment_is_listed(site: MooncakeSite) -> None:
    """Keys "exist" then, and a put of them answers 0 and writes nothing."""
    client = start(site)
    keys = names("k", 300)
    client.put_all(keys)
    durable(site, 300)
    before = session(site)
    with case(FaultClass.KILL, "Mooncake store: SIGKILL, put back before it is forgotten"):
        site.kill_store()
        site.until("the daemon has noticed", lambda: not site.status()["store"]["up"])
        site.start_store(launcher=True)
        site.until("a new session", lambda: session(site) != before)
        assert client.exist(keys[:5]) == dict.fromkeys(keys[:5], True)
        assert client.put(keys[:5]) == [0] * 5
        assert client.read(keys[:5]) == dict.fromkeys(keys[:5], MISSING)
        assert (site.status()["warmup"]["handled"], results(site)) == (0, {})
        assert site.snapd.ask("/readyz")[0] == 503
        assert warmed(site, before) == {"from_memory": 300}
        assert client.read(keys) == dict.fromkeys(keys, 1)


def test_a_vanilla_store_is_filled_by_a_child_that_goes_with_its_work(site: MooncakeSite) -> None:
    client = start(site, launcher=False)
    keys = names("k", 200)
    client.put_all(keys)
    durable(site, 200)
    before = session(site)
    site.kill_store()
    site.start_store()
    assert warmed(site, before) == {"from_memory": 200}
    assert client.read(keys) == dict.fromkeys(keys, 1)
    assert site.snapd.logged("started a putter") == 1
    child = site.snapd.runtime / "put-child.sock"
    site.until("the child has ended", lambda: not child.exists())


# --- newer data -----------------------------------------------------------------------------------


def test_what_a_client_put_meanwhile_stays_and_so_does_what_lives_elsewhere(
    site: MooncakeSite,
) -> None:
    client = start(site)
    keys = names("k", 120)
    client.put_all(keys)
    durable(site, 120)
    before = session(site)
    here, there, lost = keys[:30], keys[30:60], keys[60:]
    with stopped(site):
        site.kill_store()
        dead_segment_gone(site)
        site.start_store(launcher=True)
        with other_store(site) as endpoint:
            client.put_all(there, 2)
            with case(FaultClass.KILL, "Mooncake store: SIGKILL, newer blocks before the put back"):
                os.kill(site.snapd.daemon.pid, signal.SIGCONT)  # type: ignore[union-attr]
                site.until("a new session", lambda: session(site) != before)
                client.upsert(here, 2)
                found = warmed(site, before)
                state = client.read(keys, (1, 2))
                assert {state[key] for key in here} == {2}
                assert {state[key] for key in there} == {2}
                assert {state[key] for key in lost} == {1}
                assert found["from_memory"] >= len(lost)
                assert found["from_memory"] + found["superseded"] == len(keys)
                assert places_of(site, there)[there[0]].startswith(endpoint)
    site.snapd.snapshot()


def test_of_two_stores_only_the_dead_one_is_filled(tmp_path: Path) -> None:
    keys = names("k", 300)
    with MooncakeSite(
        tmp_path, segment_bytes=32 << 20, stores=2, client_ttl=2, poll_sec=0.2
    ) as site:
        site.start_master()
        site.start_store(0, launcher=True)
        site.start_store(1, launcher=True)
        site.start_daemon()
        site.until("both stores", lambda: len(site.segments()) == 2)
        client = site.client()
        client.put_all(keys)
        durable(site, len(keys))
        before, places = session(site), places_of(site, keys)
        with case(FaultClass.KILL, "one of two Mooncake stores of a daemon: SIGKILL"):
            site.kill_store(0)
            site.until("the dead segment is not listed", lambda: len(site.segments()) == 1)
            (left,) = {segment["te_endpoint"] for segment in site.segments()}
            stay = {key: place for key, place in places.items() if place.startswith(left)}
            assert 0 < len(stay) < len(keys)
            site.start_store(0, launcher=True)
            site.until("both stores", lambda: len(site.segments()) == 2)
            found = warmed(site, before)
            assert found == {"from_memory": len(keys) - len(stay)}
            assert client.read(keys) == dict.fromkeys(keys, 1)
            now = places_of(site, keys)
            assert {key: now[key] for key in stay} == stay, "the other store's were not touched"


def places_of(site: MooncakeSite, keys: Sequence[str]) -> dict[str, str]:
    """Endpoint and address of each key."""
    body = site.get_admin(f"/batch_query_keys?keys={','.join(keys)}")
    assert body is not None
    found = {key: one["values"] for key, one in json.loads(body)["data"].items()}
    return {
        key: f"{one[0]['transport_endpoint_']}@{one[0]['buffer_address_']}"
        for key, one in found.items()
    }


# --- old files ------------------------------------------------------------------------------------


def test_bytes_that_changed_in_the_file_of_a_dead_store_do_not_come_back(
    site: MooncakeSite,
) -> None:
    """Nobody but what came after the block can have written there: it is dropped, not covered up
    by the version on disk."""
    client = start(site)
    keys = names("k", 100)
    client.put_all(keys)
    durable(site, 100)
    before, (old,) = session(site), site.shared_files()
    with (
        stopped(site),
        case(FaultClass.NEIGHBOUR, "scribble into the file of a dead Mooncake store"),
    ):
        site.kill_store()
        overwrite(old, keys[:7])
        site.start_store(launcher=True)
    assert warmed(site, before) == {"from_memory": 93, "superseded": 7}
    assert client.read(keys) == dict.fromkeys(keys[:7], MISSING) | dict.fromkeys(keys[7:], 1)
    site.snapd.snapshot()
    assert site.status()["snapshot"]["blocks"] == 93


@pytest.mark.long
def test_bytes_that_changed_after_the_master_died_are_read_from_the_disk(
    site: MooncakeSite,
) -> None:
    """The new master hands the space out again, so other bytes there mean nothing."""
    client = start(site)
    keys = names("k", 100)
    client.put_all(keys)
    durable(site, 100)
    before, (old,) = session(site), site.shared_files()
    client.close()
    with stopped(site), case(FaultClass.NEIGHBOUR, "scribble into a file whose master died"):
        site.kill_master()
        overwrite(old, keys[:7])
        site.start_master()
    assert warmed(site, before) == {"from_memory": 93, "loaded": 7}
    assert site.client().read(keys) == dict.fromkeys(keys, 1)


# --- room -----------------------------------------------------------------------------------------


def test_a_put_back_ends_below_the_watermark_and_evicts_nothing(site: MooncakeSite) -> None:
    client = start(site)
    keys = names("k", 700)
    client.put_all(keys)
    durable(site, 700)
    client.close()
    site.kill_daemon()
    site.kill_store()
    site.kill_master()
    site.wipe_shared_memory()
    site.snapd.configure(global_segment_size=32 << 20)
    site.start_master()
    site.start_store(launcher=True)
    site.start_daemon()
    found = warmed(site, "", state="full")
    (segment,) = site.segments()
    used = segment["allocator_used_bytes"] / segment["size_bytes"]
    assert 0.86 < used <= 0.88, found
    assert found["loaded"] * SIZE == segment["allocator_used_bytes"]
    assert b"\nmaster_evicted_key_count 0\n" in (site.get_admin("/metrics") or b"")
    assert not site.client().wrong(keys)


# --- removals -------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("launcher", [True, False], ids=["inside", "child"])
def test_what_is_removed_while_it_waits_or_is_put_stays_removed(
    tmp_path: Path, launcher: bool
) -> None:
    keys = names("k", 1500)
    with MooncakeSite(
        tmp_path,
        segment_bytes=64 << 20,
        client_ttl=2,
        lease_ttl_ms=200,
        poll_sec=0.2,
        io_bytes_per_sec_max=4 << 20,
    ) as site:
        client = start(site, launcher=launcher)
        client.put_all(keys, size=8192)
        durable(site, len(keys))
        before = session(site)
        site.kill_store()
        site.start_store(launcher=launcher)
        site.until("putting back", lambda: session(site) != before and bool(results(site)))
        removed: set[str] = set()
        with case(FaultClass.NEIGHBOUR, f"removals during a put back into Mooncake, {launcher}"):
            for number in range(0, len(keys), 7):
                # -704: it was not there, -703: it is just being put, -706: under a lease.
                (code,) = client.remove([keys[number]])
                if code in (0, -704):
                    removed.add(keys[number])
                time.sleep(0.01)
            warmed(site, before)
            time.sleep(1)
            state = client.read(keys)
            assert [key for key in removed if state[key] != MISSING] == []
            assert set(state.values()) <= {1, MISSING}
            site.snapd.snapshot()
            assert site.status()["snapshot"]["blocks"] == len(site.keys())


# --- the putter dies ------------------------------------------------------------------------------


@pytest.mark.long
def test_a_putter_that_dies_is_started_again_and_everything_comes_back(tmp_path: Path) -> None:
    keys = names("k", 600)
    with MooncakeSite(
        tmp_path, segment_bytes=64 << 20, client_ttl=1, poll_sec=0.2, io_bytes_per_sec_max=16 << 20
    ) as site:
        client = start(site, launcher=False)
        client.put_all(keys)
        durable(site, len(keys))
        before = session(site)
        site.kill_store()
        site.start_store()
        for kill in range(3):
            site.until(
                "a putter",
                lambda kill=kill: site.snapd.logged("started a putter") > kill,  # type: ignore[misc]
            )
            with case(FaultClass.KILL, f"the putter that fills a vanilla Mooncake store, {kill}"):
                os.kill(putter_of(site), signal.SIGKILL)
        found = warmed(site, before)
        assert found["from_memory"] + found.get("superseded", 0) == len(keys)
        assert client.read(keys) == dict.fromkeys(keys, 1)


@pytest.mark.long
def test_no_putter_outlives_its_daemon(tmp_path: Path) -> None:
    keys = names("k", 600)
    with MooncakeSite(
        tmp_path, segment_bytes=64 << 20, client_ttl=1, poll_sec=0.2, io_bytes_per_sec_max=4 << 20
    ) as site:
        client = start(site, launcher=False)
        client.put_all(keys)
        durable(site, len(keys))
        site.kill_store()
        site.start_store()
        site.until("a putter", lambda: site.snapd.logged("started a putter") > 0)
        child = putter_of(site)
        with case(FaultClass.KILL, "the daemon, while its putter works"):
            site.kill_daemon()
            site.until("it has ended", lambda: not Path(f"/proc/{child}").exists())


def putter_of(site: MooncakeSite) -> int:
    """The daemon's child that puts."""
    daemon = site.snapd.daemon
    assert daemon is not None
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            words = path.with_name("cmdline").read_bytes()
            if int(fields[1]) == daemon.pid and b"snapd.putter" in words:
                return int(path.parent.name)
    raise AssertionError("the daemon has no putter")
