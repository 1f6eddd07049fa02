"""From records of requests to the figures of a scenario. Pure: no clock, no file, no process.

The time to first token is modelled, because there is no model here: what the fetch took, as
measured, plus what computing the missed tokens would take at a stated cost. Queueing is left out.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
import numpy as np
import numpy.typing as npt

from snapd.drill.shared import Records
from snapd.drill.trace import BLOCK_TOKENS

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

PREFILL_SECONDS_PER_TOKEN = 100e-6
"""Stated cost of computing one token of a prompt: 10,000 tokens a second, a round figure for a
large model on one node. Measured nowhere here; what matters is the same for all scenarios."""

ROLLING_REQUESTS = 60
"""Requests over which the rolling hit rate is taken."""
RECOVERED_WITHIN = 0.01
"""One point: how near the rolling hit rate must come to the baseline's."""
DURING_SHARE = 0.25
"""The part of the window that counts as "during", together with the outage."""


class Phases(msgspec.Struct, frozen=True):
    """One figure before, during and after the restart; None where no request fell."""

    before: float | None
    during: float | None
    after: float | None


class ScenarioResult(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of one scenario, as `--json` prints them. Ratios are 0 to 1; None is unknown or
    never."""

    name: str
    seed: int
    requests: int
    blocks: int
    hit_rate: float
    hit_rate_before: float
    hit_rate_baseline: float
    undurable_at_kill: float
    snapshot_age_s: float | None
    ready_s: float | None
    first_hit_s: float | None
    recovery_s: float | None
    fetch_p50_s: float
    fetch_p99_s: float
    ttft_mean_s: Phases
    ttft_p90_s: Phases
    ttft_p99_s: Phases
    throughput_ratio: float
    restored_blocks: int
    nvme_blocks_read: int | None
    nvme_bytes_read: int | None
    rejected_blocks: int
    wrong_bytes: int
    lost_committed_blocks: int

    @property
    def hit_rate_durable(self) -> float:
        """The baseline's, less the part of the blocks that was not durable: what to expect."""
        return max(0.0, self.hit_rate_baseline - self.undurable_at_kill)


@dataclass(frozen=True, slots=True)
class Timeline:
    """When things happened, in seconds of the monotonic clock. Without a restart all are the
    moment at which it would have been."""

    killed_at: float
    stopped_at: float
    """The last process has ended. The drill looks around, and the trace stands still."""
    restarted_at: float
    """The first process was started again."""
    ready_at: float
    """Every block that survived is served again."""
    restarts: bool = True


@dataclass(frozen=True, slots=True)
class DiskReads:
    """What a daemon read from its disk between two moments."""

    blocks: int
    """Blocks that it put back from packs, by its own count."""
    bytes: int
    """By the kernel's count, with what the file system read for itself."""


@dataclass(frozen=True, slots=True)
class Survival:
    """What was found outside the requests."""

    undurable_at_kill: float = 0.0
    snapshot_age_seconds: float | None = None
    restored_blocks: int = 0
    rejected_blocks: int = 0
    lost_committed_blocks: int = 0
    audit_wrong_bytes: int = 0
    """Wrong bytes in the sweep over all blocks at the end."""
    reads: DiskReads | None = None
    """What was read to put blocks back, where it was counted."""
    notes: tuple[str, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class Run:
    """One replay: its records, when things happened and what was found."""

    name: str
    seed: int
    records: Records
    prompt_tokens: I64
    trace_times: F64
    """When each request was due, in seconds of the trace."""
    timeline: Timeline
    survival: Survival
    window_requests: int

    @property
    def window(self) -> slice:
        """The requests after the restart over which the hit rate is taken."""
        first = first_request_after(self.records, self.timeline.ready_at)
        return slice(first, first + self.window_requests)


def summarise(run: Run, baseline: Run) -> ScenarioResult:
    """The figures of a run, beside those of the same requests of a run without restart."""
    records, window, timeline = run.records, run.window, run.timeline
    ran = records[records["ended"] > 0]
    first_killed = first_request_after(records, timeline.killed_at)
    during_ends = window.start + int(run.window_requests * DURING_SHARE)
    phases = (
        slice(max(0, first_killed - run.window_requests // 2), first_killed),
        slice(first_killed, during_ends),
        slice(during_ends, window.stop),
    )
    ttft = model_ttft(records, run.prompt_tokens)
    baseline_ttft = model_ttft(baseline.records, baseline.prompt_tokens)
    fetches = records["fetch_s"][window]
    return ScenarioResult(
        name=run.name,
        seed=run.seed,
        requests=len(ran),
        blocks=int(ran["blocks"].sum()),
        hit_rate=hit_rate(records, window),
        hit_rate_before=hit_rate(records, phases[0]),
        hit_rate_baseline=hit_rate(baseline.records, window),
        undurable_at_kill=run.survival.undurable_at_kill,
        snapshot_age_s=run.survival.snapshot_age_seconds,
        ready_s=timeline.ready_at - timeline.restarted_at if timeline.restarts else None,
        first_hit_s=first_hit_seconds(records, timeline) if timeline.restarts else None,
        recovery_s=recovery_seconds(run, baseline) if timeline.restarts else None,
        fetch_p50_s=float(np.percentile(fetches, 50)),
        fetch_p99_s=float(np.percentile(fetches, 99)),
        ttft_mean_s=Phases(*(_mean(ttft[phase]) for phase in phases)),
        ttft_p90_s=Phases(*(_percentile(ttft[phase], 90) for phase in phases)),
        ttft_p99_s=Phases(*(_percentile(ttft[phase], 99) for phase in phases)),
        throughput_ratio=float(baseline_ttft[window].sum() / ttft[window].sum()),
        restored_blocks=run.survival.restored_blocks,
        nvme_blocks_read=reads.blocks if (reads := run.survival.reads) else None,
        nvme_bytes_read=reads.bytes if reads else None,
        rejected_blocks=run.survival.rejected_blocks,
        wrong_bytes=int(records["wrong_bytes"].sum()) + run.survival.audit_wrong_bytes,
        lost_committed_blocks=run.survival.lost_committed_blocks,
    )


def first_request_after(records: Records, moment: float) -> int:
    """The first request that fired at or after a moment (monotonic seconds)."""
    fired = records["fired"]
    return int(np.argmax(fired >= moment)) if bool((fired >= moment).any()) else len(records)


def window_is_complete(records: Records, ready_at: float, requests: int) -> bool:
    """Whether that many requests have fired since `ready_at`, and all of them have ended."""
    first = first_request_after(records, ready_at)
    window = records["ended"][first : first + requests]
    return len(window) == requests and bool((window > 0).all())


def hit_rate(records: Records, window: slice) -> float:
    """Blocks that came back right within the deadline, of all that were looked for."""
    blocks = int(records["blocks"][window].sum())
    return int(records["hits"][window].sum()) / blocks if blocks else 0.0


def rolling_hit_rate(records: Records, requests: int = ROLLING_REQUESTS) -> F64:
    """Hit rate over each request and those before it, float64 [n]."""
    hits = _rolling_sum(records["hits"].astype(np.float64), requests)
    blocks = _rolling_sum(records["blocks"].astype(np.float64), requests)
    rates: F64 = hits / np.maximum(blocks, 1)
    return rates


def _rolling_sum(values: F64, width: int) -> F64:
    totals = np.concatenate([np.zeros(1), np.cumsum(values)])
    firsts = np.maximum(np.arange(1, len(totals)) - width, 0)
    result: F64 = totals[1:] - totals[firsts]
    return result


def recovery_seconds(run: Run, baseline: Run) -> float | None:
    """From the start of the first process until the rolling hit rate is within one point of the
    baseline's over the same requests; None if it is not by the end of the window.

    The requests rolled over all fired after the kill.
    """
    first = first_request_after(run.records, run.timeline.killed_at)
    last = min(run.window.stop, len(baseline.records))
    if last - first < ROLLING_REQUESTS:
        return None
    part = slice(first, last)
    rolling = rolling_hit_rate(run.records[part])[ROLLING_REQUESTS - 1 :]
    expected = rolling_hit_rate(baseline.records[part])[ROLLING_REQUESTS - 1 :]
    recovered = rolling >= expected - RECOVERED_WITHIN
    if not recovered.any():
        return None
    request = first + ROLLING_REQUESTS - 1 + int(np.argmax(recovered))
    return float(run.records["ended"][request]) - run.timeline.restarted_at


def first_hit_seconds(records: Records, timeline: Timeline) -> float | None:
    """From the start of the first process until a client had a right block again."""
    served = (records["fired"] >= timeline.killed_at) & (records["hits"] > 0)
    served &= records["ended"] > timeline.restarted_at
    if not served.any():
        return None
    return float(records["ended"][served].min()) - timeline.restarted_at


def model_ttft(records: Records, prompt_tokens: I64) -> F64:
    """Modelled seconds to the first token of each request, float64 [n]."""
    missed = np.maximum(prompt_tokens - records["hits"].astype(np.int64) * BLOCK_TOKENS, 1)
    seconds: F64 = records["fetch_s"] + missed * PREFILL_SECONDS_PER_TOKEN
    return seconds


def _mean(values: F64) -> float | None:
    return float(values.mean()) if len(values) else None


def _percentile(values: F64, percent: float) -> float | None:
    return float(np.percentile(values, percent)) if len(values) else None
