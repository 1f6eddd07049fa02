"""How soon a store serves again after SIGKILL: a full segment is adopted by a new process.

    python benchmarks/adoption.py [--blocks 1000000]

A child process fills a segment through the engine (4 KiB blocks, 80-byte keys) and is killed with
SIGKILL. Then `python -m snapd.store` is started on the segment; the clock runs from its exec to
the first answered request. Prints the parts of that time.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from snapd.blocks import KeyColumn
from snapd.config import Settings
from snapd.segment import DataGrowth, SegmentView, open_segment
from snapd.store.blocks import BlockStore
from snapd.store.engine import StoreEngine
from snapd.store.main import slot_count
from snapd.wire import messages as m
from snapd.wire.connection import Connection

BLOCK_BYTES = 4096
BATCH = 8192


def keys_of(first: int, count: int) -> m.KeyBatch:
    """80-byte keys in the manner of SGLang's."""
    return m.encode_keys(
        KeyColumn.from_list([b"model_%072x_k" % number for number in range(first, first + count)])
    )


def fill(settings: Settings, blocks: int) -> None:
    """Fill a new segment, say so, and wait to be killed."""
    segment = open_segment(
        settings.segment_path, settings.global_segment_size, slot_count(settings)
    )
    growth = DataGrowth(segment, lambda error: sys.exit(str(error)))
    growth.start()
    now = time.monotonic()
    store = BlockStore(segment, growth, settings, now=now, wall_seconds=time.time())
    engine = StoreEngine(store, now=now, version="benchmark")
    hello = engine.handle(1, m.Hello(m.PROTOCOL_VERSION, "client", "fill"), now)
    assert isinstance(hello, m.HelloReply)
    view = SegmentView(settings.segment_path, hello.segment_id)
    view.hold_writer(hello.writer)
    for first in range(0, blocks, BATCH):
        count = min(BATCH, blocks - first)
        sizes = np.full(count, BLOCK_BYTES, np.uint64).tobytes()
        reply = engine.handle(1, m.PutStart(keys_of(first, count), sizes), time.monotonic())
        assert isinstance(reply, m.Reserved)
        checksums = np.arange(count, dtype=np.uint64).tobytes()
        end = m.PutEnd(reply.slots, reply.sequences, checksums)
        engine.handle(1, end, time.monotonic())
    print("filled", store.counters.puts, flush=True)
    time.sleep(3600)


def measure(environment: dict[str, str], runtime_dir: str, blocks: int) -> None:
    """Start a store on the segment and time its first answer."""
    batch = keys_of(blocks // 2, 128)
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "snapd.store"], env=environment)
    try:
        while True:
            with contextlib.suppress(Exception):
                connection = Connection(runtime_dir + "/store.sock")
                break
            time.sleep(0.001)
        connected = time.monotonic()
        connection.call(m.Hello(m.PROTOCOL_VERSION, "client", "probe"), m.HelloReply)
        codes = connection.call(m.Exist(batch), m.Codes, timeout_seconds=60)
        answered = time.monotonic()
        found = int(np.frombuffer(codes.codes, np.int32).sum())
        print(
            f"blocks={blocks} found={found}/128 connect_seconds={connected - began:.3f} "
            f"exec_to_first_answer_seconds={answered - began:.3f}"
        )
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    """Fill, kill, start, time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=1_000_000)
    parser.add_argument("--fill", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    path = arguments.fill or f"/dev/shm/snapd-adoption-{os.getpid()}"
    settings = Settings(
        segment_path=path,
        global_segment_size=int(arguments.blocks * BLOCK_BYTES * 1.1),
        segment_blocks_max=int(arguments.blocks * 1.1),
    )
    if arguments.fill:
        fill(settings, arguments.blocks)
        return
    with tempfile.TemporaryDirectory() as runtime_dir:
        environment = os.environ | {
            "SNAPD_SEGMENT_PATH": path,
            "SNAPD_RUNTIME_DIR": runtime_dir,
            "MOONCAKE_GLOBAL_SEGMENT_SIZE": str(settings.global_segment_size),
            "SNAPD_SEGMENT_BLOCKS_MAX": str(settings.segment_blocks_max),
            "SNAPD_LOG_LEVEL": "debug",
        }
        try:
            command = [sys.executable, __file__, "--blocks", str(arguments.blocks), "--fill", path]
            with subprocess.Popen(command, stdout=subprocess.PIPE) as filler:
                assert filler.stdout is not None
                print(filler.stdout.readline().decode().strip())
                filler.kill()
            for _ in range(3):
                measure(environment, runtime_dir, arguments.blocks)
        finally:
            Path(path).unlink(missing_ok=True)


if __name__ == "__main__":
    main()
