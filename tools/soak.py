"""Random load, snapshots, kills and faults for as long as you like, and a report of what was wrong.

    python tools/soak.py --seconds 3600 --seed 7

Real store, daemon and client processes on a small file system of their own (mounted where that is
allowed; without it the events of a full disk are left out and the report says so). Every byte that
a client reads is compared with a ledger of what was written; after each event everything that must
have survived it is read again. Meanwhile descriptors, threads, memory, shared memory, the
repository's files, the log and the generations are watched.

It keeps to a part of one core, ends by itself, and cleans up, also on SIGTERM. Exit code 1 means
that something was not as promised; the same seed gives the same events in the same order.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]
os.environ["PYTHONPATH"] = str(ROOT)  # what is started comes from this checkout, too

from fault_ledger import FaultClass, case  # noqa: E402
from real_site import RealSite  # noqa: E402
from soak_events import SoakEvents  # noqa: E402
from soak_watch import Watch  # noqa: E402

LOOK_SECONDS = 1.0
CALM_EVERY_SECONDS = 600.0
CALM_SECONDS = 120.0
"""A stretch without faults in every ten minutes, for the trend of the memory."""
PAUSE_SECONDS_MAX = 3.0
WARM_SECONDS = 2.0
"""Before the first event, so that there is something to lose."""
FILE_SYSTEM_BYTES = 256 << 20


class Soak:
    """One run over one site."""

    def __init__(self, site: RealSite, arguments: argparse.Namespace, *, mounted: bool) -> None:
        self.site = site
        self.seconds: float = arguments.seconds
        self.chance = random.Random(arguments.seed)
        self.events = SoakEvents(site, self.chance, mounted=mounted)
        self.watch = Watch(site.repository, Path(site.segment_path), site.log)
        self.done: Counter[str] = Counter()
        self.violations: list[str] = []
        self.began = time.monotonic()

    def run(self) -> None:
        """Until the time is over or something is wrong."""
        self.site.start()
        for number in list(self.site.load_numbers):
            self.site.start_client(number)
        self.rest(min(WARM_SECONDS, self.left()), calm=False)
        calm_at = self.began + CALM_EVERY_SECONDS - CALM_SECONDS
        while self.left() > 0 and not self.violations:
            if time.monotonic() >= calm_at:
                self.rest(min(CALM_SECONDS, self.left()), calm=True)
                calm_at = time.monotonic() + CALM_EVERY_SECONDS - CALM_SECONDS
            self.event(self.events.pick())
            self.rest(min(self.left(), self.chance.uniform(0.2, PAUSE_SECONDS_MAX)), calm=False)
        if not self.violations:
            self.event("end", self.finish)

    def left(self) -> float:
        """Seconds of the run that are left."""
        return self.began + self.seconds - time.monotonic()

    def event(self, name: str, work: Any = None) -> None:
        """Carry an event out; what it finds is a violation, and a case of the ledger."""
        ordinal = self.done[name] + 1
        try:
            with case(FaultClass.SOAK, f"{name}, number {ordinal}"):
                work() if work is not None else self.events.run(name)
        except (AssertionError, OSError, subprocess.SubprocessError) as error:
            self.violations.append(f"{name}, number {ordinal}: {type(error).__name__}: {error}")
        self.done[name] = ordinal
        self.look()

    def rest(self, seconds: float, *, calm: bool) -> None:
        """Let the load work, and look every second."""
        since, deadline = time.monotonic(), time.monotonic() + seconds
        while time.monotonic() < deadline:
            time.sleep(min(LOOK_SECONDS, max(0.0, deadline - time.monotonic())))
            self.look()
        if calm:
            self.watch.calm_ended(since)

    def look(self) -> None:
        """One look at everything that is watched; what it finds is a violation."""
        site = self.site
        processes = [("client", one.pid) for one in site.load_processes.values()]
        processes += [("store", site.store.pid)] if site.store is not None else []
        processes += [("daemon", site.daemon.pid)] if site.daemon is not None else []
        self.watch.look(processes)
        self.violations += [f for f in self.watch.findings if f not in self.violations]

    def finish(self) -> None:
        """Everything ends politely; then the disk alone must bring back what was committed."""
        site = self.site
        for number in list(site.load_processes):
            site.kill_client(number)
        self.events.back(None)
        committed = site.committed()
        site.drop_auditor()
        assert site.stop_daemon() == 0
        assert site.stop_store() == 0
        left = self.watch.leftovers()
        assert not left, f"left behind: {left[:10]}"
        code, text = self.events.snapctl("verify", "--all")
        assert code == 0, f"verify ended with {code}: {text}"
        site.wipe_segment()
        site.start()
        self.events.back(committed)

    def report(self) -> dict[str, Any]:
        """What was done and what was seen, as JSON types."""
        kills = {name: n for name, n in self.done.items() if "kill" in name or "power" in name}
        return {
            "seconds": round(time.monotonic() - self.began, 1),
            "events": dict(sorted(self.done.items())),
            "events_total": sum(self.done.values()),
            "kills_total": sum(kills.values()),
            "blocks_moved": self.site.shared.moved,
            "generation": self.watch.generation,
            "peaks": self.watch.peaks(),
            "growth_bytes_per_hour": {
                kind: round(slope) for kind, slope in self.watch.growth_bytes_per_hour.items()
            },
            "repository_bytes_max": self.watch.repository_bytes_max,
            "log_bytes": self.site.log.stat().st_size,
            "violations": self.violations,
        }


@contextlib.contextmanager
def file_system(path: Path, size_bytes: int) -> Iterator[bool]:
    """A small file system at `path`, if this user may mount one; whether it is there."""
    path.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes},mode=0700", "tmpfs", str(path)]
    mounted = (
        os.geteuid() == 0
        and subprocess.run(command, capture_output=True, check=False).returncode == 0
    )
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(path)], check=True)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Make the place, soak, clean up; the report."""
    place = Path(tempfile.mkdtemp(prefix="snapd-soak-", dir=arguments.directory))
    report: dict[str, Any] = {"violations": ["it was interrupted"]}
    try:
        with (
            file_system(place / "site" / "repository", FILE_SYSTEM_BYTES) as mounted,
            RealSite(
                place / "site",
                seed=arguments.seed,
                blocks=arguments.blocks,
                block_bytes=arguments.block_bytes,
                load={
                    "busy_ratio": arguments.busy_ratio,
                    "remove_all_ratio": 0.001,
                },
                global_segment_size="64mb",
                segment_blocks_max=4 * arguments.blocks,
                snapshot_interval_sec=2,
                flush_sec=0.5,
                pack_bytes_max="4mb",
            ) as site,
        ):
            site.load_numbers = range(arguments.clients)
            soak = Soak(site, arguments, mounted=mounted)
            try:
                soak.run()
            finally:
                report = soak.report() | {"mounted": mounted}
                if arguments.keep and soak.violations:
                    shutil.copy(site.log, arguments.keep)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return report


def summary(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = [
        f"{report['events_total']} events ({report['kills_total']} kills) in "
        f"{report['seconds']:.0f} s, {report['blocks_moved']} blocks moved",
        *(f"  {name}: {count}" for name, count in report["events"].items()),
    ]
    for kind, peak in sorted(report["peaks"].items()):
        growth = report["growth_bytes_per_hour"].get(kind)
        trend = "" if growth is None else f", at most {growth / 2**20:+.1f} MiB an hour when calm"
        lines.append(
            f"  {kind}: up to {peak['descriptors']} descriptors, {peak['threads']} threads, "
            f"{peak['anonymous_bytes'] / 2**20:.0f} MiB{trend}"
        )
    if not report["mounted"]:
        lines.append("  nothing could be mounted: no full disk")
    lines += [f"VIOLATION {one}" for one in report["violations"]] or ["no violation"]
    return "\n".join(lines)


def parse(words: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**31))
    parser.add_argument("--blocks", type=int, default=2500)
    parser.add_argument("--block-bytes", type=int, default=16_000)
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--busy-ratio", type=float, default=0.08, help="of a core, each client")
    parser.add_argument("--directory", help="where to work; the default is the system's")
    parser.add_argument("--report", type=Path, help="write the report here, as JSON")
    parser.add_argument("--keep", type=Path, help="copy the processes' log here if one was found")
    return parser.parse_args(words)


def main() -> int:
    """Soak, report; the exit code."""
    arguments = parse(sys.argv[1:])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    again = f"python tools/soak.py --seconds {arguments.seconds:g} --seed {arguments.seed}"
    print(f"{again} --blocks {arguments.blocks}", file=sys.stderr, flush=True)
    report = run(arguments) | {"seed": arguments.seed, "command": again}
    if arguments.report is not None:
        arguments.report.write_text(json.dumps(report, indent=2) + "\n")
    print(summary(report))
    print(f"again: {again}")
    return 1 if report["violations"] else 0


if __name__ == "__main__":
    sys.exit(main())
