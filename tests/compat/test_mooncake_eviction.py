"""Looking at Mooncake must not change what it evicts.

Its order of eviction goes by leases, and every read grants one: whoever looks at all keys in the
wrong way flattens the order, and users lose the blocks that they need. So the same load runs with
nobody beside it, several times, and with snapd; what is left must not differ more than it does
between two runs with nobody. A witness that does take leases shows that this would be noticed.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from eviction_load import EvictionLoad
from eviction_trial import Trial, lease_taker, nobody, snapd

BUSY_DAEMON = {
    "poll_sec": 0.25,
    "flush_sec": 0.25,
    "snapshot_interval_sec": 1,
    "segment_blocks_max": 200_000,
}

FEW = EvictionLoad(
    seed=1,
    keys=10_000,
    resident=4_000,
    block_bytes=1024,
    step_keys=100,
    step_reads=50,
    step_seconds=0.02,
)

MANY = EvictionLoad(
    seed=1,
    keys=160_000,
    resident=100_000,
    block_bytes=1024,
    step_keys=200,
    step_reads=100,
    step_seconds=0.05,
)


def check_fair(trial: Trial) -> None:
    """The load was what it was meant to be, in every run: eviction was at work, puts were not
    refused."""
    for runs in trial.runs.values():
        for run in runs:
            assert run.client["failed_puts"] == 0, trial.report()
            assert run.evictions >= 10, trial.report()
            assert run.evicted + len(run.left) == trial.load.keys, trial.report()


def check_no_difference(trial: Trial) -> None:
    """The last eviction of a run may come just before its end or not, in each run of a pair."""
    control = max(trial.differences("nobody", "nobody"))
    beside = max(trial.differences("nobody", "snapd"))
    assert beside <= control + 2 * trial.eviction_keys, trial.report()


def check_snapd_was_at_work(trial: Trial, blocks_min: int) -> None:
    for run in trial.runs["snapd"]:
        assert run.witness["daemon_alive"], trial.report()
        assert run.witness["flushed_blocks"] >= blocks_min, trial.report()
        assert run.witness["flushed_under_load"] >= blocks_min // 4, trial.report()
        assert run.witness["blocks_at_end"] == len(run.left), trial.report()
        assert run.witness["snapshots"] >= 1, trial.report()


def test_snapd_does_not_change_what_is_evicted(tmp_path: Path) -> None:
    trial = Trial(FEW, tmp_path)
    trial.run("nobody", nobody)
    trial.run("snapd", snapd, **BUSY_DAEMON)
    trial.run("nobody", nobody)
    print(trial.report())
    check_fair(trial)
    check_snapd_was_at_work(trial, FEW.resident)
    check_no_difference(trial)


@pytest.mark.long
def test_of_a_hundred_thousand_keys_the_same_are_evicted_beside_snapd(tmp_path: Path) -> None:
    trial = Trial(MANY, tmp_path, eviction_ratio=0.005)
    for _ in range(2):
        trial.run("nobody", nobody)
        trial.run("snapd", snapd, **BUSY_DAEMON)
    trial.run("nobody", nobody)
    print(trial.report())
    check_fair(trial)
    check_snapd_was_at_work(trial, MANY.resident)
    check_no_difference(trial)


@pytest.mark.long
def test_that_leases_change_what_is_evicted_would_be_noticed(tmp_path: Path) -> None:
    trial = Trial(FEW, tmp_path)
    trial.run("nobody", nobody)
    trial.run("leases", lease_taker)
    trial.run("nobody", nobody)
    print(trial.report())
    control = max(trial.differences("nobody", "nobody"))
    disturbed = min(trial.differences("nobody", "leases"))
    assert disturbed > 5 * (control + 2 * trial.eviction_keys), trial.report()
