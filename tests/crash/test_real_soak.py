"""A short soak, by the command that runs an hour: `python tools/soak.py --seconds 3600`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

SOAK = Path(__file__).resolve().parents[2] / "tools" / "soak.py"
SHARED_MEMORY = Path("/dev/shm")


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory whose name is short enough for the sockets in it."""
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory)


def soak(place: Path, *words: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(SOAK), "--directory", str(place), *map(str, words)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def left_behind(place: Path) -> list[str]:
    """Directories, mounts and processes of a soak in `place`."""
    mounts = [line for line in Path("/proc/mounts").read_text().splitlines() if str(place) in line]
    return [str(path) for path in place.glob("snapd-soak-*")] + mounts


# 26 begins with removals and a power cut right after them.
@pytest.mark.parametrize(
    ("seconds", "seed"), [(8, 26), pytest.param(300, 8, marks=pytest.mark.long)]
)
def test_a_soak_finds_nothing_wrong_and_leaves_nothing(
    place: Path, seconds: int, seed: int
) -> None:
    before = set(SHARED_MEMORY.glob("snapd-test-daemon-*"))
    report_file = place / "report.json"
    small = ("--blocks", 500, "--busy-ratio", 0.2)
    words = ("--seconds", seconds, "--seed", seed, "--report", report_file)
    with soak(place, *words, *(small if seconds < 60 else ())) as run:
        said = run.communicate(timeout=seconds + 240)[0]
    assert run.returncode == 0, said
    report = json.loads(report_file.read_text())
    assert report["violations"] == []
    assert report["events"]["end"] == 1
    assert report["blocks_moved"] > 20
    assert set(report["peaks"]) == {"client", "daemon", "store"}
    assert left_behind(place) == []
    assert set(SHARED_MEMORY.glob(f"snapd-test-daemon-{run.pid}-*")) <= before


def test_a_soak_that_is_told_to_end_cleans_up(place: Path) -> None:
    with soak(place, "--seconds", 600, "--seed", 9) as run:
        time.sleep(4.0)
        children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
        run.send_signal(signal.SIGTERM)
        run.communicate(timeout=60)
    assert run.returncode == 143
    assert children
    assert [child for child in children if os.path.exists(f"/proc/{child}")] == []
    assert left_behind(place) == []
    assert list(SHARED_MEMORY.glob(f"snapd-test-daemon-{run.pid}-*")) == []
