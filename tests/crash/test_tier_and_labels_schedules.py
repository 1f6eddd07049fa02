"""Labels with equal keys in a tier that is too small, faults and backups in the middle of it.

Real processes, random schedules, one oracle: `tier_schedules`. One run alone:
`PYTHONPATH=tests/support python tests/support/tier_schedules.py SEED SECONDS`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from fault_ledger import FaultClass, case
from tier_labels_load import Oracle, content
from tier_schedules import TierSchedule


@pytest.mark.parametrize(
    ("seed", "seconds"),
    [
        pytest.param(1, 4.0),
        *(pytest.param(seed, 40.0, marks=pytest.mark.long) for seed in range(100, 112)),
    ],
)
def test_a_label_gets_its_last_version_or_nothing(
    tmp_path: Path, seed: int, seconds: float
) -> None:
    schedule = TierSchedule(tmp_path / "all", seed)
    with case(FaultClass.KILL, f"labels in the tier, schedule {seed} of {seconds} s"):
        findings = schedule.run(seconds)
        assert not findings, "\n".join(
            [
                *findings[:5],
                f"after {schedule.story}",
                f"repeat: PYTHONPATH=tests/support python tests/support/tier_schedules.py "
                f"{seed} {seconds}",
            ]
        )
    assert schedule.oracle.counts["get hit"] > 0


def test_the_oracle_sees_what_is_wrong() -> None:
    oracle = Oracle(keys=4, large=1000)
    oracle.attached()
    name, other = ("model=a", "k0000"), ("model=b", "k0000")
    first, second = content(name, 1, 1000), content(name, 2, 1000)
    oracle.entries[name].allow(frozenset({1}))
    allowed = oracle.entries[name].since(0)
    assert oracle.judge("get", name, first, allowed)
    assert not oracle.judge("get", name, b"", allowed)
    assert not oracle.findings
    for value, where in ((second, name), (first, other), (first[:-1] + b"?", name)):
        oracle.judge("get", where, value, allowed)
    assert len(oracle.findings) == 3

    # A removal without a daemon is undone by the loss of the memory, one with a daemon is not.
    oracle.end(name, frozenset(), began=oracle.attached_since)
    oracle.wiped()
    assert oracle.entries[name].allowed == frozenset()
    oracle.entries[name].allow(frozenset({2}))
    oracle.detached()
    oracle.end(name, frozenset(), began=oracle.attached_since)
    assert oracle.entries[name].allowed == frozenset()
    oracle.wiped()
    assert oracle.entries[name].allowed == frozenset({2})
