"""The drill's report: one HTML file that needs nothing else, in the reader's light or dark."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib import resources
from statistics import median
from typing import Any

import numpy as np

from snapd.drill.chart import Line, bar_chart, line_chart
from snapd.drill.content import Bools
from snapd.drill.measure import (
    DURING_SHARE,
    PREFILL_SECONDS_PER_TOKEN,
    ROLLING_REQUESTS,
    Run,
    ScenarioResult,
    rolling_hit_rate,
)
from snapd.drill.offload import OFFLOAD_HEADINGS, OffloadResult, offload_cells
from snapd.drill.plan import SCENARIOS, DrillPlan
from snapd.drill.verdict import Finding

SECONDS_BEFORE = 3.0
"""How much of the replay before the kill the small charts show."""
PHASES = ("before", "during", "after")
_UNKNOWN = "–"
"""A cell without a figure. A column of nothing else is left out."""


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that is told: runs and results go in pairs, seed by seed."""

    plan: DrillPlan
    """That of the first seed."""
    workload: str
    runs: Sequence[Run]
    results: Sequence[ScenarioResult]
    findings: Sequence[Finding]
    version: str
    machine: str
    made_at: str
    scenarios: Mapping[str, str] = field(default_factory=lambda: SCENARIOS)
    """What each scenario does."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Settings that only this store has."""
    offload: Sequence[OffloadResult] = ()
    """Mooncake's own SSD offload beside snapd."""


def render_report(report: Report) -> str:
    """The whole page."""
    style = resources.files("snapd.drill").joinpath("report.css").read_text()
    names = list(dict.fromkeys(result.name for result in report.results))
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>snapd drill</title><style>{style}</style></head><body><main>",
            _header(report),
            f'<div class="cards">{"".join(_card(report, name) for name in names)}</div>',
            _charts(report, names),
            _ttft(report, names),
            _table(report),
            _offload(report),
            _method(report),
            f"<footer>snapd {escape(report.version)} · {escape(report.machine)} · "
            f"{escape(report.made_at)}</footer></main></body></html>",
        ]
    )


def _header(report: Report) -> str:
    bad = bool(report.findings)
    verdict = f"{len(report.findings)} finding(s)" if bad else "Every byte right, nothing lost"
    items = "".join(f"<li>{escape(str(finding))}</li>" for finding in report.findings)
    findings = f'<ul class="findings">{items}</ul>' if bad else ""
    badge = '<div class="verdict bad">✗ ' if bad else '<div class="verdict">✓ '
    blocks = sum(result.blocks for result in report.results)
    seeds = len({result.seed for result in report.results})
    return (
        "<header><div><h1>Does the cache survive a restart?</h1>"
        f'<p class="soft">{escape(report.workload)}, replayed against real processes that were '
        f"killed in the middle of it. {blocks:,} block lookups over {seeds} "
        f"seed{'s' if seeds > 1 else ''}; every byte that came back was compared.</p></div>"
        f"{badge}{verdict}</div></header>{findings}"
    )


def _card(report: Report, name: str) -> str:
    results = [result for result in report.results if result.name == name]
    rate = median(result.hit_rate for result in results)
    baseline = median(result.hit_rate_baseline for result in results)
    lines = {
        "without restart": f"{baseline:.1%}",
        "ready again": _median_text(results, lambda result: result.ready_s),
        "hit rate back": _median_text(results, lambda result: result.recovery_s),
        "throughput": f"{median(result.throughput_ratio for result in results):.2f}x",
    }
    if name == "baseline":
        lines = {
            "fetch p50": f"{median(result.fetch_p50_s for result in results) * 1e3:.1f} ms",
            "fetch p99": f"{median(result.fetch_p99_s for result in results) * 1e3:.1f} ms",
        }
    facts = "".join(f"<dt>{key}</dt><dd>{value}</dd>" for key, value in lines.items())
    return (
        f'<div class="card" style="--colour: var(--{name})"><div class="name">{name}</div>'
        f'<div class="figure">{rate:.1%}</div><small class="soft">of blocks hit</small>'
        f'<div class="what">{escape(report.scenarios[name])}</div><dl>{facts}</dl></div>'
    )


def _median_text(
    results: Iterable[ScenarioResult],
    figure: Callable[[ScenarioResult], float | None],
) -> str:
    values = [value for result in results if (value := figure(result)) is not None]
    return f"{median(values):.2f} s" if values else "not yet"


def _charts(report: Report, names: Sequence[str]) -> str:
    lines = [_trace_line(run, report) for run in report.runs]
    # Drawn later is on top: the baseline lies under what is compared with it.
    lines.sort(key=lambda line: (not line.faint, line.name != "baseline"))
    main = line_chart(
        lines,
        width=1060,
        height=330,
        outage=None,
        description="Hit rate over time in every scenario",
        kill_label="kill",
        unit="min",
    )
    legend = "".join(
        f'<span style="--colour: var(--{name})"><i></i>{name}</span>' for name in names
    )
    small = "".join(_small(report, name) for name in names if name != "baseline")
    return (
        "<section><h2>Hit rate over time</h2>"
        f'<p class="soft"><small>Over the last {ROLLING_REQUESTS} requests. Above: minutes of the '
        "trace, before and after the kill. Below: the seconds around the kill as they passed, "
        "beside what the same requests hit without it.</small></p>"
        f'<div class="legend">{legend}</div>{main}<div class="small">{small}</div></section>'
    )


def _small(report: Report, name: str) -> str:
    """One scenario beside the baseline, around the kill."""
    run, baseline = (
        next(run for run in report.runs if run.seed == report.plan.seed and run.name == wanted)
        for wanted in (name, "baseline")
    )
    timeline = run.timeline
    looked = timeline.restarted_at - timeline.stopped_at
    down = timeline.ready_at - timeline.killed_at - looked
    x = run.records["ended"] - timeline.killed_at
    # Leave the look out: the trace stood still for it.
    x = np.where(run.records["fired"] > timeline.stopped_at, np.maximum(x - looked, 0), x)
    shown = _drawn(run) & _drawn(baseline) & (x >= -SECONDS_BEFORE)
    lines = [
        Line(each.name, x[shown], rolling_hit_rate(each.records)[shown]) for each in (baseline, run)
    ]
    chart = line_chart(
        [_in_order(line) for line in lines],
        width=500,
        height=190,
        outage=(0.0, down),
        description=f"Hit rate in {name} beside the baseline",
    )
    return (
        f"<figure><figcaption>{name} <span>away for {down:.2f} s</span></figcaption>"
        f"{chart}</figure>"
    )


def _trace_line(run: Run, report: Report) -> Line:
    """One run over the trace's own time, in which the outage takes what it took."""
    trace_minutes = (run.trace_times - run.trace_times[report.plan.kill_request]) / 60
    drawn = _drawn(run)
    faint = run.seed != report.plan.seed
    return Line(run.name, trace_minutes[drawn], rolling_hit_rate(run.records)[drawn], faint)


def _drawn(run: Run) -> Bools:
    """Requests that ran and have enough others before them."""
    numbers = np.arange(len(run.records))
    drawn: Bools = (run.records["ended"] > 0) & (numbers >= ROLLING_REQUESTS)
    return drawn


def _in_order(line: Line) -> Line:
    order = np.argsort(line.x, kind="stable")
    return Line(line.name, line.x[order], line.y[order], line.faint)


def _ttft(report: Report, names: Sequence[str]) -> str:
    rows = {name: [_phase(report, name, phase) for phase in PHASES] for name in names}
    longest = max((value or 0.0 for values in rows.values() for _, value in values), default=0.0)
    figures = (
        f'<figure style="--colour: var(--{name})"><figcaption>{name}</figcaption>'
        f"{bar_chart(rows[name], width=340, longest=longest, unit='s')}</figure>"
        for name in names
    )
    return (
        "<section><h2>P99 time to first token</h2>"
        '<p class="soft"><small>Modelled: measured fetch, plus '
        f"{PREFILL_SECONDS_PER_TOKEN * 1e6:g} µs for each token that the cache did not "
        f'have.</small></p><div class="bars">{"".join(figures)}</div></section>'
    )


def _phase(report: Report, name: str, phase: str) -> tuple[str, float | None]:
    values = [getattr(r.ttft_p99_s, phase) for r in report.results if r.name == name]
    known = [value for value in values if value is not None]
    return phase, median(known) if known else None


_COLUMNS: tuple[tuple[str, Callable[[ScenarioResult], str]], ...] = (
    ("hit rate", lambda r: f"{r.hit_rate:.1%}"),
    ("before", lambda r: f"{r.hit_rate_before:.1%}"),
    ("baseline", lambda r: f"{r.hit_rate_baseline:.1%}"),
    ("less<br>undurable", lambda r: f"{r.hit_rate_durable:.1%}"),
    ("undurable<br>at kill", lambda r: f"{r.undurable_at_kill:.2%}"),
    ("snapshot<br>age", lambda r: _number(r.snapshot_age_s, "s")),
    ("ready", lambda r: _number(r.ready_s, "s")),
    ("first<br>hit", lambda r: _number(r.first_hit_s, "s")),
    ("recovery", lambda r: _number(r.recovery_s, "s")),
    ("fetch p50", lambda r: f"{r.fetch_p50_s * 1e3:.1f} ms"),
    ("fetch p99", lambda r: f"{r.fetch_p99_s * 1e3:.1f} ms"),
    ("mean TTFT<br>during", lambda r: _number(r.ttft_mean_s.during, "s")),
    ("P90 TTFT<br>during", lambda r: _number(r.ttft_p90_s.during, "s")),
    ("through-<br>put", lambda r: f"{r.throughput_ratio:.2f}x"),
    (
        "blocks from<br>NVMe",
        lambda r: _UNKNOWN if r.nvme_blocks_read is None else f"{r.nvme_blocks_read:,}",
    ),
    ("read from<br>NVMe", lambda r: _size(r.nvme_bytes_read)),
    ("restored<br>blocks", lambda r: f"{r.restored_blocks:,}"),
    ("rejected<br>blocks", lambda r: f"{r.rejected_blocks:,}"),
    ("wrong<br>bytes", lambda r: _must_be_zero(r.wrong_bytes)),
    ("lost<br>blocks", lambda r: _must_be_zero(r.lost_committed_blocks)),
)


def _table(report: Report) -> str:
    columns = [
        (heading, cell)
        for heading, cell in _COLUMNS
        if any(cell(result) != _UNKNOWN for result in report.results)
    ]
    headings = "".join(f"<th>{heading}</th>" for heading, _ in columns)
    several = len({result.seed for result in report.results}) > 1
    body = []
    for result in report.results:
        cells = "".join(f"<td>{cell(result)}</td>" for _, cell in columns)
        name = f"{result.name} · seed {result.seed}" if several else result.name
        body.append(
            f'<tr><td style="--colour: var(--{result.name})"><i></i>{name}</td>{cells}</tr>'
        )
    return (
        '<section><h2>All figures</h2><div class="wide"><table><thead><tr><th>scenario</th>'
        f"{headings}</tr></thead><tbody>{''.join(body)}</tbody></table></div></section>"
    )


def _offload(report: Report) -> str:
    """Mooncake's own SSD offload on the same blocks; nothing where it was not run."""
    if not report.offload:
        return ""
    headings = "".join(f"<th>{escape(heading)}</th>" for heading in OFFLOAD_HEADINGS)
    rows = (
        "".join(f"<td>{escape(cell)}</td>" for cell in offload_cells(result))
        for result in report.offload
    )
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return (
        "<section><h2>Beside Mooncake's own SSD offload</h2>"
        '<p class="soft"><small>The store is filled with the blocks of the first half, and the '
        "node is lost: the store gets SIGKILL and its memory is gone. Killed so long after the "
        "fill, or when nothing was written any more (quiet); started again at once, or when the "
        "master had dropped the dead store (noticed). The offload writes buckets, by its defaults "
        "of 500 keys or 256 MiB, with a heartbeat of 1 s instead of 10 s.</small></p>"
        f'<div class="wide"><table><thead><tr>{headings}</tr></thead><tbody>{body}</tbody></table>'
        "</div></section>"
    )


def _number(value: float | None, unit: str) -> str:
    return _UNKNOWN if value is None else f"{value:.2f} {unit}"


def _size(size: int | None) -> str:
    return _UNKNOWN if size is None else f"{size / 2**20:,.1f} MiB"


def _must_be_zero(count: int) -> str:
    kind = "bad" if count else "zero"
    return f'<span class="{kind}">{count:,}</span>'


def _lateness(runs: Sequence[Run]) -> float:
    """Seconds by which requests fired late at most, but for one in a hundred."""
    late = np.concatenate([run.records["late_s"][run.records["ended"] > 0] for run in runs])
    return float(np.percentile(late, 99))


def _method(report: Report) -> str:
    plan = report.plan
    facts: dict[str, Any] = {
        "load": f"{len(plan.trace):,} requests over {plan.trace.block_count:,} blocks of "
        f"{plan.block_bytes // 1024} KiB, from {plan.clients} client processes, open loop, "
        f"{plan.speed:.3g} times as fast as recorded; at normal speed while the store is away. "
        "The trace stands still while the drill looks at what survived. "
        f"99% of them fired within {_lateness(report.runs) * 1e3:.0f} ms of their time.",
        "changes": f"{plan.upsert_ratio:.0%} of the requests rewrite one of their blocks, "
        f"{plan.remove_ratio:.0%} remove one.",
        "settings": f"flush every {plan.flush_seconds:g} s, snapshot every "
        f"{plan.snapshot_seconds:g} s, {plan.site_settings.segment_bytes / 2**20:,.0f} MiB of "
        "shared memory.",
        "kill": "at a seeded moment, uniform over one flush interval from the middle of the "
        "replay, while puts and flushes are under way.",
        "hit rate": f"blocks whose bytes came back right within {plan.deadline_seconds:g} s, of "
        f"all blocks of the {plan.window_requests} requests after the restart. The baseline is "
        "the same requests without a restart.",
        "undurable": "blocks that the store had acknowledged and that were not found in the "
        "repository (for shm: in the segment) by a look from outside, after the kill and before "
        "the restart.",
        "ready": "from the start of the first process until every block that survived is served.",
        "recovery": "from the start of the first process until the hit rate over "
        f"{ROLLING_REQUESTS} requests is within one point of that of the same requests "
        "in the baseline.",
        "during": f"from the kill to the end of the first {DURING_SHARE:.0%} of the window.",
        "throughput": "modelled: prompts served a second of modelled time to first token, "
        "beside the baseline's.",
        "lost": "blocks that were durable at the kill and are gone, though nobody removed them "
        "and the store did not log their eviction.",
    }
    if plan.inject:
        facts["damage"] = "one byte of a block in shared memory and one in a pack were flipped."
    facts |= _of_mooncake(report.facts)
    rows = "".join(f"<dt>{key}</dt><dd>{escape(text)}</dd>" for key, text in facts.items())
    return f'<section><h2>How it was measured</h2><dl class="how">{rows}</dl></section>'


def _of_mooncake(settings: Mapping[str, Any]) -> dict[str, str]:
    """What is measured in another way with real Mooncake."""
    if not settings:
        return {}
    return {
        "Mooncake": f"the published wheel, {settings['store_service']} store service, over TCP; "
        f"the master's client_ttl is {settings['client_ttl_s']} s instead of 10 s, and snapd looks "
        f"every {settings['poll_s']:g} s.",
        "changes": "as above, but for the last seconds before the kill and until all is back: what "
        "was put, rewritten or removed since the last look is what polling can lose.",
        "undurable": "blocks that Mooncake had acknowledged and that a look from outside did not "
        "find in the repository.",
        "ready": "from the start of the first process until snapd had put back what it can.",
        "from NVMe": "blocks that the daemon put back from packs, by its own count, and bytes that "
        "the kernel counts as read by it (what the file system reads for itself among them), from "
        "the kill until it was ready.",
        "lost": "blocks that were in the repository at the kill and did not come back right.",
        "cold": "without snapd the store brings its memory itself.",
    }
