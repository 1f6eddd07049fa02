"""A client of real Mooncake with a fixed load: what it puts and reads, when, and in which order.

    python eviction_load.py <master host:port> <metadata URL> <JSON of the load>

Run by an interpreter that has the wheel. Each step puts the next keys and reads some of those that
were put before, and begins at its own time, whatever the steps before took: so that two runs differ
by nothing but the machine. Only the standard library and NumPy.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class EvictionLoad:
    """Keys are put once each, in the order of their numbers."""

    seed: int
    keys: int
    """Put in all."""
    resident: int
    """About as many as the store has room for, below its watermark."""
    block_bytes: int
    step_keys: int
    step_reads: int
    step_seconds: float

    @property
    def steps(self) -> int:
        return self.keys // self.step_keys

    def names(self, numbers: Any) -> list[str]:
        return [f"evict-{number:07d}" for number in numbers]

    def reads(self, step: int) -> Any:
        """Numbers of the keys that are read after the puts of a step, int64.

        They are among those that fit into the store, newer ones more often: what is read is put
        behind what is not in the order of eviction, again and again.
        """
        random = np.random.default_rng([self.seed, step])
        newest = (step + 1) * self.step_keys - 1
        back = np.floor(random.beta(1.0, 1.6, self.step_reads) * self.resident).astype(np.int64)
        return np.maximum(newest - back, 0)


class Client:
    """The wheel's client with one registered buffer."""

    def __init__(self, master: str, metadata: str, load: EvictionLoad) -> None:
        import mooncake.store as mooncake  # noqa: PLC0415 - its messages must be out of the way

        self._load = load
        self._store = mooncake.MooncakeDistributedStore()
        code = self._store.setup("127.0.0.1", metadata, 0, 1 << 24, "tcp", "", master)
        if code != 0:
            raise SystemExit(f"setup failed with {code}")
        rows = max(load.step_keys, load.step_reads)
        self._buffer = np.empty((rows, load.block_bytes), np.uint8)
        if self._store.register_buffer(self._buffer.ctypes.data, self._buffer.nbytes) != 0:
            raise SystemExit("register_buffer failed")
        first = self._buffer.ctypes.data
        self._places = [first + row * load.block_bytes for row in range(rows)]
        self._sizes = [load.block_bytes] * rows

    def put(self, step: int) -> int:
        """How many of the step's keys were not stored."""
        count = self._load.step_keys
        numbers = np.arange(step * count, (step + 1) * count)
        self._buffer[:count] = np.random.default_rng([self._load.seed, 1, step]).integers(
            0, 256, (count, self._load.block_bytes), np.uint8
        )
        codes = self._store.batch_put_from(
            self._load.names(numbers), self._places[:count], self._sizes[:count]
        )
        return sum(code != 0 for code in codes)

    def read(self, step: int) -> int:
        """How many of the step's reads found nothing."""
        numbers = self._load.reads(step)
        count = len(numbers)
        found = self._store.batch_get_into(
            self._load.names(numbers), self._places[:count], self._sizes[:count]
        )
        return sum(length != self._load.block_bytes for length in found)

    def close(self) -> None:
        self._store.close()


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # the wheel's native code logs to descriptor 1 too
    master, metadata, text = sys.argv[1:]
    load = EvictionLoad(**json.loads(text))
    client = Client(master, metadata, load)
    failed_puts = misses = 0
    latest = 0.0
    began = time.monotonic()
    for step in range(load.steps):
        at = began + step * load.step_seconds
        late = time.monotonic() - at
        latest = max(latest, late)
        if late < 0:
            time.sleep(-late)
        failed_puts += client.put(step)
        misses += client.read(step)
    seconds = time.monotonic() - began
    report = {
        "failed_puts": failed_puts,
        "misses": misses,
        "reads": load.steps * load.step_reads,
        "seconds": round(seconds, 3),
        "late_seconds_max": round(latest, 3),
        **asdict(load),
    }
    print(json.dumps(report), file=answers, flush=True)
    client.close()


if __name__ == "__main__":
    main()
