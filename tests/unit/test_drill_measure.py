"""Figures: each is checked on records made by hand, where it can be counted."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from snapd.drill.measure import (
    PREFILL_SECONDS_PER_TOKEN,
    ROLLING_REQUESTS,
    DiskReads,
    Run,
    Survival,
    Timeline,
    hit_rate,
    recovery_seconds,
    rolling_hit_rate,
    summarise,
    window_is_complete,
)
from snapd.drill.offload import OffloadResult
from snapd.drill.plan import make_plan
from snapd.drill.shared import RECORD_DTYPE, Records
from snapd.drill.trace import BLOCK_TOKENS, MultiTurn, generate_trace
from snapd.drill.verdict import exit_code, judge, judge_offload
from snapd.errors import SettingError

REQUESTS = 400
BLOCKS = 10
WINDOW = 150
START = 1000.0


def replay(hits: np.ndarray, started: float = START) -> Records:
    """One request every 0.1 s, each of 10 blocks and a fetch of 10 ms."""
    records = np.zeros(REQUESTS, RECORD_DTYPE)
    records["fired"] = started + np.arange(REQUESTS) / 10
    records["ended"] = records["fired"] + 0.01
    records["fetch_s"] = 0.01
    records["blocks"] = BLOCKS
    records["hits"] = hits
    return records


def run_of(records: Records, timeline: Timeline, name: str = "nvme") -> Run:
    tokens = np.full(REQUESTS, BLOCKS * BLOCK_TOKENS)
    return Run(name, 1, records, tokens, records["fired"], timeline, Survival(), WINDOW)


@pytest.fixture
def baseline() -> Run:
    at = START + 20.0
    hits = np.full(REQUESTS, 8)
    return run_of(replay(hits), Timeline(at, at, at, at, restarts=False), "baseline")


@pytest.fixture
def restarted() -> Run:
    """Killed at request 200, nothing hit until ready at request 210, half of it until 240."""
    hits = np.full(REQUESTS, 8)
    hits[200:210] = 0
    hits[210:240] = 4
    later = START + 500
    timeline = Timeline(later + 20.0, later + 20.2, later + 20.5, later + 21.0)
    return run_of(replay(hits, later), timeline)


def test_the_window_is_the_same_requests_in_both_runs(restarted: Run, baseline: Run) -> None:
    result = summarise(restarted, baseline)
    assert restarted.window == slice(210, 360)
    assert result.hit_rate == pytest.approx((30 * 4 + 120 * 8) / 1500)
    assert result.hit_rate_baseline == pytest.approx(0.8)
    assert result.requests == REQUESTS
    assert result.blocks == REQUESTS * BLOCKS


def test_times_run_from_kill_and_start(restarted: Run, baseline: Run) -> None:
    result = summarise(restarted, baseline)
    assert result.ready_s == pytest.approx(0.5)
    assert result.first_hit_s == pytest.approx(21.0 + 0.01 - 20.5)
    assert result.fetch_p50_s == pytest.approx(0.01)
    # The last poor request has left the rolling sum far enough when 7 of them are still in it:
    # 7 x 4 of 600 blocks are one point and a bit, 1 x 4 are not.
    rolling_clean = 240 + ROLLING_REQUESTS
    recovered = START + 500 + (rolling_clean - 2) / 10 + 0.01
    assert result.recovery_s == pytest.approx(recovered - restarted.timeline.restarted_at)


def test_a_cache_that_does_not_come_back_has_no_recovery(baseline: Run) -> None:
    hits = np.full(REQUESTS, 8)
    hits[200:] = 3
    timeline = replace(baseline.timeline, restarts=True)
    assert recovery_seconds(run_of(replay(hits), timeline), baseline) is None


def test_the_baseline_has_no_times_of_a_restart(baseline: Run) -> None:
    result = summarise(baseline, baseline)
    assert (result.ready_s, result.first_hit_s, result.recovery_s) == (None, None, None)
    assert result.hit_rate == result.hit_rate_baseline == pytest.approx(0.8)
    assert result.throughput_ratio == pytest.approx(1.0)


def test_time_to_first_token_is_fetch_plus_missed_tokens(restarted: Run, baseline: Run) -> None:
    result = summarise(restarted, baseline)

    def ttft(hits: int) -> float:
        return 0.01 + (BLOCKS - hits) * BLOCK_TOKENS * PREFILL_SECONDS_PER_TOKEN

    assert result.ttft_mean_s.before == pytest.approx(ttft(8), rel=1e-5)
    assert result.ttft_p99_s.during == pytest.approx(ttft(0), rel=1e-5)
    assert result.ttft_mean_s.after == pytest.approx(ttft(8), rel=1e-5)
    mean = (30 * ttft(4) + 120 * ttft(8)) / 150
    assert result.throughput_ratio == pytest.approx(ttft(8) / mean, rel=1e-5)


def test_a_block_that_came_too_late_is_no_hit(baseline: Run) -> None:
    records = baseline.records.copy()
    records["overdue"], records["hits"] = records["hits"], 0
    assert hit_rate(records, slice(0, 100)) == 0.0


def test_the_rolling_rate_weighs_requests_by_their_blocks() -> None:
    records = np.zeros(3, RECORD_DTYPE)
    records["blocks"], records["hits"] = [10, 30, 0], [10, 0, 0]
    assert rolling_hit_rate(records, 2).tolist() == [1.0, 0.25, 0.0]


def test_the_window_is_complete_when_its_last_request_has_ended(restarted: Run) -> None:
    ready = restarted.timeline.ready_at
    assert window_is_complete(restarted.records, ready, WINDOW)
    records = restarted.records.copy()
    records["ended"][359] = 0
    assert not window_is_complete(records, ready, WINDOW)
    assert not window_is_complete(restarted.records, START + 1e6, WINDOW)


def test_integrity_outweighs_every_other_finding(restarted: Run, baseline: Run) -> None:
    result = summarise(restarted, baseline)
    short = judge([result], injected=False)
    assert [finding.exit_code for finding in short] == [1]
    assert "hit rate 72.0% is below 79.0%" in str(short[0])
    survived = replace(restarted.survival, undurable_at_kill=0.08)
    allowed = summarise(replace(restarted, survival=survived), baseline)
    assert judge([allowed], injected=False) == []
    lost = replace(restarted.survival, lost_committed_blocks=1)
    assert (
        exit_code(judge([summarise(replace(restarted, survival=lost), baseline)], injected=False))
        == 4
    )
    wrong = replace(restarted.survival, audit_wrong_bytes=1)
    assert (
        exit_code(judge([summarise(replace(restarted, survival=wrong), baseline)], injected=False))
        == 4
    )
    assert exit_code([]) == 0


def test_damage_that_nobody_rejects_is_a_finding(baseline: Run) -> None:
    unnoticed = judge([summarise(baseline, baseline)], injected=True)
    assert [finding.exit_code for finding in unnoticed] == [1]
    noticed = replace(baseline, survival=Survival(rejected_blocks=2))
    assert judge([summarise(noticed, noticed)], injected=True) == []


def test_shared_memory_and_a_polite_stop_must_lose_nothing(baseline: Run) -> None:
    part = replace(baseline, survival=Survival(undurable_at_kill=0.001))
    for name, findings in (("shm", 1), ("sigterm", 1), ("nvme", 0), ("cold", 0)):
        assert (
            len(judge([summarise(replace(part, name=name), baseline)], injected=False)) == findings
        )


def test_where_snapd_polls_the_last_puts_may_be_lost_but_memory_is_not_read_from_disk(
    baseline: Run,
) -> None:
    for name, read, findings in (("shm", 0, 0), ("shm", 3, 1), ("master", 3, 0)):
        survival = Survival(undurable_at_kill=0.001, reads=DiskReads(read, 4096))
        result = summarise(replace(baseline, name=name, survival=survival), baseline)
        assert len(judge([result], injected=False, polled=True)) == findings, (name, read)


def test_a_polled_store_that_did_not_come_back_is_a_finding(baseline: Run) -> None:
    records = baseline.records.copy()
    records["hits"][baseline.window] = 0
    for name in ("master", "all"):
        cold = replace(baseline, name=name, records=records)
        found = judge([summarise(cold, baseline)], injected=False, polled=True)
        assert [finding.exit_code for finding in found] == [1]
        assert "hit rate 0.0%" in str(found[0])


def test_wrong_bytes_of_the_comparison_are_a_finding_whoever_kept_them() -> None:
    good = OffloadResult(
        keeper="offload",
        kill="1 s",
        restart="noticed",
        blocks=10,
        block_bytes=40960,
        disk_bytes=40960,
        blocks_back=9,
        back_s=1.0,
        read_s=0.1,
        wrong_bytes=0,
    )
    assert judge_offload([good], 3) == []
    found = judge_offload([msgspec.structs.replace(good, wrong_bytes=5)], 3)
    assert [str(finding) for finding in found] == [
        "offload (seed 3): offload: 5 bytes came back wrong"
    ]
    assert exit_code(found) == 4


def test_a_plan_kills_in_the_middle_and_fits_two_segments_into_two_gigabytes() -> None:
    options = {
        "seed": 1,
        "clients": 2,
        "load_seconds": 10.0,
        "speed": None,
        "inject": False,
        "flush_seconds": 1.0,
        "snapshot_seconds": 2.0,
        "deadline_seconds": 1.0,
    }
    trace = generate_trace(MultiTurn(), 1)
    plan = make_plan(trace, block_bytes=1 << 20, **options)
    assert plan.kill_request == 600
    assert len(plan.trace) >= 600 + plan.window_requests + 60
    assert plan.trace.times[600 + plan.window_requests] / plan.speed == pytest.approx(10.0)
    assert 2 * plan.site_settings.segment_bytes < 2 << 30
    small = make_plan(trace, block_bytes=4096, **options).site_settings
    assert plan.trace.block_count * 4096 < small.segment_bytes < 100 << 20
    with pytest.raises(SettingError, match="at least"):
        make_plan(trace.head(200), block_bytes=4096, **options)
