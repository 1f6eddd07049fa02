"""The metrics that alerts and dashboards rely on exist, with their labels, from the start."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from snapd.metrics import Metrics
from snapd.wire.messages import StatsReply

CONTRACT = [
    "snapshot_total{result}",
    "snapshot_failures_total{reason}",
    "snapshot_duration_seconds",
    "snapshot_bytes_total",
    "snapshot_last_success_timestamp_seconds",
    "snapshot_blocks",
    "flush_lag_seconds",
    "disk_used_ratio",
    "disk_used_bytes",
    "disk_capacity_bytes",
    "repository_bytes",
    "ready_duration_seconds",
    "warmup_duration_seconds",
    "warmup_progress_ratio",
    "warmup_blocks_total{result}",
    "warmup_bytes_total",
    "blocks_quarantined_total{reason}",
    "store_blocks",
    "store_bytes",
    "store_hits_total",
    "store_misses_total",
    "store_up",
    "build_info",
]


def samples(metrics: Metrics) -> dict[str, list[tuple[dict[str, str], float]]]:
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(metrics.exposition().decode()):
        assert family.documentation, family.name
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


@pytest.mark.parametrize("entry", CONTRACT)
def test_a_fresh_daemon_exposes_every_metric_of_the_contract(entry: str) -> None:
    name, _, label = entry.rstrip("}").partition("{")
    found = samples(Metrics())
    full = f"snapd_{name}"
    assert full in found or f"{full}_sum" in found
    if label:
        assert all(label in labels for labels, _ in found[full])
        assert all(value == 0 for _, value in found[full])


def stats(**values: int) -> StatsReply:
    fields = dict.fromkeys(StatsReply.__struct_fields__, 0)
    return StatsReply(**(fields | {"daemon_attached": True} | values))  # type: ignore[arg-type]


def test_counters_of_the_store_go_on_over_its_restarts() -> None:
    metrics = Metrics()
    first, second = stats(hits=5, misses=1), stats(hits=9, misses=1)
    metrics.store_stats(first, None)
    metrics.store_stats(second, first)
    metrics.store_stats(stats(hits=2), None)  # a new life counts from zero
    found = samples(metrics)
    assert found["snapd_store_hits_total"][0][1] == 11
    assert found["snapd_store_misses_total"][0][1] == 1


def test_a_failed_snapshot_is_counted_by_reason_and_result() -> None:
    metrics = Metrics()
    metrics.snapshot_failed("disk")
    found = samples(metrics)
    assert ({"reason": "disk"}, 1.0) in found["snapd_snapshot_failures_total"]
    assert ({"result": "failure"}, 1.0) in found["snapd_snapshot_total"]


def test_an_empty_file_system_has_a_ratio() -> None:
    metrics = Metrics()
    metrics.disk(0, 0, 0)
    metrics.disk(80, 100, 10)
    assert samples(metrics)["snapd_disk_used_ratio"] == [({}, 0.8)]


def test_the_load_time_grows_until_everything_is_served_and_then_stays() -> None:
    metrics, age = Metrics(), [3.0]
    metrics.started(lambda: age[0], 300.0)
    assert samples(metrics)["snapd_ready_duration_seconds"] == [({}, 3.0)]
    age[0] = 12.0
    assert samples(metrics)["snapd_ready_duration_seconds"] == [({}, 12.0)]
    metrics.ready(12.5)
    age[0] = 99.0
    assert samples(metrics)["snapd_ready_duration_seconds"] == [({}, 12.5)]
    assert samples(metrics)["snapd_snapshot_interval_seconds"] == [({}, 300.0)]


def test_the_start_of_the_process_is_told() -> None:
    assert samples(Metrics())["process_start_time_seconds"][0][1] > 0
