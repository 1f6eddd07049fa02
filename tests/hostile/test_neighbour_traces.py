"""Whoever can reach the trace socket: floods, garbage, strangers. The daemon stays as it was."""

from __future__ import annotations

import array
import os
import socket
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from daemon_site import DaemonSite, block, put_all
from fault_ledger import FaultClass, case
from neighbour_kit import memory_bytes

from snapd.client.trace import Tracer
from snapd.daemon.trace import CPU_SHARE_MAX
from snapd.wire.trace import DATAGRAM_BYTES_MAX, PAGES_MAX, Lookup, encode_lookup, trace_socket

SEED = 20261122
FLOOD_SECONDS = 1.5


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonSite]:
    with DaemonSite(tmp_path_factory.mktemp("traces")) as found:
        found.start()
        yield found


def sender(site: DaemonSite) -> socket.socket:
    raw = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    raw.settimeout(10.0)
    raw.connect(trace_socket(str(site.runtime)))
    return raw


def counted(site: DaemonSite) -> dict[str, int]:
    trace = site.status()["trace"]
    return {name: trace[name] for name in ("lookups", "malformed", "refused", "pages_known")}


def wait_for(site: DaemonSite, what: str, number: int) -> None:
    site.until(f"{number} {what}", lambda: counted(site)[what] >= number)


def good(pages: int = 3, first: int = 1) -> bytes:
    chain = np.arange(first, first + pages, dtype=np.uint64)
    return encode_lookup(Lookup(chain, 0, 0, pages))


def process_of(site: DaemonSite) -> int:
    assert site.daemon is not None
    return site.daemon.pid


def descriptors(site: DaemonSite) -> int:
    return len(os.listdir(f"/proc/{process_of(site)}/fd"))


def cpu_seconds(site: DaemonSite) -> float:
    fields = Path(f"/proc/{process_of(site)}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_lookups_arrive_and_are_counted(site: DaemonSite) -> None:
    before = counted(site)
    tracer = Tracer(trace_socket(str(site.runtime)))
    tracer.lookup([11, 12, 13, 14], hits=3)
    wait_for(site, "lookups", before["lookups"] + 1)
    site.until("the pages are known", lambda: counted(site)["pages_known"] >= 4)
    assert site.metric("trace_lookups_total", result="accepted") >= 1
    assert site.metric("trace_pages_total", result="hit") >= 3
    assert site.metric("trace_pages_total", result="miss") >= 1
    assert site.metric("trace_known_pages") >= 4
    tracer.close()


def test_garbage_is_counted_and_nothing_else(site: DaemonSite) -> None:
    rng = np.random.default_rng(SEED)
    with case(FaultClass.NEIGHBOUR, "traces: datagrams of random bytes"), sender(site) as raw:
        before = counted(site)
        for length in rng.integers(0, 2000, 300).tolist():
            raw.send(rng.bytes(length))
        wait_for(site, "malformed", before["malformed"] + 300)
    with case(FaultClass.NEIGHBOUR, "traces: look-ups with one byte changed"), sender(site) as raw:
        before = counted(site)
        for _ in range(300):
            damaged = bytearray(good())
            damaged[int(rng.integers(len(damaged)))] ^= 1 << int(rng.integers(8))
            raw.send(damaged)
        site.until(
            "all were read",
            lambda: (
                (now := counted(site))["lookups"] + now["malformed"]
                >= before["lookups"] + before["malformed"] + 300
            ),
        )
    with case(FaultClass.NEIGHBOUR, "traces: a datagram over the limit"), sender(site) as raw:
        before = counted(site)
        raw.send(good() + bytes(DATAGRAM_BYTES_MAX))
        raw.send(bytes(4 * DATAGRAM_BYTES_MAX))
        wait_for(site, "malformed", before["malformed"] + 2)


def test_passed_descriptors_are_not_kept(site: DaemonSite) -> None:
    with case(FaultClass.NEIGHBOUR, "traces: descriptors passed along"), sender(site) as raw:
        before, held = counted(site), descriptors(site)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [raw.fileno()] * 8))]
        for _ in range(100):
            raw.sendmsg([good()], rights)
        wait_for(site, "malformed", before["malformed"] + 100)
        assert descriptors(site) <= held + 2, "HTTP connections of this test may come and go"


def test_strangers_are_refused_although_the_socket_lets_them_in(site: DaemonSite) -> None:
    """The kernel says who sends, whatever the file's mode was changed to."""
    path = trace_socket(str(site.runtime))
    script = textwrap.dedent(
        """
        import os, socket, sys
        raw = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        raw.connect(sys.argv[1])  # while still allowed through the directories
        os.setgid(65534), os.setuid(65534)
        for _ in range(50):
            raw.send(bytes.fromhex(sys.argv[2]))
        """
    )
    with case(FaultClass.NEIGHBOUR, "traces: a sender of another user"):
        before = counted(site)
        subprocess.run([sys.executable, "-c", script, path, good().hex()], check=True, timeout=30)
        wait_for(site, "refused", before["refused"] + 50)
        assert counted(site)["lookups"] == before["lookups"]


def test_the_socket_is_for_its_owner(site: DaemonSite) -> None:
    mode = Path(trace_socket(str(site.runtime))).stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600


@pytest.mark.long
def test_a_flood_takes_a_tenth_of_a_processor_and_no_memory(site: DaemonSite) -> None:
    """Two processes that send the longest look-ups, each page new, as fast as they can."""
    script = textwrap.dedent(
        """
        import sys, time
        import numpy as np
        from snapd.client.trace import Tracer
        rng = np.random.default_rng(int(sys.argv[2]))
        tracer = Tracer(sys.argv[1])
        until = time.monotonic() + float(sys.argv[3])
        while time.monotonic() < until:
            for chain in rng.integers(1, 2**63, (16, 4096)).astype(np.uint64):
                tracer.lookup(chain, parent=7, hits=0)
        """
    )
    client = site.client()
    put_all(client, ["before the flood"])
    memory, idle, began = memory_bytes(process_of(site)), cpu_seconds(site), time.monotonic()
    arguments = [trace_socket(str(site.runtime)), str(SEED), str(FLOOD_SECONDS)]
    with case(FaultClass.NEIGHBOUR, "traces: a flood of the longest look-ups"):
        floods = [
            subprocess.Popen([sys.executable, "-c", script, *arguments[:1], str(at), arguments[2]])
            for at in range(2)
        ]
        try:
            time.sleep(FLOOD_SECONDS / 2)
            put_all(client, ["in the flood"])
            assert site.snapshot()["blocks"] >= 2
            for flood in floods:
                assert flood.wait(30) == 0
        finally:
            for flood in floods:
                flood.kill()
                flood.wait()
        used, seconds = cpu_seconds(site) - idle, time.monotonic() - began
        # Beside the receiver's share: the burst that was saved up, and the daemon's own work.
        assert used < CPU_SHARE_MAX * seconds + 0.25 + 0.15 * seconds + 0.5
        assert memory_bytes(process_of(site)) - memory < 250 * 2**20
        assert client.get("in the flood") == block("in the flood")
    before = counted(site)
    with sender(site) as raw:
        raw.send(good(PAGES_MAX))
    wait_for(site, "lookups", before["lookups"] + 1)


def test_what_a_dead_daemon_left_is_replaced_and_a_file_in_the_way_is_not(tmp_path: Path) -> None:
    with DaemonSite(tmp_path) as site:
        path = Path(trace_socket(str(site.runtime)))
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as dead:
            dead.bind(str(path))
        site.start()
        assert site.status()["trace"]["listening"]
        assert site.stop_daemon() == 0
        assert not path.exists()
        path.write_text("somebody's notes")
        with case(FaultClass.NEIGHBOUR, "traces: a file where the socket belongs"):
            site.start_daemon()
            trace = site.status()["trace"]
            assert not trace["listening"]
            assert "is no socket" in trace["problem"]
            assert site.snapshot()["blocks"] == 0
        assert path.read_text() == "somebody's notes"
