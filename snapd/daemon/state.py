"""`DaemonState`: what the daemon says of itself, over HTTP and in metrics."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import msgspec

from snapd import __version__
from snapd.attach.mooncake.fingerprint import Fingerprints
from snapd.attach.session import Link
from snapd.config import Settings
from snapd.daemon.events import EventsWorker
from snapd.daemon.keeper import Keeper
from snapd.daemon.supervise import StoreSupervisor
from snapd.daemon.trace import TraceReceiver
from snapd.daemon.upkeep import Upkeep
from snapd.daemon.workers import Workers
from snapd.daemon.writers import Writers
from snapd.errors import SnapdError
from snapd.flusher.budget import SpaceState
from snapd.metrics import Metrics
from snapd.repository import Recovery, Repository
from snapd.warmup import Loader, Registrar, Warmer

_LABELS_MAX = 32
"""Most labels that the status lists."""


def process_age_seconds() -> float:
    """Seconds since this process was started by `exec` or `fork`, from /proc (proc(5), field 22 of
    `stat`), so that imports count as well."""
    with open("/proc/self/stat", encoding="ascii") as stat:
        started_ticks = int(stat.read().rpartition(")")[2].split()[19])
    started = started_ticks / os.sysconf("SC_CLK_TCK")
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started)


@dataclass
class DaemonState:
    """Reads the workers; decides nothing. See `snapd.daemon.http.Control`."""

    settings: Settings
    repository: Repository
    link: Link
    metrics: Metrics
    writers: Writers
    keeper: Keeper
    registrar: Registrar
    loader: Loader
    warmer: Warmer
    events: EventsWorker
    workers: Workers
    upkeep: Upkeep
    trace: TraceReceiver
    fingerprints: Fingerprints | None = None
    """None with the bundled store, whose clients say their own."""
    supervisor: StoreSupervisor | None = None
    http_address: str = ""
    recovery_error: str = ""
    """Why the repository cannot be read yet; it is tried again."""
    recovery: Recovery | None = None
    recovered_after_seconds: float | None = None
    ready_after_seconds: float | None = None
    disk_error: str = ""
    space: SpaceState | None = None
    """The last look at the budget."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    # --- what happened --------------------------------------------------------------------------

    def recovered(self, recovery: Recovery) -> None:
        """The repository has been read."""
        self.recovery, self.recovery_error = recovery, ""
        self.recovered_after_seconds = process_age_seconds()
        if recovery.generation:
            self.metrics.snapshot_restored(recovery.blocks, recovery.committed_at)

    def served(self) -> None:
        """Every block is served; the first time counts as the load time."""
        with self._lock:
            if self.ready_after_seconds is not None:
                return
            self.ready_after_seconds = process_age_seconds()
        self.metrics.ready(self.ready_after_seconds)

    def look_at_disk(self) -> None:
        """Refresh the metrics of the disk."""
        try:
            usage = self.repository.disk.usage()
        except SnapdError as error:
            self.disk_error = str(error)
            return
        self.disk_error = ""
        used = usage.capacity_bytes - usage.free_bytes
        self.metrics.disk(used, usage.capacity_bytes, self.repository.bytes_used)
        self._look_at_budget()

    def _look_at_budget(self) -> None:
        if self.recovery is None:
            return
        try:
            self.space = self.writers.budget.look()
        except SnapdError as error:
            self.disk_error = str(error)
            return
        self.metrics.limits(self.space.limits.bytes_max, self.writers.budget.write_room())

    # --- `Control` --------------------------------------------------------------------------------

    def failure(self) -> str | None:
        """A worker that ended in a defect."""
        return f"worker {self.workers.failed} failed" if self.workers.failed else None

    def unready(self) -> str | None:
        """The first step on the way to readiness that is not done."""
        if self.recovery is None:
            return f"reading the repository{_because(self.recovery_error)}"
        session = self.link.session
        if session is None or session.lost.is_set():
            return f"the store is away: {self._store_problem()}"
        if not session.drained.is_set():
            return "reading removals from before"
        if not session.served.is_set():
            return f"registering blocks: {self.registrar.registered} of {self.registrar.total}"
        warms = self.settings.enable_warmup and not session.serves_cold
        if warms and not session.warmed.is_set():
            return f"putting back {self.warmer.handled} of {self.warmer.planned} blocks"
        return None

    def problems(self) -> Sequence[str]:
        """What does not work now and is tried again: a disk that is full or failing, say. Every
        block is served nevertheless, so none of it makes the daemon unready."""
        recovery = self.recovery
        aside = len(recovery.moved_aside) if recovery is not None else 0
        candidates = (
            f"{aside} files that could not be used were moved aside" if aside else "",
            self.recovery_error,
            *self.writers.flusher.problems,
            self.writers.compactor.backoff.error,
            self.events.backoff.error,
            self.events.asking.error,
            self.loader.backoff.error,
            self.disk_error,
            self._full(),
            self.trace.problem,
            self.fingerprints.problem if self.fingerprints is not None else "",
        )
        return list(dict.fromkeys(error for error in candidates if error))

    def exposition(self) -> bytes:
        """All metrics."""
        return self.metrics.exposition()

    def request_snapshot(self) -> Future[Mapping[str, Any]]:
        """Ask the flusher."""
        if self.recovery is None:
            future: Future[Mapping[str, Any]] = Future()
            future.set_exception(SnapdError("the repository is still being read: ask again"))
            return future
        return self.writers.flusher.request_snapshot()

    def request_flush(self) -> Future[None]:
        """Ask the flusher."""
        if self.recovery is None:
            future: Future[None] = Future()
            future.set_exception(SnapdError("the repository is still being read: ask again"))
            return future
        return self.writers.flusher.flush_soon()

    def prune(
        self, retain: int | None, *, move_unreadable: bool, dry_run: bool
    ) -> Mapping[str, Any]:
        """Ask `Upkeep`."""
        return self.upkeep.prune(retain, move_unreadable=move_unreadable, dry_run=dry_run)

    def purge(self, prefix: str) -> Mapping[str, Any]:
        """Ask `Upkeep`."""
        return self.upkeep.purge(prefix)

    def generations(self) -> Sequence[Mapping[str, Any]]:
        """What is on disk."""
        return [
            {
                "generation": one.generation,
                "readable": one.manifest is not None,
                "problem": one.problem,
                "blocks": one.manifest.blocks if one.manifest is not None else None,
                "bytes": one.manifest.bytes if one.manifest is not None else None,
                "packs": len(one.manifest.packs) if one.manifest is not None else None,
                "committed_at": one.manifest.committed_ns / 1e9 if one.manifest else None,
                "file_bytes": one.file_bytes,
            }
            for one in reversed(self.repository.generations())
        ]

    def status(self) -> Mapping[str, Any]:
        """Everything an operator wants to see at once."""
        unready = self.failure() or self.unready()
        return {
            "version": __version__,
            "pid": os.getpid(),
            "uptime_seconds": process_age_seconds(),
            "ready": unready is None,
            "reason": unready,
            "http": self.http_address,
            "store": self._store(),
            "repository": self._repository(),
            "snapshot": self._snapshot(),
            "flush": self._flush(),
            "budget": self._budget(),
            "warmup": self._warmup(),
            "offload": self._offload(),
            "fingerprint": self._fingerprint(),
            "trace": self.trace.document(),
            "errors": self.problems(),
        }

    # --- parts of the status ----------------------------------------------------------------------

    def _store(self) -> Mapping[str, Any]:
        session, stats = self.link.session, self.keeper.stats
        attached = session is not None and not session.lost.is_set()
        document: dict[str, Any] = {
            "kind": self.settings.store,
            "up": attached,
            "version": self.keeper.store_version,
            "problem": "" if attached else self._store_problem(),
        }
        if session is not None:
            document["segment_id"] = session.segment_id.hex()
            document["boot_id"] = session.boot_id.hex()
            document["settled"] = session.settled.is_set()
        if stats is not None:
            document["counters"] = msgspec.structs.asdict(stats)
        return document

    def _repository(self) -> Mapping[str, Any]:
        document: dict[str, Any] = {"path": self.settings.persistent_path}
        if self.recovery is not None:
            document["recovered_from"] = self.recovery.source
            document["recovered_generation"] = self.recovery.generation
            document["recovered_blocks"] = self.recovery.blocks
            document["recovered_after_seconds"] = self.recovered_after_seconds
            document["ready_after_seconds"] = self.ready_after_seconds
            document["blocks"] = self.repository.catalog.live_totals()[0]
            document["bytes"] = self.repository.bytes_used
        return document

    def _snapshot(self) -> Mapping[str, Any] | None:
        last = self.writers.flusher.last_snapshot
        return last.document() if last is not None else None

    def _flush(self) -> Mapping[str, Any]:
        last = self.writers.flusher.last_flush
        return {
            "lag_seconds": self.writers.flusher.lag_seconds(),
            "lag_reason": self.writers.flusher.lag_reason,
            "left_out": dict(self.writers.flusher.left_out),
            "written": last.written,
            "written_bytes": last.written_bytes,
            "matched": last.matched,
            "evicted": last.evicted,
            "rejected": last.rejected,
        }

    def _budget(self) -> Mapping[str, Any] | None:
        """What is used, what may be, and what of the day's writes is left (null: no limit)."""
        if self.space is None:
            return None
        return {
            "used_bytes": self.space.use.total,
            "limit_bytes": self.space.limits.bytes_max,
            "limited_by": self.space.bound,
            "pressed": self.writers.budget.pressed,
            "dropped": self.writers.compactor.dropped,
            "copied_bytes": self.writers.compactor.copied_bytes,
            "write_bytes_left": self.writers.budget.write_room(),
        }

    def _warmup(self) -> Mapping[str, Any]:
        return {
            "enabled": self.settings.enable_warmup,
            "state": self.warmer.state,
            "planned": self.warmer.planned,
            "handled": self.warmer.handled,
            "registered": self.registrar.registered,
            "without_slot": self.registrar.refused_for_space,
            "withheld": self.warmer.withheld,
        }

    def _offload(self) -> Mapping[str, Any] | None:
        """The SSD tier: what is served from disk only; null where there is none."""
        session = self.link.session
        if session is None or session.open_offload is None:
            return None
        blocks, bytes_on_disk = self.writers.flusher.offloaded
        return {"blocks": blocks, "bytes": bytes_on_disk}

    def _fingerprint(self) -> Mapping[str, Any]:
        """The label that blocks get now, and need to be put back (null with the bundled store,
        whose clients say theirs), and how much of which label is on disk, most bytes first."""
        learned = self.fingerprints
        return {
            "label": learned.label if learned is not None else None,
            "problem": learned.problem if learned is not None else "",
            "on_disk": self._labels_on_disk() if self.recovery is not None else [],
        }

    def _labels_on_disk(self) -> Sequence[Mapping[str, Any]]:
        labels = self.repository.fingerprints
        totals = self.repository.catalog.live_totals_by_fingerprint()
        return [
            {"label": labels.get(one, ""), "blocks": blocks, "bytes": total}
            for one, (blocks, total) in list(totals.items())[:_LABELS_MAX]
        ]

    def _full(self) -> str:
        if self.space is None or self.space.bound == "budget":
            return ""  # somebody set that limit: blocks that wait for it are no error
        if self.writers.flusher.lag_reason not in {"colder", "no_space"}:
            return ""
        waiting = sum(self.writers.flusher.left_out.values())
        return f"the disk is full: {waiting} blocks are not on it"

    def _store_problem(self) -> str:
        """Why the store is away: what the socket says, and what the store itself said last."""
        ended = self.supervisor.problem if self.supervisor is not None else ""
        return f"{self.keeper.problem or 'not attached yet'}{_because(ended)}"


def _because(reason: str) -> str:
    return f": {reason}" if reason else ""
