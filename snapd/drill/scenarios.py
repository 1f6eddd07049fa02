"""The scenarios: start everything, replay, kill at the worst moment, look, restart, audit.

Each runs in a `Site` of its own from an empty repository, so that they cannot help each other.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from snapd.drill.audit import Audit, Auditor, AuditVerdict, audit_batch, rejected_blocks
from snapd.drill.clock import TraceClock
from snapd.drill.content import I64, U32, block_keys
from snapd.drill.inject import Damage
from snapd.drill.ledger import Ledger
from snapd.drill.load import BlockClient, LoadSpec, SharedState
from snapd.drill.look import (
    BlockNames,
    evicted_keys,
    newest_manifest_at,
    repository_versions,
    segment_versions,
)
from snapd.drill.measure import DiskReads, Run, Survival, Timeline, window_is_complete
from snapd.drill.plan import AIM_SECONDS, CATCH_UP_SECONDS, CATCH_UPS_MAX, DrillPlan
from snapd.drill.processes import DrillError, Process, Site
from snapd.drill.shared import FileLock, Tickets, create_records

START_SECONDS = 20.0
STOP_SECONDS = 40.0
QUIET_SECONDS = 8.0

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Kill:
    """What was known at the kill, and what came of the restart."""

    timeline: Timeline
    surviving: U32
    undurable: float
    snapshot_age_seconds: float | None
    reads: DiskReads | None = None


class Scenario:
    """One scenario of one seed, in a site that is already there."""

    def __init__(self, name: str, plan: DrillPlan, site: Site, progress: Progress) -> None:
        self._name = name
        self._plan = plan
        self._site = site
        self._progress = progress
        self._random = random.Random(f"{name}/{plan.seed}")
        self._state = create_shared(plan, site.shared)
        self._names = BlockNames(*block_keys(plan.seed, plan.trace.block_count))
        self._damage = self._make_damage()

    def run(self) -> Run:
        """Replay, with the restart in its middle, and measure.

        Raises DrillError when a process does not do what it must.
        """
        plan, state = self._plan, self._state
        self._start()
        auditor = self._auditor()
        state.clock.set_speed(plan.speed)
        self._progress("replaying up to the kill")
        self._before_kill(auditor)
        middle = float(plan.trace.times[plan.kill_request])
        self._wait(lambda: state.clock.now() >= middle, "the kill")
        self._catch_up()
        kill = self._no_kill() if self._name == "baseline" else self._kill(auditor)
        state.clock.set_speed(plan.speed)
        restored = auditor.existing(kill.surviving)
        if plan.inject:
            self._replay_window(kill.timeline.ready_at, plan.window_requests // 4)
            self._damage.under_clients(state.ledger)
        self._replay_window(kill.timeline.ready_at, plan.window_requests)
        self._stop_load()
        if plan.inject:
            self._damage.again_if_unseen(state.ledger)
        self._progress("comparing every block")
        verdict = auditor.sweep(kill.surviving, restored, self._damage.beyond_repair)
        return Run(
            name=self._name,
            seed=plan.seed,
            records=np.array(state.records),
            prompt_tokens=plan.trace.prompt_tokens,
            trace_times=plan.trace.times,
            timeline=kill.timeline,
            survival=self._survival(kill, int(np.count_nonzero(restored)), verdict),
            window_requests=plan.window_requests,
        )

    def _survival(self, kill: Kill, restored_blocks: int, verdict: AuditVerdict) -> Survival:
        return Survival(
            undurable_at_kill=kill.undurable,
            snapshot_age_seconds=kill.snapshot_age_seconds,
            restored_blocks=restored_blocks,
            rejected_blocks=rejected_blocks(self._site),
            lost_committed_blocks=verdict.lost_blocks,
            audit_wrong_bytes=verdict.wrong_bytes,
            reads=kill.reads,
        )

    def _make_damage(self) -> Damage:
        site = self._site
        return Damage(site.segment, site.repository, self._names, self._random)

    def _auditor(self) -> Audit:
        size = self._plan.block_bytes
        client = BlockClient(self._spec(), len(self._names), audit_batch(size))
        return Auditor(client, self._state, self._site.event_log, self._names)

    def _start(self) -> None:
        self._progress("starting")
        site = self._site
        self._start_servers()
        spec = site.shared / "spec.json"
        spec.write_bytes(msgspec.json.encode(self._spec()))
        for number in range(self._plan.clients):
            site.start_client(number, spec)
        self._wait(lambda: self._state.tickets.arrived == self._plan.clients, "the clients")

    def _start_servers(self) -> None:
        site = self._site
        site.start_store()
        site.wait_store(START_SECONDS)
        if self._name != "cold":
            site.start_daemon()
            site.wait_ready(START_SECONDS)

    def _spec(self) -> LoadSpec:
        plan = self._plan
        return LoadSpec(
            directory=str(self._site.shared),
            socket=str(self._site.socket),
            seed=plan.seed,
            block_bytes=plan.block_bytes,
            deadline_seconds=plan.deadline_seconds,
            upsert_ratio=plan.upsert_ratio,
            remove_ratio=plan.remove_ratio,
        )

    def _catch_up(self) -> None:
        """Let a load that has fallen behind, on a busy machine, come back to its times: what is
        overdue at the kill would all fall into the outage, in which it was never due."""
        clock, times, records = self._state.clock, self._plan.trace.times, self._state.records

        def backlog() -> int:
            due = int(np.searchsorted(times, clock.now(), side="right"))
            return due - int(np.count_nonzero(records["ended"][:due]))

        for _ in range(CATCH_UPS_MAX):
            if backlog() <= 2 * self._plan.clients:
                return
            clock.set_speed(0.0)
            self._wait(lambda: backlog() == 0, "the load to catch up")
            clock.set_speed(self._plan.speed)
            time.sleep(self._random.random() * CATCH_UP_SECONDS)

    def _no_kill(self) -> Kill:
        now = time.monotonic()
        timeline = Timeline(now, now, now, now, restarts=False)
        none = np.zeros(self._plan.trace.block_count, np.uint32)
        return Kill(timeline, none, 0.0, self._snapshot_age())

    def _before_kill(self, auditor: Audit) -> None:
        """What must be done some time before the kill."""

    def _kill(self, auditor: Audit) -> Kill:
        """Kill what the scenario kills, look at what survived, and start it again."""
        site, state = self._site, self._state
        auditor.remove_some(self._never_read_again(), self._random)
        # Uniform over one flush interval, whatever the removals set going.
        time.sleep(self._random.random() * self._plan.flush_seconds)
        self._aim()
        age = self._snapshot_age()
        killed_at = time.monotonic()
        state.clock.set_speed(1.0)
        self._stop_processes()
        stopped_at = time.monotonic()
        # The look is no part of what happened: the trace stands still for it.
        state.clock.set_speed(0.0)
        self._progress("looking at what survived")
        self._wait(lambda: state.ledger.claims == 0, "the clients to notice", QUIET_SECONDS)
        surviving = self._look()
        evicted = self._names.marked(evicted_keys(site.event_log))
        undurable = state.ledger.undurable_ratio(surviving, evicted)
        state.ledger.restart(surviving)
        if self._plan.inject and self._name != "cold":
            self._damage.survivors(in_memory=self._name == "shm")
        self._progress("restarting")
        state.clock.set_speed(1.0)
        restarted_at = time.monotonic()
        site.start_store()
        if site.daemon is None and self._name != "cold":
            site.start_daemon()
        ready_at = site.wait_store(START_SECONDS)
        if self._name in {"nvme", "sigterm"}:
            ready_at = site.wait_ready(START_SECONDS)
        timeline = Timeline(killed_at, stopped_at, restarted_at, ready_at)
        return Kill(timeline, surviving, undurable, age)

    def _never_read_again(self) -> I64:
        """Blocks that are there and that no later request looks for: the hit rate stays as it is
        when they go."""
        trace, live = self._plan.trace, self._state.ledger.live()
        live[trace.blocks[trace.starts[self._plan.kill_request] :]] = False
        return np.flatnonzero(live)

    def _aim(self) -> None:
        """Wait a little for a put or a flush to be under way: a third of the seeds each; the rest
        stay where chance put them."""
        aims: tuple[Callable[[], bool], ...] = (
            lambda: True,
            lambda: self._state.ledger.claims > 0,
            lambda: any(not name.name.endswith(".pack") for name in self._packs()),
        )
        aim = aims[self._plan.seed % (2 if self._name == "cold" else 3)]
        deadline = time.monotonic() + AIM_SECONDS + self._plan.flush_seconds
        while not aim() and time.monotonic() < deadline:
            time.sleep(0.0005)

    def _packs(self) -> list[Path]:
        packs = self._site.repository / "packs"
        return list(packs.iterdir()) if packs.is_dir() else []

    def _stop_processes(self) -> None:
        site = self._site
        stopped = [running(site.store, "store")]
        if self._name in {"nvme", "sigterm"}:
            stopped.append(running(site.daemon, "daemon"))
        polite = self._name == "sigterm"
        # The daemon first, without waiting: a pod's containers get SIGTERM at the same moment.
        for process in reversed(stopped):
            process.signal(signal.SIGTERM if polite else signal.SIGKILL)
        for process in stopped:
            code = process.wait(STOP_SECONDS)
            if polite and code != 0:
                raise DrillError(
                    f"{process.name} ended with {code} after SIGTERM\n{process.log_tail()}"
                )
        if self._name in {"nvme", "sigterm"}:
            site.daemon = None

    def _look(self) -> U32:
        """The version of each block that survived the kill, as found from outside."""
        site = self._site
        size = self._plan.block_bytes
        if self._name == "shm":
            return segment_versions(site.segment, self._names, size)
        site.segment.unlink(missing_ok=True)
        if self._name == "cold":
            return np.zeros(len(self._names), np.uint32)
        return repository_versions(site.repository, self._names, size)

    def _snapshot_age(self) -> float | None:
        newest = newest_manifest_at(self._site.repository)
        return None if newest is None else time.time() - newest

    def _replay_window(self, ready_at: float, requests: int) -> None:
        """Wait for so many requests after the restart, and all before them, to end."""
        self._progress("replaying after the restart")
        records, window = self._state.records, self._plan.window_requests

        def is_over() -> bool:
            # The baseline runs to the end: outages take different time, so the windows of the
            # others begin at different requests.
            to_the_end = self._name == "baseline" and requests == window
            complete = not to_the_end and window_is_complete(records, ready_at, requests)
            return complete or bool((records["ended"] > 0).all())

        self._wait(is_over, "the end of the window")
        if not window_is_complete(records, ready_at, requests):
            left = int((records["fired"] >= ready_at).sum())
            raise DrillError(
                f"{self._name}: the outage was so long that only {left} requests were left, of "
                f"{window} to measure"
            )

    def _stop_load(self) -> None:
        self._state.clock.stop()
        for client in self._site.clients:
            if code := client.wait(STOP_SECONDS):
                raise DrillError(f"{client.name} ended with {code}\n{client.log_tail()}")

    def _wait(
        self, condition: Callable[[], bool], what: str, timeout_seconds: float | None = None
    ) -> None:
        """Poll until it is true. Raises DrillError when it takes far longer than the replay, or
        when a process that should run has ended."""
        plan = self._plan
        lasts = float(plan.trace.times[-1]) / plan.speed
        deadline = time.monotonic() + (timeout_seconds or 2 * lasts + START_SECONDS)
        while not condition():
            if timeout_seconds is None:
                self._site.check_alive()
            if time.monotonic() > deadline:
                raise DrillError(f"{self._name}: waited in vain for {what}")
            time.sleep(0.002)


def run_scenario(name: str, plan: DrillPlan, place: Path, progress: Progress, *, keep: bool) -> Run:
    """Run one scenario in a site in `place`, an empty directory, which goes unless `keep`."""
    with Site(place, plan.site_settings, keep=keep) as site:
        return Scenario(name, plan, site, progress).run()


def create_shared(plan: DrillPlan, directory: Path) -> SharedState:
    """Make the files that all processes of the load share."""
    lock = FileLock(directory / "lock")
    plan.trace.save(directory / "trace.npz")
    TraceClock.create(directory / "clock", lock)
    Tickets.create(directory / "tickets", lock)
    Ledger.create(directory / "ledger", plan.trace.block_count, lock)
    create_records(directory / "records", len(plan.trace))
    lock.close()
    return SharedState(directory)


def running(process: Process | None, name: str) -> Process:
    """The process. Raises DrillError when it does not run."""
    if process is None:
        raise DrillError(f"the {name} does not run")
    process.check_alive()
    return process
