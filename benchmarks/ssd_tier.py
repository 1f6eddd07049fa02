"""The SSD tier: hit rate, latency and bytes written, with it and without it.

A multi-turn trace is replayed at its own times, sped up, against a real store and daemon: find the
leading blocks that are there, fetch them (compared byte for byte), put the rest. Memory holds a
part of the working set. Three sites take turns: without the tier, with it, and with memory for
everything, which is the most that any tier could give. Prints one JSON document; exit code 1 if a
byte was wrong. Times are of a noisy machine: compare runs of one session only.

    python benchmarks/ssd_tier.py [--trace MOONCAKE.jsonl] [--share 4] [--seconds 40] [--rounds 2]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from snapd.drill.content import I64, block_keys, make_blocks
from snapd.drill.trace import MultiTurn, Trace, generate_trace, read_trace

SUPPORT = Path(__file__).resolve().parent.parent / "tests" / "support"
sys.path.insert(0, str(SUPPORT))

from daemon_site import DaemonSite  # noqa: E402 - from the tests' support

SITES = ("without", "with", "all in memory")
BATCH = 32
SEED = 20_261


@dataclass
class Tally:
    """What one replay saw."""

    asked: int = 0
    hits: int = 0
    wrong: int = 0
    refused: int = 0
    """Puts that the store had no room for."""
    get_seconds: list[float] = field(default_factory=list)
    put_seconds: list[float] = field(default_factory=list)
    exist_seconds: list[float] = field(default_factory=list)
    late_seconds: float = 0.0

    def document(self) -> dict[str, Any]:
        """Figures, times in milliseconds."""
        times = {
            f"{name}_p{share}_ms": round(float(np.percentile(seconds, share)) * 1e3, 2)
            for name, seconds in (
                ("exist", self.exist_seconds),
                ("get", self.get_seconds),
                ("put", self.put_seconds),
            )
            for share in (50, 99)
            if seconds
        }
        return {
            "hit_rate": round(self.hits / max(1, self.asked), 4),
            "blocks_asked": self.asked,
            "blocks_hit": self.hits,
            "wrong_blocks": self.wrong,
            "puts_refused": self.refused,
            "late_s_max": round(self.late_seconds, 2),
            **times,
        }


class Replay:
    """One client that serves the requests of a trace, one after the other."""

    def __init__(self, site: DaemonSite, trace: Trace, block_bytes: int) -> None:
        self.trace, self.block_bytes = trace, block_bytes
        self.client = site.client()
        self.keys, self.hashes = block_keys(SEED, trace.block_count)
        self.buffer = np.zeros((BATCH, block_bytes), np.uint8)
        self.address = self.buffer.ctypes.data
        self.client.register_buffer(self.address, self.buffer.nbytes)
        self.tally = Tally()

    def run(self, speed: float) -> Tally:
        """Every request at its time, or as soon as the one before is done."""
        began = time.monotonic()
        for request in range(len(self.trace)):
            due = began + float(self.trace.times[request]) / speed
            now = time.monotonic()
            self.tally.late_seconds = max(self.tally.late_seconds, now - due)
            time.sleep(max(0.0, due - now))
            self.serve(self.trace.chain(request))
        return self.tally

    def serve(self, chain: I64) -> None:
        """Fetch the leading run that is there, put the rest."""
        tally, hits = self.tally, 0
        tally.asked += len(chain)
        there = self._leading(chain)
        for at in range(0, there, BATCH):
            part = chain[at : min(there, at + BATCH)]
            came = self._fetch(part)
            hits += came
            if came < len(part):
                break
        tally.hits += hits
        rest = chain[hits:]
        for at in range(0, len(rest), BATCH):
            self._put(rest[at : at + BATCH])

    def _leading(self, chain: I64) -> int:
        began = time.perf_counter()
        codes = np.array(self.client.batch_is_exist([self.keys[block] for block in chain]))
        self.tally.exist_seconds.append(time.perf_counter() - began)
        return int(np.argmin(np.append(codes == 1, False)))

    def _fetch(self, part: I64) -> int:
        """Blocks of the part, from its start, that came and are right."""
        began = time.perf_counter()
        sizes = np.array(self.client.batch_get_into(*self._batch(part)))
        self.tally.get_seconds.append(time.perf_counter() - began)
        came = int(np.argmin(np.append(sizes == self.block_bytes, False)))
        right = (self.buffer[:came] == self._content(part[:came])).all(axis=1)
        self.tally.wrong += int((~right).sum())
        return came

    def _put(self, part: I64) -> None:
        self.buffer[: len(part)] = self._content(part)
        began = time.perf_counter()
        codes = np.array(self.client.batch_put_from(*self._batch(part)))
        self.tally.put_seconds.append(time.perf_counter() - began)
        self.tally.refused += int((codes != 0).sum())

    def _batch(self, part: I64) -> tuple[list[str], list[int], list[int]]:
        addresses = [self.address + row * self.block_bytes for row in range(len(part))]
        return [self.keys[block] for block in part], addresses, [self.block_bytes] * len(part)

    def _content(self, part: I64) -> Any:
        return make_blocks(self.hashes[part], np.ones(len(part), np.uint32), self.block_bytes)


def one_run(name: str, trace: Trace, args: argparse.Namespace) -> dict[str, Any]:
    """A site of its own, a replay, and what the daemon says of it."""
    padded = -(-args.block_bytes // 4096) * 4096
    everything = trace.block_count * padded
    memory = everything * 5 // 4 if name == "all in memory" else everything // args.share
    with tempfile.TemporaryDirectory(dir=args.directory) as place:
        settings: dict[str, object] = {
            "global_segment_size": memory + (8 << 20),
            "segment_blocks_max": 2 * trace.block_count + 1024,
            "flush_sec": args.flush_seconds,
            "snapshot_interval_sec": 30,
            "enable_ssd_offload": name == "with",
            "repository_bytes_max": args.repository_bytes_max,
            "lease_sec": 1,
        }
        with DaemonSite(Path(place), **settings) as site:
            site.start()
            tally = Replay(site, trace, args.block_bytes).run(args.speed)
            site.flushed()
            document = tally.document()
            document["site"] = name
            document["memory_mib"] = round(memory / 2**20)
            for key, metric in (
                ("evicted", "store_evictions_total"),
                ("offloaded", "offload_evictions_total"),
                ("on_disk_only", "offload_blocks"),
                ("written_blocks", "flush_blocks_total"),
            ):
                document[key] = round(site.metric(metric))
            document["loaded"] = round(site.metric("demand_load_blocks_total", result="loaded"))
            document["repository_mib"] = round(site.metric("repository_bytes") / 2**20)
    return document


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trace", type=Path, help="Mooncake's JSONL; otherwise one is made")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--requests", type=int, default=1200)
    parser.add_argument("--block-bytes", type=int, default=65_536)
    parser.add_argument("--share", type=int, default=4, help="memory is one part in so many")
    parser.add_argument("--seconds", type=float, default=40.0, help="a replay takes at least")
    parser.add_argument("--sites", nargs="+", choices=SITES, default=SITES)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--flush-seconds", type=float, default=1.0)
    parser.add_argument("--repository-bytes-max", type=int, default=0)
    parser.add_argument("--directory", help="on the disk to measure")
    args = parser.parse_args()
    if args.trace is not None:
        trace = read_trace(args.trace).head(args.requests)
    else:
        trace = generate_trace(MultiTurn(requests=args.requests), args.seed)
    args.speed = float(trace.times[-1]) / args.seconds
    runs = [one_run(name, trace, args) for _ in range(args.rounds) for name in args.sites]
    document = {
        "requests": len(trace),
        "blocks": trace.block_count,
        "block_bytes": args.block_bytes,
        "speed": round(args.speed, 1),
        "flush_sec": args.flush_seconds,
        "runs": runs,
    }
    print(json.dumps(document, indent=2))
    return int(any(run["wrong_blocks"] for run in runs))


if __name__ == "__main__":
    sys.exit(main())
