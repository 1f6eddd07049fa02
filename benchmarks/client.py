"""The client against a store on this machine: put, get and exist by block size and batch.

Real processes, memory by address (`batch_put_from`, `batch_get_into`), every byte that comes back
compared once. With `--wheel PYTHON`, an interpreter that has `mooncake-transfer-engine-non-cuda`,
the same calls run against real Mooncake over TCP on loopback, its memory in another process.

Each figure is the median over the timed batches; the first pass over a part of the segment, which
fills this process's page tables, is given as `put_first_gb_per_s`. Prints one JSON document. Times
are of a noisy machine: compare runs of one session only.

    python benchmarks/client.py [--wheel PYTHON]
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

SUPPORT = Path(__file__).resolve().parent.parent / "tests" / "support"
sys.path.insert(0, str(SUPPORT))

BLOCK_BYTES = (4096, 65536, 1 << 20)
BATCHES = (1, 32, 128)
CELL_BYTES = 256 << 20
CELL_CALLS_MAX = 400
SEGMENT_BYTES = 1 << 30
SEED = 20260131


def seconds_of(calls: Sequence[Callable[[], Any]]) -> list[float]:
    """Seconds that each call takes."""
    result = []
    for call in calls:
        began = time.perf_counter()
        call()
        result.append(time.perf_counter() - began)
    return result


class Worker:
    """One client and its buffers; runs in either interpreter."""

    def __init__(self, module: str, master: str, metadata: str) -> None:
        self.client: Any = importlib.import_module(module).MooncakeDistributedStore()
        code = self.client.setup("127.0.0.1", metadata, 0, 1 << 24, "tcp", "", master)
        if code != 0:
            raise SystemExit(f"setup gave {code}")
        longest = max(BLOCK_BYTES) * max(BATCHES)
        self.source = np.random.default_rng(SEED).integers(0, 256, longest, np.uint8)
        self.target = np.zeros(longest, np.uint8)
        for buffer in (self.source, self.target):
            self.client.register_buffer(buffer.ctypes.data, len(buffer))

    def cell(self, block_bytes: int, batch: int) -> dict[str, float]:
        """Figures of one block size and batch."""
        self.client.remove_all(force=True)
        count = max(3, min(CELL_CALLS_MAX, CELL_BYTES // (block_bytes * batch)))
        keys = [
            [f"{block_bytes}-{batch}-{call}-{row}".ljust(80, "k") for row in range(batch)]
            for call in range(count)
        ]
        sizes = [block_bytes] * batch
        sources = [self.source.ctypes.data + row * block_bytes for row in range(batch)]
        targets = [self.target.ctypes.data + row * block_bytes for row in range(batch)]
        put, get = self.client.batch_put_from, self.client.batch_get_into
        exist = self.client.batch_is_exist
        first = seconds_of([lambda k=k: _all(put(k, sources, sizes), 0) for k in keys])
        self.client.remove_all(force=True)
        puts = seconds_of([lambda k=k: _all(put(k, sources, sizes), 0) for k in keys])
        gets = seconds_of([lambda k=k: _all(get(k, targets, sizes), block_bytes) for k in keys])
        asks = seconds_of([lambda k=k: _all(exist(k), 1) for k in keys])
        used = block_bytes * batch
        if not np.array_equal(self.source[:used], self.target[:used]):
            raise SystemExit("bytes came back wrong")
        return {
            "block_bytes": block_bytes,
            "batch": batch,
            "put_first_gb_per_s": used / statistics.median(first) / 1e9,
            "put_gb_per_s": used / statistics.median(puts) / 1e9,
            "get_gb_per_s": used / statistics.median(gets) / 1e9,
            "put_us": statistics.median(puts) * 1e6,
            "get_us": statistics.median(gets) * 1e6,
            "exist_us": statistics.median(asks) * 1e6,
        }

    def run(self) -> list[dict[str, float]]:
        """All cells."""
        cells = [self.cell(size, batch) for size in BLOCK_BYTES for batch in BATCHES]
        self.client.close()
        return [{name: round(value, 3) for name, value in cell.items()} for cell in cells]


def _all(codes: list[int], expected: int) -> None:
    if any(code != expected for code in codes):
        raise SystemExit(f"expected {expected}, got {sorted(set(codes))}")


def measure_snapd(directory: Path) -> Any:
    """Figures of our client and the bundled store."""
    from client_store import StoreProcess  # noqa: PLC0415 - not in the wheel's interpreter

    with StoreProcess(directory, global_segment_size=SEGMENT_BYTES) as store:
        return _run_worker(sys.executable, "snapd.client", store.address, "P2PHANDSHAKE")


def measure_wheel(directory: Path, python: str) -> Any:
    """Figures of the wheel."""
    from client_wheel import WheelStore  # noqa: PLC0415 - only where it is asked for

    with WheelStore(directory, python, SEGMENT_BYTES) as store:
        return _run_worker(python, "mooncake.store", store.master, store.metadata)


def _run_worker(python: str, module: str, master: str, metadata: str) -> Any:
    command = [python, __file__, "--worker", module, master, metadata]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout)


def main() -> None:
    """Run what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--wheel", metavar="PYTHON", help="also run real Mooncake with this")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(Worker(*arguments.worker).run()))
        return
    with tempfile.TemporaryDirectory() as directory:
        result = {"snapd": measure_snapd(Path(directory))}
        if arguments.wheel:
            result["mooncake"] = measure_wheel(Path(directory), arguments.wheel)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
