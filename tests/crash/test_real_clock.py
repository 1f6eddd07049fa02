"""A wall clock that jumps by days, both ways, under real processes and across restarts.

`tests/support/shifted_clock` shifts the wall clock of processes and commands alike, while they run;
the monotonic clock stays as it is, as when NTP or an operator sets the time."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon_site import DaemonSite, block, put_all, wrong_keys
from fault_ledger import FaultClass, case

KEYS = [f"key-{number}" for number in range(40)]
DAY_SECONDS = 86_400
SHIFTED_CLOCK = Path(__file__).parent.parent / "support" / "shifted_clock"


class Clock:
    """What the processes of a site take for the time."""

    def __init__(self, site: DaemonSite, file: Path) -> None:
        self._site, self._file = site, file
        self.jump(0)
        paths = [str(SHIFTED_CLOCK), *filter(None, [os.environ.get("PYTHONPATH")])]
        site.preload = {"PYTHONPATH": os.pathsep.join(paths), "SHIFTED_CLOCK_FILE": str(file)}

    def jump(self, days: int) -> None:
        """From now on it is so many days from the real time."""
        self.days = days
        fresh = self._file.with_suffix(".new")
        fresh.write_text(f"{days * DAY_SECONDS}\n")
        fresh.rename(self._file)

    def is_close(self, seconds: float) -> bool:
        """Whether this is now, as the processes see it."""
        return abs(seconds - time.time() - self.days * DAY_SECONDS) < 60


@pytest.fixture
def site(tmp_path: Path) -> Iterator[DaemonSite]:
    with DaemonSite(tmp_path / "site", snapshot_interval_sec=3600, flush_sec=0.2) as site:
        yield site


def snapctl(site: DaemonSite, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(Path(sys.executable).parent / "snapctl"), *words],
        env=site.environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def ages_make_sense(site: DaemonSite, clock: Clock) -> None:
    """No age is below zero or counts the jump; the newest snapshot is the last one made."""
    status = site.status()
    assert 0 <= status["flush"]["lag_seconds"] < 60
    assert 0 <= status["uptime_seconds"] < 300
    assert 0 <= site.metric("snapshot_duration_seconds_sum") < 60
    assert clock.is_close(site.metric("snapshot_last_success_timestamp_seconds"))
    for words in (["status"], ["list"]):
        answer = snapctl(site, *words)
        assert answer.returncode == 0, answer.stderr
        assert not re.search(r"\s-\d", answer.stdout), answer.stdout


def restart(site: DaemonSite) -> None:
    """With a power cut: what is known of the order is what is on disk."""
    site.kill_daemon()
    site.kill_store()
    site.wipe_segment()
    site.start()


@pytest.mark.parametrize(
    "days",
    [
        (-9,),
        pytest.param((5, -9), marks=pytest.mark.long),
        pytest.param((-400, 400), marks=pytest.mark.long),
        pytest.param((3650, -3650, 1, -1, 30), marks=pytest.mark.long),
    ],
)
def test_the_order_of_things_is_not_the_clocks(
    site: DaemonSite, tmp_path: Path, days: tuple[int, ...]
) -> None:
    clock = Clock(site, tmp_path / "clock")
    site.start()
    put_all(site.client(), KEYS)
    generation = site.snapshot()["generation"]
    version, removed = 1, 0
    for jump in days:
        with case(FaultClass.CLOCK, f"{jump:+d} days while the daemon runs"):
            clock.jump(jump)
            version += 1
            client = site.client()
            for key in KEYS[removed:]:
                assert client.upsert(key, block(key, version)) == 0
            assert client.remove(KEYS[removed], True) == 0
            removed += 1
            assert site.snapshot()["generation"] == generation + 1
            generation += 1
            ages_make_sense(site, clock)
            assert wrong_keys(client, KEYS[removed:], version) == []
        with case(FaultClass.CLOCK, f"{-jump:+d} days while everything is down"):
            clock.jump(-jump)
            restart(site)
            repository = site.status()["repository"]
            assert repository["recovered_generation"] == generation
            assert repository["recovered_from"] == "manifest"
            client = site.client()
            assert client.batch_is_exist(KEYS[:removed]) == [0] * removed
            assert wrong_keys(client, KEYS[removed:], version) == []
            generation = site.snapshot()["generation"]
            ages_make_sense(site, clock)


@pytest.mark.long
def test_pruning_keeps_the_newest_by_number(site: DaemonSite, tmp_path: Path) -> None:
    clock = Clock(site, tmp_path / "clock")
    site.configure(retain=2)
    site.start()
    client = site.client()
    with case(FaultClass.CLOCK, "pruning, each generation older by the clock than the last"):
        for number in range(5):
            clock.jump(-3 * number)
            put_all(client, [f"more-{number}"])
            newest = site.snapshot()["generation"]
        kept = sorted(int(path.stem) for path in (site.repository / "manifests").iterdir())
        assert kept == [newest - 1, newest]
        listed = json.loads(snapctl(site, "list", "--json").stdout)["snapshots"]
        assert [one["generation"] for one in listed] == [newest, newest - 1]
        restart(site)
        assert wrong_keys(site.client(), [f"more-{number}" for number in range(5)]) == []
