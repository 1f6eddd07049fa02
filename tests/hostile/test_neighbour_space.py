"""A client that takes all the space, or leases on everything: others wait for nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_ledger import FaultClass, case
from neighbour_kit import connect, neighbourhood, until
from store_kit import StoreProcess, content, shared_memory_path

SEED = 20261123
SEGMENT = 8 << 20


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreProcess]:
    with shared_memory_path() as path:
        process = StoreProcess(path, tmp_path_factory.mktemp("space"), SNAPD_LEASE_SEC="0.3")
        process.start()
        yield process
        process.kill()


@pytest.fixture
def store(site: StoreProcess) -> StoreProcess:
    """A store that is empty, whatever the test before did to it."""
    client = site.client()
    client.remove_all(force=True)
    until("late writers are gone", lambda: client.stats().bytes_used == 0)
    client.close()
    return site


def address(store: StoreProcess) -> str:
    return f"unix:{Path(store.socket).parent}"


@pytest.mark.parametrize(("count", "size"), [(400, 16_384), (60_000, 10)])
def test_who_reserves_all_and_never_ends_leaves_room_for_others(
    store: StoreProcess, count: int, size: int
) -> None:
    """Half of the space is the most that one writer may have unfinished, and three quarters the
    most that all may, but for small change, until they end or die."""
    with neighbourhood(store, SEED) as witness:
        refused = witness.refused
        rude = [store.client() for _ in range(3)]
        with case(FaultClass.NEIGHBOUR, f"space: all reserved in blocks of {size} by 3 clients"):
            for number, client in enumerate(rude):
                keys = [b"%d-%d" % (number, n) for n in range(count)]
                codes, *_ = client.reserve(keys, [size] * count)
                assert set(codes.tolist()) <= {0, -200}
                stats = client.stats()
                assert stats.slots_used <= stats.slots_capacity
            taken = rude[0].stats()
            assert taken.bytes_used <= SEGMENT
            done = len(witness.seconds)
            until("the witness works on", lambda: len(witness.seconds) > done + 200)
            assert witness.refused == refused, "a quarter is left for it"
        for client in rude:
            client.close()
        with case(FaultClass.NEIGHBOUR, f"space: blocks of {size} come back when their writers go"):
            probe = store.client()
            until("the space is back", lambda: probe.stats().bytes_used < SEGMENT // 2)
            assert probe.stats().writers_lingering == 0
            probe.close()


def test_a_process_with_many_connections_is_bounded_too(store: StoreProcess) -> None:
    rude = [store.client() for _ in range(12)]
    units = 0
    with case(FaultClass.NEIGHBOUR, "space: all reserved over 12 connections"):
        for number, client in enumerate(rude):
            keys = [b"%d-%d" % (number, n) for n in range(64)]
            codes, *_ = client.reserve(keys, [16_384] * 64)
            units += 4 * int((codes == 0).sum())
        assert SEGMENT // 2 < units * 4096 <= SEGMENT * (3 / 4 + 6 / 32)
        well = connect(address(store))
        assert well.put("k", bytes(100_000)) == 0
        assert well.get("k") == bytes(100_000)
        well.close()
    for client in rude:
        client.close()


def test_leases_on_everything_make_a_put_refused_and_never_wait(store: StoreProcess) -> None:
    rude = store.client()
    blocks = {b"k%d" % n: content(n, 60_000) for n in range(130)}
    rude.put(blocks)
    with case(FaultClass.NEIGHBOUR, "space: leases on everything"):
        there = [key for key in blocks if rude.exist([key]) == [1]]
        assert len(there) > 100
        well = connect(address(store))
        slowest, refused = 0.0, 0
        for _ in range(20):
            rude.exist(there)
            began = time.monotonic()
            refused += well.put("new", content(1, 900_000)) == -200
            slowest = max(slowest, time.monotonic() - began)
        assert refused == 20
        assert slowest < 1
        assert rude.get(there) == [blocks[key] for key in there]
    with case(FaultClass.NEIGHBOUR, "space: leases run out"):
        until("a put succeeds", lambda: well.put("new", content(1, 900_000)) == 0)
        assert well.get("new") == content(1, 900_000)
    well.close()
    rude.close()


WRITER = textwrap.dedent(
    """
    import os, signal, sys, time
    from pathlib import Path
    sys.path.insert(0, sys.argv[1])
    from store_kit import StoreClient
    from snapd.wire.connection import Connection

    client = StoreClient(Connection(sys.argv[2]).call)
    codes, slots, sequences, offsets = client.reserve([b"late"], [1_000_000])
    assert codes.tolist() == [0]
    report, how = Path(sys.argv[3]), sys.argv[4]
    if how == "forked" and os.fork():
        os._exit(0)
    if how == "revoked":
        from snapd.wire import messages as m
        client.call(m.PutRevoke(slots.tobytes(), sequences.tobytes()), m.Codes)
    report.write_text(str(os.getpid()))
    if how == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    while how == "forked" and report.with_suffix(".go").exists() is False:
        client.write(int(offsets[0]), b"\\xee" * 1_000_000)
        time.sleep(0.01)
    if how != "revoked":
        client.write(int(offsets[0]), b"\\xff" * 1_000_000)
    report.write_text("done")
    time.sleep(0.2)
    """
)


@pytest.mark.parametrize("how", ["forked", "stopped", "revoked"])
def test_a_child_that_writes_on_or_a_stopped_writer_touches_nobody_elses_bytes(
    store: StoreProcess, tmp_path: Path, how: str
) -> None:
    """The space of an unfinished put is reused only when nobody can write into it any more."""
    support = str(Path(__file__).parents[1] / "support")
    report = tmp_path / "writer"
    name = f"late writer: {how} in the middle of a put, its space wanted by others"
    with neighbourhood(store, SEED + 1), case(FaultClass.NEIGHBOUR, name):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, support, store.socket, str(report), how]
        )
        try:
            until("it writes", report.exists)
            until("it says who", lambda: report.read_text() != "")
            client = store.client()
            good: dict[bytes, bytes] = {}
            for number in range(4):
                blocks = {b"%d-%d" % (number, n): content(n, 50_000) for n in range(60)}
                codes = client.put(blocks)
                good = {key: blocks[key] for key, code in codes.items() if code == 0}
            pid = int(report.read_text()) if how != "revoked" else 0
            report.with_suffix(".go").touch()
            if how == "stopped":
                os.kill(pid, signal.SIGCONT)
            until("it has written", lambda: report.read_text() == "done")
            there = [key for key in good if client.exist([key]) == [1]]
            assert len(there) > 20
            assert client.get(there) == [good[key] for key in there]
            writer.wait(10)
            until("its space is free", lambda: client.stats().writers_lingering == 0)
            client.close()
        finally:
            writer.kill()
            writer.wait()


READER = textwrap.dedent(
    """
    import os, signal, sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[1])
    import neighbour_kit
    from snapd.client import transfer

    copy = transfer.ctypes.string_at
    def stopping(address, size):
        first = copy(address, size // 2)
        Path(sys.argv[3]).write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGSTOP)
        return first + copy(address + size // 2, size - size // 2)
    transfer.ctypes.string_at = stopping

    client = neighbour_kit.connect(sys.argv[2])
    got = client.get("k")
    expected = Path(sys.argv[4]).read_bytes()
    Path(sys.argv[3]).write_text("right" if got in (b"", expected) else "WRONG")
    """
)


@pytest.mark.parametrize(
    "what",
    [
        "evicted",
        "replaced",
        pytest.param("removed", marks=pytest.mark.long),
        pytest.param("restarted", marks=pytest.mark.long),
    ],
)
def test_a_reader_stopped_in_the_middle_of_a_copy_never_returns_what_came_after(
    store: StoreProcess, tmp_path: Path, what: str
) -> None:
    support = str(Path(__file__).parents[1] / "support")
    report, value = tmp_path / "reader", tmp_path / "value"
    client = connect(address(store))
    value.write_bytes(content(1, 500_000))
    assert client.put("k", value.read_bytes()) == 0
    with case(FaultClass.NEIGHBOUR, f"late reader: stopped in a copy, its block {what}"):
        reader = subprocess.Popen(
            [sys.executable, "-c", READER, support, address(store), str(report), str(value)]
        )
        try:
            until("it copies", lambda: report.exists() and report.read_text() != "")
            pid = int(report.read_text())
            time.sleep(0.35)  # its lease is over
            if what == "removed":
                assert client.remove("k", force=True) == 0
            elif what == "replaced":
                value.write_bytes(content(2, 500_000))
                assert client.upsert("k", value.read_bytes()) == 0
            elif what == "restarted":
                store.kill()
                store.start()
            other = content(3, 500_000)
            for number in range(40):
                client.put(f"other{number}", other)
            if what == "evicted":
                assert client.is_exist("k") == 0

            def has_answered() -> bool:
                os.kill(pid, signal.SIGCONT)  # it stops at each copy that it makes
                return report.read_text() in ("right", "WRONG")

            until("it has an answer", has_answered)
            assert report.read_text() == "right"
        finally:
            reader.kill()
            reader.wait()
    client.close()


def test_nobody_may_write_without_a_lock(store: StoreProcess) -> None:
    rude = store.client()
    rude.view.release_writer(rude.hello.writer)
    with (
        case(FaultClass.NEIGHBOUR, "space: a reservation without the writer's lock"),
        pytest.raises(Exception, match="hold the writer lock"),
    ):
        rude.reserve([b"a"], [10])
    rude.close()


def test_bounds_hold_again_after_a_restart_of_the_store(store: StoreProcess) -> None:
    """What late writers still hold counts: the bound is on space, not on connections."""
    late = store.client()
    codes, *_ = late.reserve([b"l%d" % n for n in range(80)], [50_000] * 80)
    held = int((codes == 0).sum())
    assert held * 50_000 <= SEGMENT // 2
    store.kill()
    store.start()
    with case(FaultClass.NEIGHBOUR, "space: bounds after a restart beside late writers"):
        taken = []
        for _ in range(3):
            client = store.client()
            codes, *_ = client.reserve([b"m%d" % n for n in range(80)], [50_000] * 80)
            taken.append(int((codes == 0).sum()))
            client.close()
        assert (held + taken[0]) * 50_000 <= SEGMENT * 3 // 4
        assert sum(taken) > 0
    late.close()
