"""Real store processes, killed and stopped in the middle of things."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from store_kit import StoreProcess, content, shared_memory_path


@pytest.fixture
def store(tmp_path: Path) -> Iterator[StoreProcess]:
    with shared_memory_path() as path:
        process = StoreProcess(path, tmp_path, SNAPD_LEASE_SEC="0.2")
        yield process
        process.kill()


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
