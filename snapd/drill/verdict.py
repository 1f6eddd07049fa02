"""What the figures prove: findings, each with the exit code it calls for. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from snapd.drill.measure import ScenarioResult
from snapd.drill.offload import OFFLOAD, OffloadResult
from snapd.errors import IntegrityError, SnapdError

HIT_RATE_SLACK = 0.01
"""One point: how far a restored cache may fall below what was durable."""
RESTORED = ("shm", "nvme", "sigterm", "master", "all")
"""Scenarios after which the cache must be back."""
DURABLE = ("shm", "sigterm")
"""Scenarios in which every acknowledged block must survive in a store that tells of every put.
Where snapd polls, what was put since the last poll does not."""
DAMAGED_ON_DISK = ("nvme", "sigterm", "all")
"""Where snapd polls, scenarios in which damage must be counted. What differs in the memory of a
dead store may be newer, so there it is left out uncounted."""
FROM_MEMORY = ("shm",)
"""Scenarios after which no block need be read from the disk, where that is counted."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that the drill found wrong."""

    scenario: str
    seed: int
    text: str
    exit_code: int

    def __str__(self) -> str:
        return f"{self.scenario} (seed {self.seed}): {self.text}"


def judge(
    results: Sequence[ScenarioResult], *, injected: bool, polled: bool = False
) -> list[Finding]:
    """Everything that is wrong with these results; none of it is fine.

    `polled` says that snapd learns by polling what is put into this store.
    """
    return [
        Finding(result.name, result.seed, text, code)
        for result in results
        for text, code in _judge_one(result, injected=injected, polled=polled)
    ]


def judge_offload(results: Sequence[OffloadResult], seed: int) -> list[Finding]:
    """Wrong bytes in the comparison: a defect whoever kept them."""
    return [
        Finding(OFFLOAD, seed, f"{one.keeper}: {one.wrong_bytes} bytes came back wrong", 4)
        for one in results
        if one.wrong_bytes
    ]


def _judge_one(result: ScenarioResult, *, injected: bool, polled: bool) -> list[tuple[str, int]]:
    found: list[tuple[str, int]] = []
    if result.wrong_bytes:
        found.append((f"{result.wrong_bytes} bytes came back wrong", IntegrityError.exit_code))
    if result.lost_committed_blocks:
        lost = f"{result.lost_committed_blocks} durable blocks are gone"
        found.append((lost, IntegrityError.exit_code))
    damaged = injected and (not polled or result.name in DAMAGED_ON_DISK)
    if damaged and not result.rejected_blocks:
        found.append(("the damaged blocks were not rejected", SnapdError.exit_code))
    if result.name in FROM_MEMORY and result.nvme_blocks_read and not injected:
        read = f"{result.nvme_blocks_read} blocks were read from the disk, not from memory"
        found.append((read, SnapdError.exit_code))
    if result.name in DURABLE and result.undurable_at_kill > 0 and not polled:
        part = f"{result.undurable_at_kill:.2%} of the acknowledged blocks did not survive"
        found.append((part, SnapdError.exit_code))
    if result.name in RESTORED:
        least = result.hit_rate_baseline - result.undurable_at_kill - HIT_RATE_SLACK
        if result.hit_rate < least:
            short = f"hit rate {result.hit_rate:.1%} is below {least:.1%}"
            found.append((short, SnapdError.exit_code))
    return found


def exit_code(findings: Sequence[Finding]) -> int:
    """0 without findings, 4 if one is about integrity, else 1."""
    return max((finding.exit_code for finding in findings), default=0)
