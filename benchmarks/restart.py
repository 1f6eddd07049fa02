"""Restart with many small blocks: snapshot cost, and time until the store serves again.

Real processes on this machine: `snapd store` and `snapd run`, blocks of 4 KiB with 80-byte keys.

1. Fill, take a full snapshot.
2. Read 100,000 blocks, put one, take the next snapshot: its time and bytes written.
3. SIGKILL the store and start it again over its shared memory: seconds from exec to the first
   block that comes back right, and what the processes read from storage meanwhile.
4. SIGKILL store and daemon, remove the shared memory, start both: seconds from exec until /readyz
   says 200; at that moment 10,000 random keys must exist and 100 must hold their bytes.

Prints one JSON document; exit code 1 if a check failed. Times are of a noisy machine: compare runs
of one session only.

    python benchmarks/restart.py --blocks 1000000
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil

from snapd.client import MooncakeDistributedStore

BLOCK_BYTES = 4096
BATCH = 4096
READS = 100_000
SAMPLE_EXIST = 10_000
SAMPLE_VERIFY = 100
START_SECONDS_MAX = 60.0


def key_of(number: int) -> str:
    """An 80-byte key that looks random, as SGLang's page hashes do."""
    word = (number * 0x9E3779B97F4A7C15 + 0x1234567) & (2**64 - 1)
    return f"{word:016x}" * 4 + f"_{number:015d}"


def content_of(first: int, count: int) -> npt.NDArray[np.uint8]:
    """Bytes of blocks, uint8 [count, BLOCK_BYTES]: each 8-byte word names its place."""
    numbers = np.arange(first, first + count, dtype=np.uint64)[:, None]
    words = numbers * np.uint64(0xD1342543DE82EF95) + np.arange(BLOCK_BYTES // 8, dtype=np.uint64)
    return words.view(np.uint8).reshape(count, BLOCK_BYTES)


class Machine:
    """One store and one daemon in directories of their own."""

    def __init__(self, blocks: int, directory: Path) -> None:
        self.blocks = blocks
        self.segment = Path("/dev/shm") / f"snapd-restart-{os.getpid()}.segment"
        self.port = _free_port()
        self.environment = {
            **os.environ,
            "SNAPD_RUNTIME_DIR": str(directory / "run"),
            "MOONCAKE_STORE_PERSISTENT_PATH": str(directory / "repository"),
            "MOONCAKE_STORE_SNAPSHOT_INTERVAL_SEC": "3600",
            "MOONCAKE_GLOBAL_SEGMENT_SIZE": str(int(blocks * BLOCK_BYTES * 1.15) + 2**26),
            "SNAPD_SEGMENT_BLOCKS_MAX": str(int(blocks * 1.05) + 1024),
            "SNAPD_SEGMENT_PATH": str(self.segment),
            "SNAPD_HTTP": f"127.0.0.1:{self.port}",
        }
        os.environ["SNAPD_RUNTIME_DIR"] = self.environment["SNAPD_RUNTIME_DIR"]
        self.log = (directory / "log").open("ab")
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str) -> float:
        """Start "store" or "run"; returns the time of exec."""
        began = time.monotonic()
        self.processes[name] = subprocess.Popen(
            [str(Path(sys.executable).with_name("snapd")), name],
            env=self.environment,
            stderr=self.log,
        )
        return began

    def kill(self, *names: str) -> None:
        """SIGKILL these processes and wait for them."""
        for name in names:
            self.processes[name].send_signal(signal.SIGKILL)
        for name in names:
            self.processes.pop(name).wait()

    def storage_bytes_read(self) -> int:
        """Bytes that the running processes had read from storage, of /proc/<pid>/io."""
        return sum(psutil.Process(p.pid).io_counters().read_bytes for p in self.processes.values())

    def peak_private_bytes(self, name: str) -> int:
        """RssAnon now, in bytes (the peak is higher while it recovers)."""
        status = Path(f"/proc/{self.processes[name].pid}/status").read_text()
        return next(
            int(line.split()[1]) * 1024 for line in status.splitlines() if "RssAnon" in line
        )

    def request(self, method: str, path: str) -> tuple[int, Any]:
        """Ask the daemon over its control socket: status and JSON (None if it is not JSON)."""
        with contextlib.closing(http.client.HTTPConnection("localhost", timeout=300)) as web:
            web.sock = socket.socket(socket.AF_UNIX)
            web.sock.settimeout(300)
            web.sock.connect(self.environment["SNAPD_RUNTIME_DIR"] + "/snapd.sock")
            web.request(method, path)
            answer = web.getresponse()
            body = answer.read()
        with contextlib.suppress(ValueError):
            return answer.status, json.loads(body)
        return answer.status, None

    def wait_ready(self, began: float) -> float:
        """Seconds from `began` until /readyz says 200. Raises TimeoutError."""
        while time.monotonic() - began < START_SECONDS_MAX:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self.request("GET", "/readyz")[0] == 200:
                    return time.monotonic() - began
            time.sleep(0.005)
        raise TimeoutError(f"not ready after {START_SECONDS_MAX} s")

    def close(self) -> None:
        """End what was started and remove the segment."""
        self.kill(*list(self.processes))
        self.segment.unlink(missing_ok=True)
        self.log.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def connect() -> MooncakeDistributedStore:
    """A client of the store; waits until it answers."""
    client = MooncakeDistributedStore()
    deadline = time.monotonic() + START_SECONDS_MAX
    while client.setup("localhost", "", 0, 0, "tcp", "", "") != 0:
        if time.monotonic() > deadline:
            raise TimeoutError("no store")
        time.sleep(0.005)
    return client


def fill(client: MooncakeDistributedStore, blocks: int) -> float:
    """Put all blocks; returns seconds."""
    began = time.monotonic()
    for first in range(0, blocks, BATCH):
        count = min(BATCH, blocks - first)
        content = content_of(first, count)
        client.register_buffer(content.ctypes.data, content.nbytes)
        pointers = [content.ctypes.data + row * BLOCK_BYTES for row in range(count)]
        keys = [key_of(number) for number in range(first, first + count)]
        codes = client.batch_put_from(keys, pointers, [BLOCK_BYTES] * count)
        client.unregister_buffer(content.ctypes.data)
        if any(codes):
            raise RuntimeError(f"put failed: {sorted(set(codes))}")
    return time.monotonic() - began


def read_some(client: MooncakeDistributedStore, numbers: list[int]) -> int:
    """Get these blocks; returns how many came back with the right bytes."""
    right = 0
    for first in range(0, len(numbers), BATCH):
        part = numbers[first : first + BATCH]
        for number, value in zip(part, client.get_batch([key_of(n) for n in part]), strict=True):
            right += value == content_of(number, 1).tobytes()
    return right


def snapshot(machine: Machine) -> dict[str, Any]:
    """Take one and return the daemon's own account of it."""
    status, answer = machine.request("POST", "/snapshot")
    if status != 200:
        raise RuntimeError(f"snapshot: HTTP {status} {answer}")
    return dict(answer)


def restart_from_memory(machine: Machine, sample: list[int]) -> dict[str, Any]:
    """Step 3."""
    daemon = psutil.Process(machine.processes["run"].pid)
    before = daemon.io_counters().read_bytes
    machine.kill("store")
    began = machine.start("store")
    client = connect()
    first = read_some(client, sample[:1])
    seconds = time.monotonic() - began
    machine.wait_ready(began)
    present = sum(client.batch_is_exist([key_of(n) for n in sample]))
    right = read_some(client, sample[:SAMPLE_VERIFY])
    client.close()
    return {
        "first_block_seconds": seconds,
        "first_block_right": first,
        "exist": present,
        "verified": right,
        "daemon_read_bytes": daemon.io_counters().read_bytes - before,
        "store_read_bytes": psutil.Process(machine.processes["store"].pid).io_counters().read_bytes,
    }


def restart_from_disk(machine: Machine, sample: list[int]) -> dict[str, Any]:
    """Step 4."""
    machine.kill("store", "run")
    machine.segment.unlink()
    began = machine.start("store")
    machine.start("run")
    ready = machine.wait_ready(began)
    client = connect()
    present = sum(client.batch_is_exist([key_of(n) for n in sample]))
    right = read_some(client, sample[:SAMPLE_VERIFY])
    verified_after = time.monotonic() - began
    client.close()
    return {
        "ready_seconds": ready,
        "verified_after_seconds": verified_after,
        "exist": present,
        "verified": right,
        "daemon_private_bytes": machine.peak_private_bytes("run"),
        "status": machine.request("GET", "/status")[1],
    }


def run(blocks: int, directory: Path) -> dict[str, Any]:
    """All four steps."""
    generator = np.random.default_rng(1)
    sample = generator.choice(blocks, min(SAMPLE_EXIST, blocks), replace=False).tolist()
    reads = generator.choice(blocks, min(READS, blocks), replace=False).tolist()
    with contextlib.closing(Machine(blocks, directory)) as machine:
        machine.start("store")
        machine.start("run")
        client = connect()
        result: dict[str, Any] = {"blocks": blocks, "fill_seconds": fill(client, blocks)}
        result["snapshot_full"] = snapshot(machine)
        result["reads_right"] = read_some(client, reads)
        client.put("one more", b"x" * BLOCK_BYTES)
        time.sleep(6.0)  # past the flush: the snapshot is what is measured
        result["snapshot_next"] = snapshot(machine)
        client.close()
        result["memory"] = restart_from_memory(machine, sample)
        result["disk"] = restart_from_disk(machine, sample)
    return result


@contextlib.contextmanager
def work_directory() -> Iterator[Path]:
    """A directory on the disk that holds this checkout, removed afterwards."""
    directory = Path(tempfile.mkdtemp(prefix="restart-", dir=Path.cwd()))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def main() -> int:
    """Run and print; 1 if a block was missing or wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=100_000)
    arguments = parser.parse_args()
    with work_directory() as directory:
        try:
            result = run(arguments.blocks, directory)
        except BaseException:
            sys.stderr.write((directory / "log").read_text()[-5000:])
            raise
    json.dump(result, sys.stdout, indent=2)
    print()
    wanted = min(SAMPLE_EXIST, arguments.blocks)
    good = all(
        result[part]["exist"] == wanted and result[part]["verified"] == SAMPLE_VERIFY
        for part in ("memory", "disk")
    )
    return 0 if good and result["reads_right"] == min(READS, arguments.blocks) else 1


if __name__ == "__main__":
    sys.exit(main())
