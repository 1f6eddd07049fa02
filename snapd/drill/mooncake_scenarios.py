"""The scenarios on real Mooncake: the same replay, other processes to kill.

What differs from the bundled store: snapd learns by polling what was put and removed, so the drill
lets it look once more between the last removal and the kill; an acknowledgement that Mooncake gives
during an outage says nothing; and what is there is only what was read.
"""

from __future__ import annotations

import mmap
import random
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from snapd.drill.audit import Audit, AuditVerdict
from snapd.drill.content import U32, block_stamp
from snapd.drill.inject import FLIPPED_BITS, Damage
from snapd.drill.ledger import Ledger
from snapd.drill.load import LoadSpec
from snapd.drill.look import BlockNames, repository_versions
from snapd.drill.measure import DiskReads, Run, Survival, Timeline
from snapd.drill.mooncake_audit import RemoteAuditor
from snapd.drill.mooncake_site import PEERS, MooncakeSettings, MooncakeSite
from snapd.drill.plan import DrillPlan
from snapd.drill.processes import DrillError, Process
from snapd.drill.scenarios import (
    START_SECONDS,
    STOP_SECONDS,
    Kill,
    Progress,
    Scenario,
    running,
)
from snapd.errors import SnapdError

MOONCAKE_SCENARIOS: Final = {
    "baseline": "no restart",
    "cold": "store killed, no snapd: Mooncake as it is",
    "shm": "store SIGKILLed, shared memory survives",
    "nvme": "store and daemon SIGKILLed, shared memory wiped: the node is lost",
    "sigterm": "daemon, then store stopped politely, shared memory wiped, as in a pod's upgrade",
    "master": "master SIGKILLed: it forgets every key and gives the memory out again as empty",
    "all": "store, master and daemon SIGKILLed, shared memory wiped",
}
"""What each scenario does, in the order in which they run."""

KILLED: Final = {
    "cold": ("store",),
    "shm": ("store",),
    "nvme": ("store", "daemon"),
    "sigterm": ("daemon", "store"),
    "master": ("master",),
    "all": ("store", "master", "daemon"),
}
"""Processes that each scenario stops, in this order."""

SETTLE_POLLS = 4
"""Polls, and as many flushes, between the last removal and the kill."""
RESTORE_SECONDS = 40.0
LOOKS_MAX = 5
EVICTIONS = "master_evicted_key_count"


class MooncakeDamage(Damage):
    """One byte flipped where snapd must notice it: in a dead store's memory, or in a pack.

    Never in memory that Mooncake serves: it would serve it, checked by nobody.
    """

    def __init__(self, site: MooncakeSite, names: BlockNames, rng: random.Random) -> None:
        super().__init__(site.segment, site.repository, names, rng)
        self._site = site
        self.versions: U32 = np.zeros(len(names), np.uint32)
        """What memory holds of each block at the kill, 0 for nothing."""

    def survivors(self, *, in_memory: bool) -> None:
        """Flip a byte in what survived, before it is read again."""
        if not in_memory:
            super().survivors(in_memory=False)
            return
        blocks = np.flatnonzero(self.versions).tolist()
        for block in self._random.sample(blocks, min(len(blocks), 32)):
            stamp = block_stamp(self._names.hashes[block], self.versions[block])
            if flip_behind(self._site.memory_files()[-1], stamp):
                self.beyond_repair.add(block)
                return

    def under_clients(self, ledger: Ledger) -> None:
        """Nothing: see the class."""

    def again_if_unseen(self, ledger: Ledger) -> None:
        """Nothing: see the class."""


def flip_behind(path: Path, stamp: bytes) -> bool:
    """Flip the byte after the first place of a block's stamp in a file; whether it is there."""
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        place = memory.find(stamp)
        if place < 0:
            return False
        memory[place + len(stamp) + 64] ^= FLIPPED_BITS
    return True


class MooncakeScenario(Scenario):
    """One scenario of one seed on real Mooncake, in a site that is already there."""

    _damage: MooncakeDamage

    def __init__(self, name: str, plan: DrillPlan, site: MooncakeSite, progress: Progress) -> None:
        self._mooncake = site
        self._settled_at = 0.0
        super().__init__(name, plan, site, progress)

    def _make_damage(self) -> MooncakeDamage:
        return MooncakeDamage(self._mooncake, self._names, self._random)

    def _auditor(self) -> Audit:
        return RemoteAuditor(self._mooncake, self._site.shared / "spec.json")

    def _spec(self) -> LoadSpec:
        spec = super()._spec()
        return msgspec.structs.replace(spec, socket=self._mooncake.master_address, metadata=PEERS)

    def _start_servers(self) -> None:
        site = self._mooncake
        site.start_master()
        site.wait_master()
        site.start_store()
        site.wait_store(START_SECONDS)
        if self._name != "cold":
            site.start_daemon()
            site.wait_restored("", START_SECONDS)

    def _kill(self, auditor: Audit) -> Kill:
        """Kill what the scenario kills, start it again, and look at what survived."""
        site, state = self._mooncake, self._state
        time.sleep(max(0.0, self._settled_at - time.monotonic()))
        time.sleep(self._random.random() * self._flush_round())
        self._aim()
        age, before = self._snapshot_age(), site.session()
        reads = _ReadCounter(site)
        killed_at = time.monotonic()
        state.clock.set_speed(1.0)
        state.ledger.set_uncertain(uncertain=True)
        self._stop_processes()
        stopped_at = time.monotonic()
        if self._leaves_memory():
            surviving = None
            self._inject()
        else:
            surviving = self._look_still()
        restarted_at = time.monotonic()
        self._start_again()
        if surviving is None:
            surviving = self._look()
        undurable = state.ledger.undurable_ratio(surviving, np.zeros(len(surviving), np.bool_))
        state.ledger.restart(surviving)
        ready_at = self._wait_ready(before)
        state.ledger.set_uncertain(uncertain=False)
        state.ledger.set_calm(calm=False)
        timeline = Timeline(killed_at, stopped_at, restarted_at, ready_at)
        return Kill(timeline, surviving, undurable, age, reads.since())

    def _before_kill(self, auditor: Audit) -> None:
        """Remove some blocks, and let nobody rewrite or remove others until all is back.

        A removal that no poll has seen may come back; one that snapd has written down may not.
        """
        plan, ledger = self._plan, self._state.ledger
        if self._name == "baseline":
            return
        seconds = SETTLE_POLLS * self._flush_round()
        begin = float(plan.trace.times[plan.kill_request]) - seconds * plan.speed
        self._wait(lambda: self._state.clock.now() >= begin, "the removals")
        ledger.set_calm(calm=True)
        auditor.remove_some(self._never_read_again(), self._random)
        self._settled_at = time.monotonic() + seconds

    def _flush_round(self) -> float:
        """Seconds in which snapd sees what happened and writes it down."""
        return self._mooncake.mooncake.poll_seconds + self._plan.flush_seconds

    def _stop_processes(self) -> None:
        site = self._mooncake
        processes = {"store": site.store, "master": site.master, "daemon": site.daemon}
        polite = self._name == "sigterm"
        killed = [running(processes[name], name) for name in KILLED[self._name]]
        for process in killed:
            process.signal(signal.SIGTERM if polite else signal.SIGKILL)
            if polite:
                # The store takes its memory away from the master at once: the daemon goes first.
                _end_politely(process)
        for process in killed:
            process.wait(STOP_SECONDS)
        site.store = None if site.store in killed else site.store
        site.master = None if site.master in killed else site.master
        site.daemon = None if site.daemon in killed else site.daemon

    def _leaves_memory(self) -> bool:
        return "daemon" not in KILLED[self._name] and self._name != "cold"

    def _look_still(self) -> U32:
        """Wipe shared memory and look, while the trace stands still: it is no part of what
        happened."""
        self._state.clock.set_speed(0.0)
        self._progress("looking at what survived")
        self._mooncake.wipe_memory()
        surviving = self._look()
        self._inject()
        self._state.clock.set_speed(1.0)
        return surviving

    def _inject(self) -> None:
        if not self._plan.inject or self._name == "cold":
            return
        ledger = self._state.ledger
        self._damage.versions = np.where(ledger.live(), ledger.acknowledged(), 0)
        self._damage.survivors(in_memory=self._leaves_memory())

    def _look(self) -> U32:
        """The version of each block that is in the repository, also beside a daemon that lives."""
        if self._name == "cold":
            return np.zeros(len(self._names), np.uint32)
        for _ in range(LOOKS_MAX - 1):
            try:
                return repository_versions(
                    self._site.repository, self._names, self._plan.block_bytes
                )
            except SnapdError:
                # The daemon has moved a file on under the look.
                time.sleep(0.05)
        return repository_versions(self._site.repository, self._names, self._plan.block_bytes)

    def _start_again(self) -> None:
        self._progress("restarting")
        site = self._mooncake
        if site.master is None:
            site.start_master()
            site.wait_master()
        if site.store is None:
            site.start_store()
        if site.daemon is None and self._name != "cold":
            site.start_daemon()

    def _wait_ready(self, before: str) -> float:
        site = self._mooncake
        if self._name != "cold":
            return site.wait_restored(before, RESTORE_SECONDS)
        ready_at = site.wait_store(START_SECONDS)
        # Until the master has dropped the dead store, it acknowledges puts that write nothing.
        time.sleep(site.mooncake.client_ttl_seconds + 1.0)
        return ready_at

    def _survival(self, kill: Kill, restored_blocks: int, verdict: AuditVerdict) -> Survival:
        evicted = self._mooncake.counter(EVICTIONS)
        if evicted:
            raise DrillError(
                f"{self._name}: Mooncake evicted {evicted:g} blocks, so that nothing can be said "
                "of lost ones; take fewer or smaller blocks"
            )
        return super()._survival(kill, restored_blocks, verdict)


class _ReadCounter:
    """Counts what a daemon reads, or the one that comes after it."""

    def __init__(self, site: MooncakeSite) -> None:
        self._site = site
        self._pid, self._before = self._count()

    def since(self) -> DiskReads | None:
        """Since this was made; None without a daemon."""
        pid, now = self._count()
        if now is None or self._before is None or pid != self._pid:
            return now
        return DiskReads(now.blocks - self._before.blocks, now.bytes - self._before.bytes)

    def _count(self) -> tuple[int, DiskReads | None]:
        daemon = self._site.daemon
        if daemon is None:
            return 0, None
        lines = Path(f"/proc/{daemon.pid}/io").read_text().splitlines()
        counts = dict(line.split(": ") for line in lines)
        blocks = self._site.metric("snapd_warmup_blocks_total", result="loaded")
        return daemon.pid, DiskReads(blocks, int(counts["read_bytes"]))


def _end_politely(process: Process) -> None:
    if code := process.wait(STOP_SECONDS):
        raise DrillError(f"{process.name} ended with {code} after SIGTERM\n{process.log_tail()}")


def run_mooncake_scenario(
    name: str,
    plan: DrillPlan,
    mooncake: MooncakeSettings,
    place: Path,
    progress: Progress,
    *,
    keep: bool,
) -> Run:
    """Run one scenario in a site in `place`, an empty directory, which goes unless `keep`."""
    # Without snapd the store brings its memory itself.
    mooncake = replace(mooncake, own_memory=name == "cold")
    with MooncakeSite(place, plan.site_settings, mooncake, keep=keep) as site:
        return MooncakeScenario(name, plan, site, progress).run()
