"""Ways of putting blocks into real Mooncake on one machine, side by side in one run.

The question is that of a warm-up: blocks lie in a shared-memory file (read there from NVMe, or left
by a store that died), and are to be in a segment that a store service on this machine has mounted
from another shared-memory file. The ways in:

- `tcp`: a process of its own with a client of its own, over TCP on loopback.
- `tcp_copying`: the same, from memory that is not registered (`put_batch` copies it first).
- `in_store`: inside the process of the store service, which copies locally (`MC_STORE_MEMCPY=1`).
- `in_store_populated`: the same, after the page tables of the mounted segment have been filled;
  what `snapd mooncake-store` does.
- `in_store_unregistered`: the same as `in_store`, from memory that is not registered.
- `in_store_tcp`: inside it as well, the local copy switched off.
- `in_store_sessions`: `batch_put_session_start`, `_from_multi_buffer_ranges`, `_end`.
- `standalone`: Mooncake's own shared-memory path: `mooncake_client` and `setup_dummy`.
- `tent`, `tent_in_store`: the other transfer engine, `MC_USE_TENT=1`, in a process of its own and
  inside the store service.

Every way has a master, a segment and processes of its own; rounds take turns, so that noise of the
machine meets all of them. `first` is the first pass over a fresh segment, which a put back after a
restart is; `again` the median of the passes after it. After the last pass blocks are read back and
compared. A way that this wheel or machine does not have says why. Prints one JSON document; times
are of a noisy machine: compare figures of one run only.

    python benchmarks/mooncake_ways_in.py --wheel PYTHON
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

SEGMENT_BYTES = 384 << 20
PASS_BYTES = 192 << 20
STAGING_BYTES = 32 << 20
BATCH_BYTES = 4 << 20
CELLS = [(64 << 10, 1), (64 << 10, 2), (64 << 10, 4), (1 << 20, 1), (1 << 20, 2), (1 << 20, 4)]
"""Bytes of a block, threads that put."""
ROUNDS = 5
START_SECONDS_MAX = 20.0
MADV_POPULATE_READ = 22
WAYS: dict[str, dict[str, str]] = {
    "tcp": {},
    "tcp_copying": {},
    "in_store": {"MC_STORE_MEMCPY": "1"},
    "in_store_populated": {"MC_STORE_MEMCPY": "1"},
    "in_store_unregistered": {"MC_STORE_MEMCPY": "1"},
    "in_store_tcp": {"MC_STORE_MEMCPY": "0"},
    "in_store_sessions": {"MC_STORE_MEMCPY": "1"},
    "standalone": {},
    "tent": {"MC_USE_TENT": "1"},
    "tent_in_store": {"MC_USE_TENT": "1", "MC_STORE_MEMCPY": "1"},
}
"""The environment that each way needs."""


def free_ports(count: int) -> list[int]:
    """Ports that are free now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in sockets:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in sockets]


# --- the side that has the wheel --------------------------------------------------------------


def shared_memory(path: str, size: int) -> mmap.mmap:
    """A new shared-memory file, allocated in full and mapped."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, size)
        return mmap.mmap(descriptor, size)
    finally:
        os.close(descriptor)


def connect(arguments: argparse.Namespace) -> Any:
    """A client of the way's master."""
    from mooncake.store import MooncakeDistributedStore  # noqa: PLC0415 - only the wheel has it

    client: Any = MooncakeDistributedStore()
    if arguments.way == "standalone" and arguments.role == "putter":
        code = client.setup_dummy(2 * STAGING_BYTES, 16 << 20, arguments.address)
    else:
        code = client.setup(
            "127.0.0.1", arguments.metadata, 0, 16 << 20, "tcp", "", arguments.master
        )
    if code != 0:
        raise SystemExit(f"setup gave {code}")
    return client


def mount(client: Any, path: str) -> None:
    """Have this process serve the segment."""
    shared_memory(path, SEGMENT_BYTES).close()
    answer = client.mount_segment(path, SEGMENT_BYTES, 0, "tcp", "")
    if answer["ret"] != 0:
        raise SystemExit(f"mount gave {answer}")


def hold(arguments: argparse.Namespace) -> None:
    """The store service's part: serve a segment until the input ends."""
    client = connect(arguments)
    mount(client, arguments.segment)
    print("null", flush=True)
    sys.stdin.read()
    client.close()


class Putter:
    """Puts from a staging file and answers commands from the input, one JSON document each."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        import ctypes  # noqa: PLC0415 - with the wheel's part

        self.way = arguments.way
        self.client = connect(arguments)
        if self.way.startswith(("in_store", "tent_in_store")):
            mount(self.client, arguments.segment)
        filled = self.way == "in_store_populated"
        self.populate_seconds = round(populate(arguments.segment), 3) if filled else None
        if self.way == "standalone":
            self.address = self.client.alloc_from_mem_pool(STAGING_BYTES)
            if not self.address:
                raise SystemExit("alloc_from_mem_pool gave no memory")
            self.staging: Any = (ctypes.c_char * STAGING_BYTES).from_address(self.address)
        else:
            self.mapping = shared_memory(arguments.staging, STAGING_BYTES)
            self.staging = (ctypes.c_char * STAGING_BYTES).from_buffer(self.mapping)
            self.address = ctypes.addressof(self.staging)
        if self.way not in ("tcp_copying", "in_store_unregistered"):
            code = self.client.register_buffer(self.address, STAGING_BYTES)
            if code != 0:
                raise SystemExit(f"register_buffer gave {code}")
        self.content = memoryview(self.staging).cast("B")
        self.content[:] = os.urandom(STAGING_BYTES)

    def serve(self) -> None:
        """Until the input ends."""
        print(json.dumps({"populate_seconds": self.populate_seconds}), flush=True)
        for line in sys.stdin:
            size, threads, check = json.loads(line)
            print(json.dumps(self.measure(size, threads, check)), flush=True)
        self.client.close()

    def measure(self, size: int, threads: int, check: bool) -> float:
        """GB/s of one pass with blocks of `size` bytes; the store is emptied before."""
        self.client.remove_all(force=True)
        blocks = BATCH_BYTES // size
        names = [
            [f"{size}-{batch}-{row}".ljust(80, "k") for row in range(blocks)]
            for batch in range(PASS_BYTES // BATCH_BYTES)
        ]
        starts = [batch * BATCH_BYTES % STAGING_BYTES for batch in range(len(names))]
        began = time.perf_counter()
        with ThreadPoolExecutor(threads) as pool:
            codes = list(pool.map(lambda a: self.put(*a, size), zip(names, starts, strict=True)))
        seconds = time.perf_counter() - began
        bad = sorted({code for some in codes for code in some if code != 0})
        if bad:
            raise SystemExit(f"puts gave {bad}")
        if check:
            self.compare(names, starts, size)
        return PASS_BYTES / seconds / 1e9

    def put(self, keys: list[str], start: int, size: int) -> list[int]:
        """One batch; the codes."""
        offsets = [start + row * size for row in range(len(keys))]
        if self.way == "tcp_copying":
            return [self.client.put_batch(keys, [self.content[at : at + size] for at in offsets])]
        addresses, sizes = [self.address + at for at in offsets], [size] * len(keys)
        if self.way != "in_store_sessions":
            return list(self.client.batch_put_from(keys, addresses, sizes))
        codes = list(self.client.batch_put_session_start(keys, sizes))
        codes += self.client.batch_put_from_multi_buffer_ranges(
            keys, [[each] for each in addresses], [[size]] * len(keys), [[0]] * len(keys)
        )
        moved = [code for code in codes if code < 0]
        return moved + list(self.client.batch_put_session_end(keys))

    def compare(self, names: list[list[str]], starts: list[int], size: int) -> None:
        """Read a block of each batch back."""
        for keys, start in zip(names, starts, strict=True):
            if self.client.get(keys[-1]) != bytes(
                self.content[start:][BATCH_BYTES - size :][:size]
            ):
                raise SystemExit(f"{keys[-1].rstrip('k')} came back wrong")


def populate(path: str) -> float:
    """Fill this process's page tables of a mapped file; the seconds that it takes.

    The mapping is Mooncake's own. What `madvise` does to it is only to look at every page.
    """
    import ctypes  # noqa: PLC0415 - with the wheel's part

    libc = ctypes.CDLL(None, use_errno=True)
    began = time.perf_counter()
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(path):
            first, last = (int(part, 16) for part in line.split()[0].split("-"))
            code = libc.madvise(
                ctypes.c_void_p(first), ctypes.c_size_t(last - first), MADV_POPULATE_READ
            )
            if code != 0:
                raise SystemExit(f"madvise: errno {ctypes.get_errno()}")
    return time.perf_counter() - began


# --- the side that measures -------------------------------------------------------------------


class Way:
    """One way in with its processes."""

    def __init__(self, name: str, python: str, directory: Path) -> None:
        self.name = name
        self.python = python
        self.directory = directory
        self.problem = ""
        self.answer: Any = None
        self._processes: list[subprocess.Popen[bytes]] = []
        self._files = [f"/dev/shm/ways-in.{secrets.token_hex(8)}" for _ in range(2)]
        rpc, http, metrics, self._client_port = free_ports(4)
        self.master = f"127.0.0.1:{rpc}"
        self.metadata = f"http://127.0.0.1:{http}/metadata"
        self._ports = [
            f"--rpc_port={rpc}",
            f"--http_metadata_server_port={http}",
            f"--metrics_port={metrics}",
        ]

    def start(self) -> None:
        """Start everything; `problem` says what did not work."""
        bins = Path(self.python).parent
        self._spawn(
            "master",
            [str(bins / "mooncake_master"), "--enable_http_metadata_server=true", *self._ports],
        )
        for address in (self.master, self.metadata.split("/")[2]):
            self._wait_for(int(address.split(":")[1]))
        if self.name == "standalone":
            self._spawn(
                "client",
                [
                    str(bins / "mooncake_client"),
                    "--host=127.0.0.1",
                    f"--port={self._client_port}",
                    f"--global_segment_size={SEGMENT_BYTES}",
                    f"--metadata_server={self.metadata}",
                    f"--master_server_address={self.master}",
                    "--protocol=tcp",
                    "--threads=4",
                ],
            )
            self._wait_for(self._client_port)
        elif "in_store" not in self.name:
            self._ask(self._worker("holder"), None)
        self.putter = self._worker("putter")
        self.answer = self._ask(self.putter, None)

    def measure(self, size: int, threads: int, *, check: bool) -> float:
        """One pass in GB/s; 0 after a failure."""
        answer = self._ask(self.putter, [size, threads, check])
        return float(answer or 0.0)

    def stop(self) -> None:
        """End the processes and remove their memory."""
        for process in reversed(self._processes):
            if process.stdin is not None:
                process.stdin.close()
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        for path in self._files:
            Path(path).unlink(missing_ok=True)

    def _worker(self, role: str) -> subprocess.Popen[bytes]:
        segment, staging = self._files
        return self._spawn(
            role,
            [
                self.python,
                __file__,
                "--role",
                role,
                "--way",
                self.name,
                "--master",
                self.master,
                "--metadata",
                self.metadata,
                "--segment",
                segment,
                "--staging",
                staging,
                "--address",
                f"127.0.0.1:{self._client_port}",
            ],
        )

    def _spawn(self, role: str, command: list[str]) -> subprocess.Popen[bytes]:
        with (self.directory / f"{self.name}.{role}.log").open("wb") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if role in {"holder", "putter"} else log,
                stderr=log,
                env=dict(os.environ) | {"GLOG_minloglevel": "1"} | WAYS[self.name],
            )
        self._processes.append(process)
        return process

    def _ask(self, process: subprocess.Popen[bytes], command: Any) -> Any:
        """Send a command, wait for the answer; None after a failure."""
        if self.problem:
            return None
        assert process.stdin is not None
        assert process.stdout is not None
        watchdog = threading.Timer(START_SECONDS_MAX, process.kill)
        watchdog.start()
        try:
            if command is not None:
                process.stdin.write(json.dumps(command).encode() + b"\n")
                process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = b""
        finally:
            watchdog.cancel()
        if not line:
            code = process.wait()
            role = "holder" if process is not getattr(self, "putter", None) else "putter"
            log = (self.directory / f"{self.name}.{role}.log").read_text(errors="replace")
            self.problem = f"exit code {code}: {' '.join(log.split())[-600:]}"
            return None
        return json.loads(line)

    def _wait_for(self, port: int) -> None:
        deadline = time.monotonic() + START_SECONDS_MAX
        while not self.problem:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
            except OSError:
                if time.monotonic() > deadline:
                    self.problem = f"nobody listens at port {port}"
                time.sleep(0.05)
            else:
                return


def compare_ways(python: str, names: list[str], directory: Path) -> dict[str, Any]:
    """All ways, cell by cell, in turns."""
    ways = [Way(name, python, directory) for name in names]
    result: dict[str, Any] = {way.name: {"cells": []} for way in ways}
    try:
        for way in ways:
            way.start()
        for way in ways:
            first = way.measure(1 << 20, 1, check=False)
            result[way.name] |= {"first_gb_per_s": round(first, 3)} | (way.answer or {})
        for size, threads in CELLS:
            figures: dict[str, list[float]] = {way.name: [] for way in ways}
            for turn in range(ROUNDS):
                for way in ways:
                    last = turn == ROUNDS - 1
                    figures[way.name].append(way.measure(size, threads, check=last))
            for way in ways:
                cell = {"block_bytes": size, "threads": threads, "gb_per_s": None}
                if not way.problem:
                    cell["gb_per_s"] = round(statistics.median(figures[way.name]), 3)
                    cell["least"] = round(min(figures[way.name]), 3)
                    cell["most"] = round(max(figures[way.name]), 3)
                result[way.name]["cells"].append(cell)
    finally:
        for way in ways:
            way.stop()
            if way.problem:
                result[way.name] = {"problem": way.problem}
    return result


def main() -> None:
    """Run what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--wheel", metavar="PYTHON", help="an interpreter that has the wheel")
    parser.add_argument("--ways", nargs="*", choices=sorted(WAYS), default=list(WAYS))
    for name in ("role", "way", "master", "metadata", "segment", "staging", "address"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.role == "holder":
        hold(arguments)
    elif arguments.role == "putter":
        Putter(arguments).serve()
    else:
        with tempfile.TemporaryDirectory() as directory:
            result = compare_ways(arguments.wheel, arguments.ways, Path(directory))
        print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
