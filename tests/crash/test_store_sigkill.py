"""Real store processes, killed and stopped in the middle of things."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from store_kit import StoreClient, StoreProcess, content, shared_memory_path

from snapd.errors import SnapdError

SEED = 20260214


@pytest.fixture
def store(tmp_path: Path) -> Iterator[StoreProcess]:
    with shared_memory_path() as path:
        process = StoreProcess(path, tmp_path, SNAPD_LEASE_SEC="0.2")
        yield process
        process.kill()


class Worker(threading.Thread):
    """Works on its own keys until the store dies. `certain` is what was acknowledged; `doubtful`
    what the call that never returned may have left instead."""

    def __init__(
        self, client: StoreClient, name: str, seed: int, known: dict[bytes, bytes]
    ) -> None:
        super().__init__()
        self.client = client
        self.prefix = name.encode()
        self.random = random.Random(seed)
        self.certain = known
        self.doubtful: dict[bytes, set[bytes | None]] = {}
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            with contextlib.suppress(SnapdError):
                while True:
                    self.step()
        except BaseException as error:  # noqa: BLE001 - shown by the test
            self.error = error

    def step(self) -> None:
        keys = [self.prefix + b"-%d" % self.random.randrange(60) for _ in range(8)]
        if self.random.random() < 0.2:
            self.doubtful = {key: {None, self.certain.get(key)} for key in keys}
            codes = self.client.remove(keys, force=True)
            for key, code in zip(keys, codes, strict=True):
                if code == 0:
                    self.certain.pop(key, None)
        else:
            blocks = {
                key: content(self.random.getrandbits(32), self.random.choice([10, 5000, 30_000]))
                for key in keys
            }
            self.doubtful = {key: {value, self.certain.get(key)} for key, value in blocks.items()}
            codes_by_key = self.client.put(blocks, upsert=True)
            self.certain |= {key: blocks[key] for key, code in codes_by_key.items() if code == 0}
        self.doubtful = {}


def evicted_keys(store: StoreProcess) -> set[bytes]:
    lines = store.event_log.read_text().splitlines() if store.event_log.exists() else []
    return {line.split(" ", 1)[1].encode() for line in lines if line.startswith("evict ")}


@pytest.mark.parametrize("lives", [4, pytest.param(100, marks=pytest.mark.long)])
def test_a_busy_store_killed_at_any_moment_serves_what_it_acknowledged(
    store: StoreProcess, lives: int
) -> None:
    chance = random.Random(SEED)
    known: dict[bytes, bytes] = {}
    for life in range(lives):
        store.start()
        workers = [
            Worker(store.client(), f"w{n}", SEED + 100 * life + n, dict(known)) for n in range(2)
        ]
        for worker in workers:
            worker.start()
        time.sleep(0.05 + chance.random() * 0.15)
        store.kill()
        for worker in workers:
            worker.join(20)
            assert worker.error is None, (SEED, life, worker.error)
            worker.client.close()
        store.start()
        client = store.client()
        assert client.stats().corrupt == 0, (SEED, life)
        gone = evicted_keys(store)
        known = {}
        for number, worker in enumerate(workers):
            for index in range(60):
                key = b"w%d-%d" % (number, index)
                (value,) = client.get([key])
                allowed = worker.doubtful.get(key, {worker.certain.get(key)})
                assert value in allowed or (value is None and key in gone), (SEED, life, key)
                if value is not None:
                    known[key] = value
        client.close()
        assert store.terminate()[0] == 0


LATE_WRITER = textwrap.dedent(
    """
    import os, signal, sys, time
    from pathlib import Path
    sys.path.insert(0, sys.argv[1])
    from store_kit import StoreClient
    from snapd.wire.connection import Connection

    client = StoreClient(Connection(sys.argv[2]).call)
    _, _, _, offsets = client.reserve([b"late"], [1_500_000])
    client.write(int(offsets[0]), b"\\xaa" * 1000)
    if sys.argv[4] == "forked" and os.fork():
        os._exit(0)
    Path(sys.argv[3]).write_text(str(os.getpid()))
    os.kill(os.getpid(), signal.SIGSTOP)
    client.write(int(offsets[0]), b"\\xff" * 1_500_000)
    Path(sys.argv[3]).write_text("done")
    """
)


def wait_for(text_file: Path, wanted: str | None = None) -> str:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        text = text_file.read_text() if text_file.exists() else ""
        if text and wanted in (None, text):
            return text
        time.sleep(0.01)
    raise AssertionError(f"{text_file} does not say {wanted}")


@pytest.mark.parametrize("kind", ["stopped", "forked"])
def test_a_stopped_writer_changes_no_other_block_when_it_goes_on(
    store: StoreProcess, tmp_path: Path, kind: str
) -> None:
    store.start()
    support = str(Path(__file__).parents[1] / "support")
    report = tmp_path / "writer"
    writer = subprocess.Popen(
        [sys.executable, "-c", LATE_WRITER, support, store.socket, str(report), kind]
    )
    pid = int(wait_for(report))
    try:
        store.kill()
        store.start()
        client = store.client()
        assert client.stats().writers_lingering == 1
        blocks: dict[bytes, bytes] = {}
        for number in range(8):
            blocks = {b"%d-%d" % (number, n): content(n, 50_000) for n in range(60)}
            client.put(blocks)
        there = [key for key in blocks if client.exist([key]) == [1]]
        assert len(there) > 20
        os.kill(pid, signal.SIGCONT)
        wait_for(report, "done")
        assert client.get(there) == [blocks[key] for key in there]
        writer.wait(10)
        deadline = time.monotonic() + 5
        while client.stats().writers_lingering and time.monotonic() < deadline:
            time.sleep(0.05)
        assert client.stats().writers_lingering == 0
        client.close()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        writer.kill()
        writer.wait()


def test_a_client_killed_in_the_middle_of_a_put_leaves_nothing_behind(
    store: StoreProcess, tmp_path: Path
) -> None:
    store.start()
    client = store.client()
    before = client.stats()
    support = str(Path(__file__).parents[1] / "support")
    report = tmp_path / "writer"
    writer = subprocess.Popen(
        [sys.executable, "-c", LATE_WRITER, support, store.socket, str(report), "stopped"]
    )
    wait_for(report)
    assert client.stats().bytes_used > before.bytes_used
    writer.kill()
    writer.wait()
    deadline = time.monotonic() + 5
    while client.stats().bytes_used > before.bytes_used and time.monotonic() < deadline:
        time.sleep(0.05)
    after = client.stats()
    assert (after.bytes_used, after.slots_used, after.blocks) == (
        before.bytes_used,
        before.slots_used,
        0,
    )
    assert client.exist([b"late"]) == [0]
    client.close()
