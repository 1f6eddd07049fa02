"""`prune` and `purge` on real processes: what goes is gone from every file, the rest is served."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import xxhash
from cli_site import BIN, Site, new_site
from fault_ledger import FaultClass, case

from snapd.client import MooncakeDistributedStore
from snapd.daemon.supervise import store_process_id
from snapd.disk.posix import PosixDisk
from snapd.formats.sealed import PAGE_BYTES
from snapd.repository import Repository

SECRET = b"a prompt that nobody is to read again "
SEGMENT_BYTES = 64 * 2**20


@pytest.fixture
def site() -> Iterator[Site]:
    with new_site() as one:
        yield one


def secret(number: int) -> bytes:
    return SECRET * 200 + b"%d" % number


def plain(number: int) -> bytes:
    return b"%d may stay " % number * 600


def client_of(site: Site) -> MooncakeDistributedStore:
    client = MooncakeDistributedStore()
    arguments = {
        "local_hostname": "localhost",
        "metadata_server": "",
        "master_server_addr": f"unix:{site.runtime_dir}",
    }
    assert client.setup(arguments) == 0
    return client


def put_both(site: Site) -> dict[str, bytes]:
    """Secrets, some removed and some overwritten, beside what stays; returns the latter."""
    kept = {f"keep-{number}": plain(number) for number in range(20)}
    client = client_of(site)
    for round_number in range(3):
        for number in range(8):
            key = f"user-7/{round_number}/{number}"
            assert client.put(key, secret(number)) == 0
        for key, data in list(kept.items())[round_number::3]:
            assert client.put(key, data) == 0
        assert site.snapctl("snapshot").code == 0
    assert client.remove("user-7/0/1", True) == 0
    assert client.upsert("user-7/0/2", secret(99)) == 0
    client.close()
    return kept


def found(site: Site) -> list[Path]:
    """Files of the repository that hold a secret."""
    return [
        path
        for path in site.repository.rglob("*")
        if path.is_file() and SECRET in path.read_bytes()
    ]


def wrong(site: Site, kept: dict[str, bytes]) -> list[str]:
    client = client_of(site)
    try:
        missing = [key for key, data in kept.items() if client.get(key) != data]
        back = [key for key in keys_of_secrets() if client.is_exist(key) == 1]
        return missing + back
    finally:
        client.close()


def keys_of_secrets() -> list[str]:
    return [f"user-7/{round_number}/{number}" for round_number in range(3) for number in range(8)]


def test_prune_and_purge_through_a_daemon_and_then_without_it(site: Site) -> None:
    """The others in this file, at a glance."""
    site.start_daemon()
    kept = put_both(site)
    planned = site.snapctl("prune", "--retain", "2", "--dry-run", "--json")
    assert (planned.code, planned.document["manifests"]) == (0, 1), planned
    done = site.snapctl("purge", "--prefix", "user-7/", "--yes", "--json")
    assert (done.code, done.document["keys"]) == (0, 24), done
    assert found(site) == []
    assert wrong(site, kept) == []
    assert site.stop_daemon() == 0
    assert site.snapctl("purge", "--prefix", "keep-1", "--yes").code == 5
    site.segment.unlink()
    done = site.snapctl("purge", "--prefix", "keep-1", "--yes", "--json")
    assert (done.code, done.document["keys"]) == (0, 11), done
    assert not any(plain(1) in path.read_bytes() for path in site.packs())
    assert site.snapctl("verify", "--all").code == 0


@pytest.mark.long
def test_a_purge_with_the_daemon_running_leaves_nothing_of_it(site: Site) -> None:
    site.start_daemon()
    kept = put_both(site)
    assert found(site)
    done = site.snapctl("purge", "--prefix", "user-7/", "--yes", "--json")
    assert done.code == 0, done
    assert done.document["keys"] == 24
    assert done.document["packs_deleted"] >= 3
    assert done.document["packs_rewritten"] >= 1
    assert found(site) == []
    assert wrong(site, kept) == []
    assert site.snapctl("verify", "--all").code == 0
    assert site.stop_daemon() == 0
    assert found(site) == []
    site.segment.unlink()
    site.start_daemon()
    assert wrong(site, kept) == []


@pytest.mark.long
def test_a_purge_of_everything_with_the_daemon_running(site: Site) -> None:
    site.start_daemon()
    put_both(site)
    done = site.snapctl("purge", "--yes", "--json")
    assert done.code == 0, done
    assert found(site) == []
    assert site.packs() == []
    client = client_of(site)
    assert client.is_exist("keep-1") == 0
    assert client.put("new", plain(1)) == 0
    client.close()
    assert site.snapctl("snapshot").code == 0
    assert site.stop_daemon() == 0
    site.segment.unlink()
    site.start_daemon()
    client = client_of(site)
    assert client.get("new") == plain(1)
    assert client.is_exist("keep-1") == 0
    client.close()


@pytest.mark.long
def test_a_purge_while_cold_blocks_and_loads_are_about(site: Site) -> None:
    """What is on disk only is purged as well, and what stays is still loaded from its new place."""
    site.start_daemon()
    kept = put_both(site)
    assert site.stop_daemon() == 0
    site.segment.unlink()
    site.start_daemon()
    assert site.snapctl("purge", "--prefix", "user-7/", "--yes").code == 0
    assert found(site) == []
    assert wrong(site, kept) == []


@pytest.mark.long
def test_a_stopped_daemon_purges_only_when_the_stores_memory_is_gone(site: Site) -> None:
    site.start_daemon()
    kept = put_both(site)
    assert site.stop_daemon() == 0
    refused = site.snapctl("purge", "--prefix", "user-7/", "--yes")
    assert refused.code == 5
    assert str(site.segment) in refused.err
    assert found(site)
    site.segment.unlink()
    asked = site.snapctl("purge", "--prefix", "user-7/")
    assert asked.code == 2
    assert found(site)
    done = site.snapctl("purge", "--prefix", "user-7/", "--yes", "--json")
    assert done.code == 0, done
    assert done.document["keys"] == 24
    assert found(site) == []
    site.start_daemon()
    assert wrong(site, kept) == []


@pytest.mark.long
def test_a_readers_pin_delays_the_files_and_says_so(site: Site) -> None:
    site.start_daemon()
    kept = put_both(site)
    disk = PosixDisk(site.repository)
    with Repository.open(disk, read_only=True):
        blocked = site.snapctl("purge", "--prefix", "user-7/", "--yes", "--json")
        assert blocked.code == 5
        assert "pin" in blocked.document["blocked"]
        assert found(site)
        assert wrong(site, kept) == [], "the keys are gone all the same"
    disk.close()
    again = site.snapctl("purge", "--prefix", "user-7/", "--yes", "--json")
    assert again.code == 0, again
    assert found(site) == []
    assert wrong(site, kept) == []


@pytest.mark.long
def test_prune_with_the_daemon_and_without(site: Site) -> None:
    site.start_daemon()
    put_both(site)
    assert site.snapctl("snapshot").code == 0
    assert len(site.manifests()) == 3
    planned = site.snapctl("prune", "--retain", "1", "--dry-run", "--json")
    assert planned.code == 0, planned
    assert planned.document["manifests"] == 2
    assert len(site.manifests()) == 3
    done = site.snapctl("prune", "--retain", "2", "--json")
    assert (done.code, done.document["manifests"]) == (0, 1), done
    busy = site.snapctl("prune", "--runtime-dir", str(site.root / "nowhere"))
    assert busy.code == 5, busy
    assert "lock" in busy.err
    assert site.stop_daemon() == 0
    assert len(site.manifests()) == 3
    planned = site.snapctl("prune", "--retain", "1", "--dry-run", "--json")
    done = site.snapctl("prune", "--retain", "1", "--json")
    assert (done.code, done.document["manifests"]) == (0, 2)
    assert planned.document["packs"] == done.document["packs"]
    assert site.snapctl("prune", "--retain", "0").code == 2
    assert site.snapctl("verify", "--all").code == 0


@pytest.mark.long
def test_damage_is_moved_aside_by_prune(site: Site) -> None:
    site.start_daemon()
    put_both(site)
    assert site.stop_daemon() == 0
    manifest = site.manifests()[0]
    damaged = manifest.read_bytes()[:-PAGE_BYTES] + bytes(PAGE_BYTES)
    manifest.write_bytes(damaged)
    with case(FaultClass.DISK_LIES, "snapctl prune with a damaged manifest"):
        held = site.snapctl("prune")
        assert held.code == 5
        assert manifest.name in held.err
        done = site.snapctl("prune", "--move-unreadable", "--json")
        assert done.code == 0, done
        assert done.document["moved_aside"] == [f"aside-1/{manifest.name}"]
        assert (site.repository / "aside-1" / manifest.name).read_bytes() == damaged


def test_there_is_nothing_to_prune_or_purge(site: Site) -> None:
    for words in (["prune"], ["prune", "--dry-run"], ["purge", "--yes"]):
        assert site.snapctl(*words, "--persistent-path", str(site.root / "none")).code == 3
    assert not (site.root / "none").exists()


@pytest.mark.long
def test_the_control_socket_purges_nothing_by_mistake(site: Site) -> None:
    site.start_daemon()
    kept = put_both(site)

    def post(target: str) -> tuple[int, dict[str, object]]:
        connection = http.client.HTTPConnection("snapd", timeout=30)
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.sock.connect(str(site.runtime_dir / "snapd.sock"))
        connection.request("POST", target)
        answer = connection.getresponse()
        body = json.loads(answer.read())
        connection.close()
        return answer.status, body

    for target in ("/purge", "/purge?prefix=", "/prune?retain=0", "/prune?retain=x"):
        status, body = post(target)
        assert (status, body["exit_code"]) == (500, 2), target
    assert found(site)
    assert wrong(site, kept)[:1] != list(kept)[:1]


@pytest.mark.long
@pytest.mark.parametrize("delay_ms", [0, 60, 150, 300, 600])
def test_a_daemon_killed_in_the_middle_of_a_purge(site: Site, delay_ms: int) -> None:
    site.start_daemon()
    kept = put_both(site)
    with case(FaultClass.KILL, f"SIGKILL of the daemon {delay_ms} ms into a purge"):
        asking = subprocess.Popen(
            [str(BIN / "snapctl"), "purge", "--prefix", "user-7/", "--yes"],
            env=site.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(0.5 + delay_ms / 1000)  # the command takes half a second to start
        daemon = site.daemons.pop()
        daemon.kill()
        daemon.wait()
        asking.wait(30)
        site.start_daemon()
        again = site.snapctl("purge", "--prefix", "user-7/", "--yes", "--json")
        assert again.code == 0, again
        assert found(site) == []
        assert wrong(site, kept) == []
        assert site.stop_daemon() == 0
        site.segment.unlink()
        site.start_daemon()
        assert wrong(site, kept) == [], "a power cut after it"


# --- newer files ----------------------------------------------------------------------------------


def make_newer(path: Path) -> None:
    """Give a file the format version after ours."""
    data = path.read_bytes()
    page = data[:8] + (2).to_bytes(4, "little") + data[12 : PAGE_BYTES - 8]
    path.write_bytes(
        page + xxhash.xxh3_64_intdigest(page).to_bytes(8, "little") + data[PAGE_BYTES:]
    )


def run_refused(site: Site) -> tuple[int, str]:
    """`snapd run --with-store`; into a file, because the store that it leaves keeps the stream."""
    log = site.root / "refused.log"
    with log.open("wb") as stream:
        done = subprocess.run(
            [str(BIN / "snapd"), "run", "--with-store"],
            env=site.environment,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            timeout=30,
            check=False,
        )
    return done.returncode, log.read_text()


def wait_for_store(site: Site) -> int:
    """The process of the store that answers."""
    deadline = time.monotonic() + 20
    while (process := store_process_id(f"{site.runtime_dir}/store.sock")) is None:
        assert time.monotonic() < deadline, "no store answers"
        time.sleep(0.02)
    return process


@pytest.mark.long
def test_a_downgrade_is_refused_again_and_again_and_harms_nothing(site: Site) -> None:
    site.start_daemon()
    kept = put_both(site)
    assert site.stop_daemon() == 0
    make_newer(site.packs()[-1])
    tree = {path: path.read_bytes() for path in site.repository.rglob("*") if path.is_file()}
    with case(FaultClass.OTHER_VERSION, "snapd run --with-store on a repository with a newer pack"):
        stores = set()
        for _ in range(3):
            code, said = run_refused(site)
            assert code == 5, said
            assert site.packs()[-1].name in said
            assert "move the repository aside" in said
            stores.add(wait_for_store(site))
        assert len(stores) == 1, "started once, then left alone"
        now = {path: path.read_bytes() for path in site.repository.rglob("*") if path.is_file()}
        assert now == tree
        client = client_of(site)
        served = {key: client.get(key) for key in kept}
        client.close()
        os.kill(stores.pop(), signal.SIGTERM)
        assert served == kept, "the store goes on serving what it has in memory"
        for words in (["rebuild"], ["prune"]):
            assert site.snapctl(*words).code == 5
        verified = site.snapctl("verify", "--all", "--json")
        assert verified.code == 4
        assert any("newer" in one["problem"] for one in verified.document["findings"])
        assert os.listdir(site.repository / "quarantine") == []
