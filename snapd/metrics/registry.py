"""`Metrics`: every metric of the daemon, in a registry of its own.

Workers call the methods, which name what happened; the names, labels and units of the metrics are
decided here alone. Every label value that an alert may ask for exists from the start, at zero,
because `rate()` cannot see the first increment of a series that was not there before.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

from snapd import __version__
from snapd.attach.mooncake.mounts import MOUNT_FAILURES
from snapd.attach.mooncake.poll import Look
from snapd.wire.messages import StatsReply

SNAPSHOT_FAILURE_REASONS = ("disk", "integrity", "deadline", "other")
QUARANTINE_REASONS = ("segment", "pack", "store", "unreadable")
DROP_REASONS = ("budget", "disk")
"""What set the limit: the setting, the disk's free space, or a write that the disk refused."""
LEFT_OUT_REASONS = ("colder", "no_space", "write_budget")
TRACE_RESULTS = ("accepted", "malformed", "refused")
LOOK_RESULTS = ("new", "rewritten", "vanished", "moved", "in_doubt")
LOAD_RESULTS = (
    *("loaded", "from_memory", "superseded", "rejected"),
    *("no_space", "no_slot", "failed", "other_fingerprint"),
)


class Metrics:
    """All metrics. Methods may be called from any thread."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._snapshot_metrics()
        self._flush_metrics()
        self._budget_metrics()
        self._disk_metrics()
        self._warmup_metrics()
        self._store_metrics()
        self._mooncake_metrics()
        self._trace_metrics()
        self._reload_good = self._gauge(
            "config_last_reload_successful",
            "0 after a SIGHUP whose settings were wrong, until one whose are right.",
        )
        self._reload_good.set(1)
        info = self._gauge(
            "build_info", "Versions of what runs; the value is always 1.", "version", "python"
        )
        info.labels(__version__, platform.python_version()).set(1)

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def started(self, age_seconds: Callable[[], float], snapshot_interval_seconds: float) -> None:
        """The daemon runs with this interval. Until it is `ready`, its age is its load time: one
        that hangs on the way must be seen, too."""
        self._ready_seconds.set_function(age_seconds)
        self.configured(snapshot_interval_seconds)

    def configured(self, snapshot_interval_seconds: float) -> None:
        """The interval that holds now."""
        self._snapshot_interval.set(snapshot_interval_seconds)

    def reloaded(self, *, good: bool) -> None:
        """The settings were read again."""
        self._reload_good.set(good)

    # --- snapshots and flushes ----------------------------------------------------------------

    def snapshot_done(
        self, blocks: int, bytes_written: int, seconds: float, timestamp: float
    ) -> None:
        """A manifest over `blocks` blocks is durable; `timestamp` is Unix time."""
        self._snapshots.labels("success").inc()
        self._snapshot_seconds.observe(seconds)
        self._snapshot_bytes.inc(bytes_written)
        self.snapshot_restored(blocks, timestamp)

    def snapshot_restored(self, blocks: int, timestamp: float) -> None:
        """The newest manifest holds `blocks` blocks and was written at `timestamp` (Unix time)."""
        self._snapshot_blocks.set(blocks)
        self._snapshot_timestamp.set(timestamp)

    def snapshot_failed(self, reason: str) -> None:
        """A snapshot failed; `reason` is one of `SNAPSHOT_FAILURE_REASONS`."""
        self._snapshots.labels("failure").inc()
        self._snapshot_failures.labels(reason).inc()

    def flushed(self, blocks: int, bytes_written: int, seconds: float) -> None:
        """A flush ended well; `blocks` new blocks are durable."""
        self._flush_blocks.inc(blocks)
        self._flush_bytes.inc(bytes_written)
        self._flush_seconds.observe(seconds)

    def flush_failed(self, reason: str) -> None:
        """A flush failed and will be tried again."""
        self._flush_failures.labels(reason).inc()

    def flush_lag(self, lag_seconds: Callable[[], float]) -> None:
        """Ask `lag_seconds` at every scrape."""
        self._flush_lag.set_function(lag_seconds)

    def removals_journaled(self, removals: int) -> None:
        """Removals are durable."""
        self._removals.inc(removals)

    def quarantined(self, reason: str, blocks: int) -> None:
        """Blocks failed verification and will not be served; see `QUARANTINE_REASONS`."""
        if blocks:
            self._quarantined.labels(reason).inc(blocks)

    def disk(self, used_bytes: int, capacity_bytes: int, repository_bytes: int) -> None:
        """Space on the repository's file system, and the repository's own."""
        self._disk_used.set(used_bytes)
        self._disk_capacity.set(capacity_bytes)
        self._disk_ratio.set(used_bytes / capacity_bytes if capacity_bytes else 0.0)
        self._repository_bytes.set(repository_bytes)

    # --- budgets ------------------------------------------------------------------------------

    def left_out(self, reason: str, blocks: int) -> None:
        """Blocks are not written, for now; `reason` is one of `LEFT_OUT_REASONS`."""
        self._left_out.labels(reason).inc(blocks)

    def waiting(self, blocks: Mapping[str, int]) -> None:
        """Blocks of the store that are not on disk now, by reason."""
        for reason, number in blocks.items():
            self._waiting.labels(reason).set(number)

    def dropped(self, reason: str, blocks: int) -> None:
        """Blocks left the disk for want of room; `reason` is one of `DROP_REASONS`."""
        self._dropped.labels(reason).inc(blocks)

    def compacted(self, packs: int, blocks: int, bytes_written: int) -> None:
        """Packs were cleaned: `blocks` live ones were copied."""
        self._compaction_packs.inc(packs)
        self._compaction_blocks.inc(blocks)
        self._compaction_bytes.inc(bytes_written)

    def compaction_failed(self, reason: str) -> None:
        """Relief failed and will be tried again; see `SNAPSHOT_FAILURE_REASONS`."""
        self._compaction_failures.labels(reason).inc()

    def limits(self, repository_bytes_max: int, write_bytes_left: int | None) -> None:
        """What the repository may take now, and what may be written now (None: no limit)."""
        self._repository_limit.set(repository_bytes_max)
        self._write_left.set(math.inf if write_bytes_left is None else write_bytes_left)

    # --- warm-up --------------------------------------------------------------------------------

    def ready(self, seconds: float) -> None:
        """All blocks of the snapshot are served, `seconds` after the process started."""
        self._ready_seconds.set_function(lambda: seconds)

    def warmup_loaded(self, result: str, blocks: int, bytes_moved: int) -> None:
        """The background warm-up dealt with blocks; `result` is one of `LOAD_RESULTS`."""
        self._warmup_blocks.labels(result).inc(blocks)
        self._warmup_bytes.inc(bytes_moved)

    def left_without_slot(self, blocks: int) -> None:
        """Blocks on disk left the live set: the store has no slot for them."""
        self._warmup_blocks.labels("no_slot").inc(blocks)

    def demand_loaded(self, result: str, blocks: int, bytes_moved: int) -> None:
        """Blocks that a reader waited for; `result` is one of `LOAD_RESULTS`."""
        self._demand_blocks.labels(result).inc(blocks)
        self._demand_bytes.inc(bytes_moved)

    def warmup_progress(self, ratio: float) -> None:
        """Share of the blocks to warm up that were dealt with, 0 to 1."""
        self._warmup_ratio.set(ratio)

    def warmup_done(self, seconds: float) -> None:
        """The background warm-up ended."""
        self._warmup_seconds.set(seconds)

    # --- the store ------------------------------------------------------------------------------

    def store_up(self, up: bool) -> None:
        """Whether the store answers."""
        self._store_up.set(1 if up else 0)

    def store_stats(self, now: StatsReply, before: StatsReply | None) -> None:
        """The store's counters; `before` is the last look in the same life of the store."""
        self._store_blocks.set(now.blocks)
        self._store_cold_blocks.set(now.cold_blocks)
        self._store_bytes.set(now.bytes_used)
        self._store_capacity.set(now.bytes_capacity)
        for counter, name in (
            (self._store_hits, "hits"),
            (self._store_misses, "misses"),
            (self._store_evictions, "evictions"),
            (self._offload_evictions, "offloaded"),
        ):
            since = getattr(before, name) if before is not None else 0
            counter.inc(max(0, getattr(now, name) - since))

    def offloaded(self, blocks: int, bytes_on_disk: int) -> None:
        """The SSD tier: so many blocks are served from disk only."""
        self._offload_blocks.set(blocks)
        self._offload_bytes.set(bytes_on_disk)

    # --- traces of look-ups ---------------------------------------------------------------------

    def traced(self, accepted: int, malformed: int, refused: int) -> None:
        """Datagrams by what became of them; see `TRACE_RESULTS`."""
        for result, datagrams in zip(TRACE_RESULTS, (accepted, malformed, refused), strict=True):
            self._traces.labels(result).inc(datagrams)

    def traced_pages(self, hits: int, misses: int, known: int) -> None:
        """Pages that clients looked up, and of how many heat is known now."""
        self._traced_pages.labels("hit").inc(hits)
        self._traced_pages.labels("miss").inc(misses)
        self._known_pages.set(known)

    # --- looks at Mooncake ----------------------------------------------------------------------

    def looked(self, look: Look) -> None:
        """A look at Mooncake's master ended well."""
        self._looks.inc()
        self._ambiguous_looks.inc(look.is_ambiguous)
        self._look_bytes.inc(look.hashed_bytes)
        for result in LOOK_RESULTS:
            self._look_blocks.labels(result).inc(getattr(look, result))
        if look.listed:
            self._look_seconds.observe(look.seconds)
            self._listed_keys.set(look.listed)
            self._foreign_keys.set(look.foreign)
            self._unlistable_keys.set(look.unlistable)
            self._keys_without_slot.set(look.without_slot)

    def mount_failed(self, reason: str) -> None:
        """A segment could not be mounted; one of `MOUNT_FAILURES`."""
        self._mount_failures.labels(reason).inc()

    # --- construction ---------------------------------------------------------------------------

    def _snapshot_metrics(self) -> None:
        self._snapshots = self._counter("snapshot", "Snapshots by result.", "result")
        for result in ("success", "failure"):
            self._snapshots.labels(result)
        self._snapshot_failures = self._counter(
            "snapshot_failures", "Snapshots that failed, by reason.", "reason"
        )
        for reason in SNAPSHOT_FAILURE_REASONS:
            self._snapshot_failures.labels(reason)
        self._snapshot_seconds = self._histogram(
            "snapshot_duration_seconds", "Time from a snapshot's start to its durable manifest."
        )
        self._snapshot_bytes = self._counter(
            "snapshot_bytes", "Bytes that snapshots wrote, manifests and packs sealed for them."
        )
        self._snapshot_timestamp = self._gauge(
            "snapshot_last_success_timestamp_seconds",
            "Unix time of the newest valid snapshot, also one from before this process; 0 is none.",
        )
        self._snapshot_blocks = self._gauge("snapshot_blocks", "Blocks in the newest snapshot.")
        self._snapshot_interval = self._gauge(
            "snapshot_interval_seconds", "Time between two snapshots, as configured."
        )

    def _flush_metrics(self) -> None:
        self._flush_lag = self._gauge(
            "flush_lag_seconds", "Age of the newest moment up to which all blocks are on disk."
        )
        self._flush_blocks = self._counter("flush_blocks", "Blocks written to packs.")
        self._flush_bytes = self._counter("flush_bytes", "Bytes of blocks written to packs.")
        self._flush_seconds = self._histogram("flush_duration_seconds", "Time that a flush took.")
        self._flush_failures = self._counter(
            "flush_failures", "Failed flushes, by reason.", "reason"
        )
        for reason in SNAPSHOT_FAILURE_REASONS:
            self._flush_failures.labels(reason)
        self._removals = self._counter("removals_journaled", "Removals made durable.")
        self._quarantined = self._counter(
            "blocks_quarantined", "Blocks that failed verification, by where they were.", "reason"
        )
        for reason in QUARANTINE_REASONS:
            self._quarantined.labels(reason)

    def _budget_metrics(self) -> None:
        self._left_out = self._counter(
            "blocks_left_out", "Blocks of the store that were not written, by reason.", "reason"
        )
        self._waiting = self._gauge(
            "blocks_waiting", "Blocks of the store that are not on disk now, by reason.", "reason"
        )
        for reason in LEFT_OUT_REASONS:
            self._left_out.labels(reason)
            self._waiting.labels(reason)
        self._dropped = self._counter(
            "blocks_dropped", "Blocks dropped from the disk, by what set the limit.", "reason"
        )
        for reason in DROP_REASONS:
            self._dropped.labels(reason)
        self._compaction_packs = self._counter("compaction_packs", "Packs that were compacted.")
        self._compaction_blocks = self._counter(
            "compaction_blocks", "Blocks that compaction copied."
        )
        self._compaction_bytes = self._counter("compaction_bytes", "Bytes that compaction wrote.")
        self._compaction_failures = self._counter(
            "compaction_failures", "Failures to relieve the disk, by reason.", "reason"
        )
        for reason in SNAPSHOT_FAILURE_REASONS:
            self._compaction_failures.labels(reason)
        self._repository_limit = self._gauge(
            "repository_limit_bytes", "Bytes that the repository may take now."
        )
        self._write_left = self._gauge(
            "write_budget_left_bytes",
            "Bytes that may be written at once under the daily limit; +Inf without one.",
        )

    def _disk_metrics(self) -> None:
        self._disk_ratio = self._gauge(
            "disk_used_ratio", "Used share of the file system that holds the repository."
        )
        self._disk_used = self._gauge("disk_used_bytes", "Used bytes of that file system.")
        self._disk_capacity = self._gauge("disk_capacity_bytes", "Size of that file system.")
        self._repository_bytes = self._gauge("repository_bytes", "Bytes of packs and manifests.")

    def _warmup_metrics(self) -> None:
        self._ready_seconds = self._gauge(
            "ready_duration_seconds",
            "Time from the start of this process until all blocks of the snapshot were served; "
            "until then, since its start.",
        )
        self._warmup_seconds = self._gauge(
            "warmup_duration_seconds", "Time that the last background warm-up took."
        )
        self._warmup_ratio = self._gauge(
            "warmup_progress_ratio", "Share of the blocks to warm up that were dealt with."
        )
        self._warmup_blocks = self._counter(
            "warmup_blocks", "Blocks that the background warm-up dealt with, by result.", "result"
        )
        self._demand_blocks = self._counter(
            "demand_load_blocks", "Cold blocks that readers waited for, by result.", "result"
        )
        for result in LOAD_RESULTS:
            self._warmup_blocks.labels(result)
            self._demand_blocks.labels(result)
        self._warmup_bytes = self._counter("warmup_bytes", "Bytes that the warm-up put back.")
        self._demand_bytes = self._counter("demand_load_bytes", "Bytes loaded because of readers.")

    def _store_metrics(self) -> None:
        self._store_blocks = self._gauge("store_blocks", "Blocks resident in the store.")
        self._store_cold_blocks = self._gauge("store_cold_blocks", "Blocks served from disk.")
        self._store_bytes = self._gauge("store_bytes", "Bytes of resident blocks.")
        self._store_capacity = self._gauge("store_capacity_bytes", "Bytes the store can hold.")
        self._store_hits = self._counter("store_hits", "Blocks that readers found.")
        self._store_misses = self._counter("store_misses", "Blocks that readers did not find.")
        self._store_evictions = self._counter("store_evictions", "Blocks that the store evicted.")
        self._store_up = self._gauge("store_up", "1 while the store answers.")
        self._offload_evictions = self._counter(
            "offload_evictions", "Evicted blocks that stayed readable from the SSD tier."
        )
        self._offload_blocks = self._gauge("offload_blocks", "Blocks in the SSD tier only.")
        self._offload_bytes = self._gauge("offload_bytes", "Bytes of those blocks.")

    def _mooncake_metrics(self) -> None:
        self._looks = self._counter("mooncake_looks", "Looks at Mooncake's master that ended well.")
        self._ambiguous_looks = self._counter(
            "mooncake_ambiguous_looks",
            "Looks that said nothing, because the master lists something dead where a segment is.",
        )
        self._mount_failures = self._counter(
            "mooncake_mount_failures", "Segments that could not be mounted, by reason.", "reason"
        )
        for reason in MOUNT_FAILURES:
            self._mount_failures.labels(reason)
        self._look_seconds = self._histogram(
            "mooncake_look_duration_seconds", "Time of looks that listed keys."
        )
        self._look_bytes = self._counter(
            "mooncake_hashed_bytes", "Bytes of blocks that looks hashed in Mooncake's segments."
        )
        self._look_blocks = self._counter(
            "mooncake_look_blocks", "Blocks of ours by what looks found.", "result"
        )
        for result in LOOK_RESULTS:
            self._look_blocks.labels(result)
        self._listed_keys = self._gauge("mooncake_listed_keys", "Keys of the whole master.")
        self._foreign_keys = self._gauge(
            "mooncake_foreign_keys", "Keys that are in no segment of ours."
        )
        self._unlistable_keys = self._gauge(
            "mooncake_unlistable_keys", "Keys that cannot be asked about: they are not saved."
        )
        self._keys_without_slot = self._gauge(
            "mooncake_keys_without_slot", "Keys that segment_blocks_max leaves no slot for."
        )

    def _trace_metrics(self) -> None:
        self._traces = self._counter(
            "trace_lookups", "Look-ups that clients told, by what became of them.", "result"
        )
        for result in TRACE_RESULTS:
            self._traces.labels(result)
        self._traced_pages = self._counter(
            "trace_pages", "Pages of those look-ups, by whether they were there.", "result"
        )
        for result in ("hit", "miss"):
            self._traced_pages.labels(result)
        self._known_pages = self._gauge(
            "trace_known_pages", "Pages that heat is known of by look-ups."
        )

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"snapd_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"snapd_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str) -> Histogram:
        buckets = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120, 300)
        return Histogram(f"snapd_{name}", text, buckets=buckets, registry=self.registry)
