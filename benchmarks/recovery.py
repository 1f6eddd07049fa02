"""What recovery, an unchanged snapshot and random reads cost over many small blocks.

    python benchmarks/recovery.py DIRECTORY [--blocks 1000000] [--block-bytes 4096]

Fills a repository in DIRECTORY/recovery-benchmark (unless one of that size is there), then measures
in a fresh process: time and memory of recovery, of a commit with nothing changed, and of reads.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import xxhash

from snapd.blocks import BlockTable, KeyColumn
from snapd.disk import PosixDisk
from snapd.repository import Repository

BATCH = 4096
KEY_BYTES = 80
WINDOW_BYTES = 64 * 2**20
"""Read at a time, as the warm-up does."""
READ_BYTES = 2 * 2**30
"""Read in all."""


def anonymous_bytes() -> tuple[int, int]:
    """RssAnon now, and the peak of all resident memory, in bytes."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) << 10, int(fields["VmHWM"].split()[0]) << 10


def keys_of(first: int, count: int) -> KeyColumn:
    """80-byte keys as HiCache makes them: a SHA-256 in hexadecimal and a suffix."""
    digits = np.frombuffer(b"0123456789abcdef", np.uint8)
    rng = np.random.default_rng(first)
    heap = np.full((count, KEY_BYTES), ord("_"), np.uint8)
    heap[:, :64] = digits[rng.integers(0, 16, (count, 64))]
    heap[:, 64:] = np.frombuffer(b"_0_k____________", np.uint8)
    return KeyColumn.from_lengths(heap.reshape(-1), np.full(count, KEY_BYTES))


def fill(path: Path, blocks: int, block_bytes: int) -> float:
    """Write all blocks; returns bytes of blocks a second."""
    memory = memoryview(mmap.mmap(-1, BATCH * block_bytes))
    memory[:] = np.random.default_rng(1).bytes(BATCH * block_bytes)
    buffers = [memory[n * block_bytes : (n + 1) * block_bytes] for n in range(BATCH)]
    started = time.monotonic()
    with Repository.open(PosixDisk(path, create=True)) as repository:
        repository.recover()
        writer = repository.begin_pack()
        for first in range(0, blocks, BATCH):
            count = min(BATCH, blocks - first)
            for n in range(count):
                memory[n * block_bytes : n * block_bytes + 8] = (first + n).to_bytes(8, "little")
            keys = keys_of(first, count)
            table = BlockTable.for_keys(keys, keys.hashes()).with_columns(
                incarnation=np.ones(count),
                sequence=np.arange(first + 1, first + 1 + count),
                size=np.full(count, block_bytes),
                checksum=np.array(
                    [xxhash.xxh3_64_intdigest(buffer) for buffer in buffers[:count]], np.uint64
                ),
                heat=np.linspace(0, 100, count),
            )
            writer.append(table, buffers[:count])
            if writer.full:
                writer.seal()
                writer = repository.begin_pack()
        writer.seal()
        repository.commit()
    return blocks * block_bytes / (time.monotonic() - started)


def measure(path: Path) -> dict[str, float]:
    """Recover, commit with nothing changed, read 1,000 random blocks and then all in order."""
    before, _ = anonymous_bytes()
    result: dict[str, float] = {"anonymous_before_mb": before / 1e6}
    started, cpu = time.monotonic(), time.process_time()
    repository = Repository.open(PosixDisk(path))
    recovery = repository.recover()
    result["recovery_seconds"] = time.monotonic() - started
    result["recovery_cpu_seconds"] = time.process_time() - cpu
    anonymous, peak = anonymous_bytes()
    result["anonymous_mb"] = anonymous / 1e6
    result["peak_resident_mb"] = peak / 1e6
    result["anonymous_bytes_per_block"] = (anonymous - before) / max(1, recovery.blocks)
    result["blocks"] = recovery.blocks

    started = time.monotonic()
    summary = repository.commit()
    result["commit_seconds"] = time.monotonic() - started
    result["manifest_bytes"] = summary.file_bytes
    result["peak_resident_after_commit_mb"] = anonymous_bytes()[1] / 1e6

    heat = np.random.default_rng(3).random(recovery.blocks, np.float32)
    repository.catalog.set_heat(repository.catalog.live_rows(), heat)
    result["manifest_bytes_of_random_heat"] = repository.commit().file_bytes

    size = int(repository.catalog.column("size", repository.catalog.rows()).max())
    batch = min(BATCH, WINDOW_BYTES // size)
    memory = memoryview(mmap.mmap(-1, batch * size))
    memory[:] = bytes(batch * size)
    buffers = [memory[n * size : (n + 1) * size] for n in range(batch)]
    rows = np.random.default_rng(2).integers(0, recovery.blocks, batch)
    started = time.monotonic()
    assert repository.read(rows, buffers).all()
    result["random_reads_per_second"] = batch / (time.monotonic() - started)
    started, cpu = time.monotonic(), time.process_time()
    total = min(recovery.blocks, READ_BYTES // size)
    for first in range(0, total, batch):
        rows = np.arange(first, min(first + batch, total))
        assert repository.read(rows, buffers[: len(rows)]).all()
    result["sequential_read_gb_per_second"] = total * size / (time.monotonic() - started) / 1e9
    result["read_cpu_seconds_per_gb"] = (time.process_time() - cpu) / (total * size / 1e9)
    repository.close()
    return result


def main() -> None:
    """Fill if needed, then measure in a fresh process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--blocks", type=int, default=1_000_000)
    parser.add_argument("--block-bytes", type=int, default=4096)
    parser.add_argument("--measure-only", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    path = arguments.directory / "recovery-benchmark"
    if arguments.measure_only:
        print(json.dumps(measure(path)))
        return
    marker = path / f"filled-{arguments.blocks}-{arguments.block_bytes}"
    if not marker.exists():
        shutil.rmtree(path, ignore_errors=True)
        rate = fill(path, arguments.blocks, arguments.block_bytes)
        print(f"fill: {rate / 1e9:.2f} GB/s, keys and checksums included")
        marker.touch()
    os.sync()
    command = [sys.executable, __file__, str(arguments.directory), "--measure-only"]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    for name, value in json.loads(out).items():
        print(f"{name:32} {value:14,.3f}")


if __name__ == "__main__":
    main()
