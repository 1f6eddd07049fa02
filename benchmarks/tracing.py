"""What tracing costs a request: the same load with and without it, in interleaved windows.

    python benchmarks/tracing.py [--rounds 20] [--seconds 6] [--json FILE]

A store and a daemon run as processes of their own. One client asks at a fixed rate, as SGLang does,
whether the pages of a chain are there, and fetches some of them. Each round has three windows in
random order: without tracing, without it once more, and with it. The two windows without it say how
much two equal windows differ (the A/A control); with tracing, the 99th percentile must lie in that
interval. Times run from the moment at which a request was due, so a request that is late because of
the one before it counts as slow.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from snapd.client import MooncakeDistributedStore
from snapd.client.trace import Tracer
from snapd.sglang.tracing import ChainTrace
from snapd.wire.trace import trace_socket

SEED = 20261122
CHAINS, PAGES, FETCHED = 24, 128, 16
PART_BYTES = 32_768
"""One K or V of a page."""
REQUESTS_PER_SECOND = 40.0
MODES = ("off", "off again", "on")
KINDS = ("exist", "fetch")
BOOTSTRAPS = 10_000


@contextmanager
def running(directory: Path) -> Iterator[str]:
    """A store and a daemon; gives their runtime directory."""
    runtime, segment = directory / "run", f"/dev/shm/snapd-bench-tracing-{os.getpid()}"
    runtime.mkdir()
    environment = {
        **os.environ,
        "SNAPD_RUNTIME_DIR": str(runtime),
        "MOONCAKE_STORE_PERSISTENT_PATH": str(directory / "repository"),
        "SNAPD_SEGMENT_PATH": segment,
        "MOONCAKE_GLOBAL_SEGMENT_SIZE": "512mb",
        "SNAPD_HTTP": "",
    }
    started: list[subprocess.Popen[bytes]] = []
    try:
        with (directory / "log").open("ab") as log:
            for module, socket in (("snapd.store", "store.sock"), ("snapd.daemon", "trace.sock")):
                started.append(
                    subprocess.Popen(
                        [sys.executable, "-m", module], env=environment, stdout=log, stderr=log
                    )
                )
                until = time.monotonic() + 30
                while not (runtime / socket).exists():
                    if time.monotonic() > until:
                        raise RuntimeError((directory / "log").read_text())
                    time.sleep(0.05)
        yield str(runtime)
    finally:
        for process in reversed(started):
            process.kill()
            process.wait()
        Path(segment).unlink(missing_ok=True)


class Load:
    """One client and its chains."""

    def __init__(self, runtime: str) -> None:
        self._runtime = runtime
        self._rng = random.Random(SEED)
        self._chains = [
            [hashlib.sha256(b"%d/%d" % (chain, page)).hexdigest() for page in range(PAGES)]
            for chain in range(CHAINS)
        ]
        self._buffer = ctypes.create_string_buffer(2 * FETCHED * PART_BYTES)
        self._base = ctypes.addressof(self._buffer)
        self._client = MooncakeDistributedStore()
        code = self._client.setup("bench", "P2PHANDSHAKE", 0, 1 << 24, "tcp", "", f"unix:{runtime}")
        assert code == 0, code
        assert self._client.register_buffer(self._base, len(self._buffer)) == 0
        value = self._rng.randbytes(PART_BYTES)
        for chain in self._chains:
            for key in self._keys(chain):
                assert self._client.put(key, value) == 0

    @staticmethod
    def _keys(pages: Sequence[str]) -> list[str]:
        return [f"{page}_0_{part}" for page in pages for part in "kv"]

    def window(self, seconds: float, *, traced: bool) -> dict[str, list[float]]:
        """Latencies in seconds of each kind."""
        tracer = Tracer(trace_socket(self._runtime)) if traced else None
        trace = ChainTrace(tracer)
        found: dict[str, list[float]] = {kind: [] for kind in KINDS}
        due = time.perf_counter()
        for _ in range(int(seconds * REQUESTS_PER_SECOND)):
            due += 1 / REQUESTS_PER_SECOND
            while (left := due - time.perf_counter()) > 0:
                time.sleep(left)
            pages = self._chains[self._rng.randrange(CHAINS)]
            self._exist(pages, trace)
            at = time.perf_counter()
            found["exist"].append(at - due)
            self._fetch(pages[:FETCHED], trace)
            found["fetch"].append(time.perf_counter() - at)
        if tracer is not None:
            assert tracer.sent > 0
            tracer.close()
        return found

    def _exist(self, pages: list[str], trace: ChainTrace) -> None:
        answer = self._client.batch_is_exist(self._keys(pages))
        trace.lookup(pages, None, sum(one == 1 for one in answer) // 2)

    def _fetch(self, pages: list[str], trace: ChainTrace) -> None:
        places = [self._base + at * PART_BYTES for at in range(2 * len(pages))]
        sizes = [PART_BYTES] * len(places)
        answer = self._client.batch_get_into(self._keys(pages), places, sizes)
        assert all(one == PART_BYTES for one in answer), answer
        trace.lookup(pages, None, len(pages))

    def close(self) -> None:
        """Leave the store."""
        self._client.close()


def median_interval(ratios: np.ndarray[Any, np.dtype[np.float64]]) -> tuple[float, float]:
    """In which the median of such ratios lies with 95 %, by resampling rounds; as far to one side
    as to the other, because either of two equal windows could have been the first."""
    rng = np.random.default_rng(SEED)
    logs = np.log(ratios)
    medians = np.median(rng.choice(logs, (BOOTSTRAPS, len(logs))), axis=1)
    most = float(np.quantile(np.abs(medians), 0.95))
    return float(np.exp(-most)), float(np.exp(most))


def compare(windows: list[dict[str, dict[str, list[float]]]], kind: str) -> dict[str, Any]:
    """p99 of one kind, with and without tracing."""
    p99 = {
        mode: np.array([float(np.quantile(one[mode][kind], 0.99)) for one in windows])
        for mode in MODES
    }
    control = p99["off again"] / p99["off"]
    effect = p99["on"] / np.sqrt(p99["off"] * p99["off again"])
    low, high = median_interval(control)
    ratio = float(np.median(effect))
    p50 = {mode: np.median([np.median(one[mode][kind]) for one in windows]) for mode in MODES}
    return {
        "p50_microseconds": {mode: float(p50[mode]) * 1e6 for mode in MODES},
        "p99_microseconds": {mode: float(np.median(p99[mode])) * 1e6 for mode in MODES},
        "control_interval": [low, high],
        "on_against_off": ratio,
        "inside": low <= ratio <= high,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; the exit code is 0 where tracing cannot be told from no tracing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    rng = random.Random(SEED)
    windows: list[dict[str, dict[str, list[float]]]] = []
    with tempfile.TemporaryDirectory() as directory, running(Path(directory)) as runtime:
        load = Load(runtime)
        load.window(options.seconds, traced=True)  # to warm up
        for _ in range(options.rounds):
            order = list(MODES)
            rng.shuffle(order)
            windows.append(
                {mode: load.window(options.seconds, traced=mode == "on") for mode in order}
            )
        load.close()
    result = {
        "rounds": options.rounds,
        "seconds": options.seconds,
        "requests_per_second": REQUESTS_PER_SECOND,
        **{kind: compare(windows, kind) for kind in KINDS},
    }
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if all(result[kind]["inside"] for kind in KINDS) else 1


if __name__ == "__main__":
    sys.exit(main())
