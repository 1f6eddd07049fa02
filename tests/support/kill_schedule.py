"""Schedules of kills over a site under load, each with its audit.

A schedule is drawn from a seed: who dies, and in the middle of what. What each kill hit is seen
from outside, by the files that a flush and a commit leave for a moment, by the ledger of the load
and by the daemon's status; a kill that found nothing to hit is named for what it found.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

from fault_ledger import FaultClass, case
from real_site import Promise, RealSite, wait_for

VICTIMS = ("store", "daemon", "daemon, then store", "store, then daemon", "both, and the memory")
PHASES = ("idle", "put", "removal", "flush", "commit", "warm-up", "start")
AIM_SECONDS = 1.0
READY_SECONDS = 60.0


class Schedule:
    """Kills over one site, one after the other, each with its audit."""

    def __init__(self, site: RealSite, seed: int, name: str = "") -> None:
        """`name` tells this kind of schedule from others in the ledger of faults."""
        self.site, self.seed, self.name = site, seed, name
        self.chance = random.Random(seed)
        self.generation = 0

    def run(self, number: int) -> None:
        """One kill: aim, kill, start again, and read everything back."""
        victim, phase = self.chance.choice(VICTIMS), self.chance.choice(PHASES)
        from_disk = victim == "both, and the memory" or phase == "warm-up"
        promise = self.site.committed() if from_disk else self.site.held_now()
        if phase == "warm-up":
            self.cool()
        seen = self.aim(phase)
        with case(
            FaultClass.KILL, f"{self.name}{victim} in {seen}, kill {number} of schedule {self.seed}"
        ):
            if phase == "start" and from_disk:
                self.site.hush()  # see `cool`
            self.kill(victim)
            self.start_what_is_dead()
            if phase == "start":
                time.sleep(self.chance.uniform(0.0, 0.8))
                self.kill(victim)
                self.start_what_is_dead()
            self.site.shared.paused = False
            self.site.wait_ready(READY_SECONDS)
            self.judge(promise)

    def judge(self, promise: Promise) -> None:
        site = self.site
        site.audit(promise)
        site.check_clients()
        repository = site.status()["repository"]
        expected = (
            {"manifest"}
            if self.generation or promise.generation
            else {"manifest", "empty", "rebuilt"}
        )
        assert repository["recovered_from"] in expected, repository
        assert repository["recovered_generation"] >= self.generation, repository
        assert site.metric("blocks_quarantined_total") == 0
        newest = max((int(path.stem) for path in self.files("manifests", ".manifest")), default=0)
        assert newest >= promise.generation
        self.generation = max(self.generation, promise.generation)

    # --- aiming -----------------------------------------------------------------------------------

    def aim(self, phase: str) -> str:
        """Wait for the moment; what was seen of it, which is what the kill is named for."""
        if phase == "idle":
            self.site.shared.paused = True
        if phase == "commit":
            threading.Thread(target=self.site.ask, args=("/snapshot", "POST"), daemon=True).start()
        signs: dict[str, Callable[[], bool]] = {
            "idle": lambda: self.site.shared.ledger.claims == 0,
            "put": lambda: self.site.shared.ledger.claims > 0,
            "removal": self.site.shared.removal_is_under_way,
            "flush": lambda: bool(self.files("packs", ".tmp")),
            "commit": lambda: bool(self.files("manifests", ".tmp")),
            "warm-up": lambda: self.site.status()["warmup"]["state"] == "running",
            "start": lambda: True,
        }
        hit = wait_for(signs[phase], AIM_SECONDS, 0.0002)
        return phase if hit else f"load, after waiting for a {phase}"

    def cool(self) -> None:
        """The memory is lost first, and comes back slowly.

        Nobody writes until the daemon is back: what a store without a daemon is given can be lost
        with its memory, and the disk's older version is back then (decision 0010 says so).
        """
        self.site.hush()
        self.site.power_cut()
        self.site.start()
        self.site.shared.paused = False

    def files(self, directory: str, end: str) -> list[Path]:
        place = self.site.repository / directory
        return [path for path in place.iterdir() if path.name.endswith(end)]

    # --- killing ----------------------------------------------------------------------------------

    def kill(self, victim: str) -> None:
        site = self.site
        if victim == "both, and the memory":
            site.power_cut()
            return
        for name in victim.split(", then "):
            if name == "store":
                site.kill_store()
            else:
                site.kill_daemon()

    def start_what_is_dead(self) -> None:
        if self.site.store is None:
            self.site.start_store(wait=False)
        if self.site.daemon is None:
            self.site.start_daemon(wait=False)
