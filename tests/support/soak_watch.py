"""What a soak watches while it goes on: processes, shared memory, files, the log, generations.

A number is bounded, or it is compared with itself over a stretch in which nothing was hurt.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

DESCRIPTORS_MAX = {"store": 128, "daemon": 128, "client": 96}
THREADS_MAX = {"store": 16, "daemon": 48, "client": 32}
ANONYMOUS_BYTES_MAX = {"store": 256 << 20, "daemon": 320 << 20, "client": 256 << 20}
GROWTH_BYTES_MAX = 24 << 20
"""Growth along the line through a calm stretch that is still noise: heaps breathe."""
GROWTH_SECONDS_MIN = 60.0
UNFINISHED_FILES_MAX = 16
DELETED_SEGMENTS_MAX = 3
LOG_BYTES_PER_SECOND_MAX = 20_000
_MANIFEST = re.compile(r"^(\d+)\.manifest$")


@dataclass
class Sample:
    """One look at one process."""

    seconds: float
    descriptors: int
    threads: int
    anonymous_bytes: int


@dataclass
class Watch:
    """Looks at a site and keeps what it saw; `findings` is what must not be."""

    repository: Path
    segment: Path
    log: Path
    began: float = field(default_factory=time.monotonic)
    findings: list[str] = field(default_factory=list)
    lives: dict[tuple[str, int], list[Sample]] = field(default_factory=lambda: defaultdict(list))
    """By kind of process and process number."""
    generation: int = 0
    growth_bytes_per_hour: dict[str, float] = field(default_factory=dict)
    repository_bytes_max: int = 0

    def look(self, processes: list[tuple[str, int]]) -> None:
        """One look at everything; processes that have just died are left out."""
        for kind, pid in processes:
            try:
                self._process(kind, pid)
            except (FileNotFoundError, ProcessLookupError):
                continue
        self._shared_memory()
        self._repository()
        self._log()

    def calm_ended(self, since: float) -> None:
        """A stretch without faults from `since` (monotonic) until now: memory must not rise."""
        start = since - self.began
        for (kind, pid), samples in self.lives.items():
            points = [(s.seconds, s.anonymous_bytes) for s in samples if s.seconds >= start]
            if len(points) < 10 or points[-1][0] - points[0][0] < GROWTH_SECONDS_MIN:
                continue
            seconds, sizes = np.array(points, np.float64).T
            slope = float(np.polyfit(seconds, sizes, 1)[0])
            lasted = float(seconds[-1] - seconds[0])
            growth = slope * lasted
            self.growth_bytes_per_hour[kind] = max(
                slope * 3600, self.growth_bytes_per_hour.get(kind, 0.0)
            )
            if growth > GROWTH_BYTES_MAX:
                self._find(
                    f"{kind} {pid} grew by {growth / 2**20:.0f} MiB in {lasted:.0f} s of calm"
                )

    def peaks(self) -> dict[str, dict[str, int]]:
        """The most that any process of a kind had."""
        peaks: dict[str, dict[str, int]] = {}
        for (kind, _), samples in self.lives.items():
            peak = peaks.setdefault(kind, {"descriptors": 0, "threads": 0, "anonymous_bytes": 0})
            for name in peak:
                peak[name] = max([peak[name], *(getattr(sample, name) for sample in samples)])
        return peaks

    def leftovers(self) -> list[str]:
        """Files that nothing should have left, when every process has ended politely."""
        unfinished = [str(path) for path in self.repository.rglob("*.tmp")]
        aside = [str(path) for path in self.repository.glob("aside-*")]
        quarantined = [str(path) for path in (self.repository / "quarantine").glob("*")]
        return unfinished + aside + quarantined

    def _process(self, kind: str, pid: int) -> None:
        place = Path("/proc") / str(pid)
        status = dict(
            line.split(":", 1)
            for line in (place / "status").read_text().splitlines()
            if ":" in line
        )
        if "RssAnon" not in status:  # a zombie
            return
        sample = Sample(
            time.monotonic() - self.began,
            len(list((place / "fd").iterdir())),
            int(status["Threads"]),
            int(status["RssAnon"].split()[0]) * 1024,
        )
        self.lives[kind, pid].append(sample)
        for name, most in (
            ("descriptors", DESCRIPTORS_MAX),
            ("threads", THREADS_MAX),
            ("anonymous_bytes", ANONYMOUS_BYTES_MAX),
        ):
            if getattr(sample, name) > most[kind]:
                self._find(f"{kind} {pid} has {getattr(sample, name)} {name}")
        deleted = {
            line.split(maxsplit=5)[4]
            for line in (place / "maps").read_text().splitlines()
            if str(self.segment) in line and "(deleted)" in line
        }
        if len(deleted) > DELETED_SEGMENTS_MAX:
            self._find(f"{kind} {pid} maps {len(deleted)} segments that are gone")

    def _shared_memory(self) -> None:
        files = [path.name for path in self.segment.parent.glob(f"{self.segment.name}*")]
        if len(files) > 2:
            self._find(f"files in shared memory: {sorted(files)}")

    def _repository(self) -> None:
        unfinished, used = 0, 0
        try:
            for path in self.repository.rglob("*"):
                unfinished += path.name.endswith(".tmp")
                if path.is_file() and path.name != "ballast":
                    used += path.stat().st_size
            names = [path.name for path in (self.repository / "manifests").iterdir()]
        except FileNotFoundError:  # renamed or pruned under this look
            return
        self.repository_bytes_max = max(used, self.repository_bytes_max)
        if unfinished > UNFINISHED_FILES_MAX:
            self._find(f"{unfinished} unfinished files in the repository")
        newest = max((int(m[1]) for name in names if (m := _MANIFEST.match(name))), default=0)
        if newest < self.generation:
            self._find(f"generation {newest} is the newest, {self.generation} was")
        self.generation = max(newest, self.generation)

    def _log(self) -> None:
        seconds = max(30.0, time.monotonic() - self.began)
        size = self.log.stat().st_size
        if size > LOG_BYTES_PER_SECOND_MAX * seconds:
            self._find(f"the log has {size} bytes after {seconds:.0f} s")

    def _find(self, finding: str) -> None:
        if finding not in self.findings and len(self.findings) < 100:
            self.findings.append(finding)
