"""The drill's report: one HTML file that needs nothing else, in the reader's light or dark."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from statistics import median
from typing import Any

import numpy as np

from snapd.drill.chart import Line, bar_chart, line_chart
from snapd.drill.measure import (
    DURING_SHARE,
    PREFILL_SECONDS_PER_TOKEN,
    ROLLING_REQUESTS,
    Run,
    ScenarioResult,
    rolling_hit_rate,
)
from snapd.drill.plan import SCENARIOS, DrillPlan
from snapd.drill.verdict import Finding


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
        "hit rate back": _median_text(results, lambda result: result.recovery_s, "not in window"),
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
        f'<div class="what">{escape(SCENARIOS[name])}</div>'
        f'<div class="figure">{rate:.1%}</div><small class="soft">of blocks hit</small>'
        f"<dl>{facts}</dl></div>"
    )


def _median_text(
    results: Iterable[ScenarioResult],
    figure: Callable[[ScenarioResult], float | None],
    never: str = "never",
) -> str:
    values = [value for result in results if (value := figure(result)) is not None]
    return f"{median(values):.2f} s" if values else never


def _charts(report: Report, names: Sequence[str]) -> str:
    lines = [_line(run, faint=run.seed != report.plan.seed) for run in report.runs]
    lines.sort(key=lambda line: not line.faint)
    main = line_chart(
        lines,
        width=1060,
        height=330,
        outage=None,
        description="Hit rate over time in every scenario",
        kill_label="kill",
    )
    legend = "".join(
        f'<span style="--colour: var(--{name})"><i></i>{name}</span>' for name in names
    )
    small = "".join(_small(report, name) for name in names if name != "baseline")
    return (
        "<section><h2>Hit rate over time</h2>"
        f'<p class="soft"><small>Over the last {ROLLING_REQUESTS} requests; '
        "seconds from the kill.</small></p>"
        f'<div class="legend">{legend}</div>{main}<div class="small">{small}</div></section>'
    )


def _small(report: Report, name: str) -> str:
    """One scenario beside the baseline, around the kill."""
    seed = report.plan.seed
    runs = [run for run in report.runs if run.seed == seed and run.name in {name, "baseline"}]
    runs.sort(key=lambda run: run.name != "baseline")
    timeline = next(run.timeline for run in runs if run.name == name)
    down = timeline.ready_at - timeline.killed_at
    lines = [_clip(_line(run), -3.0) for run in runs]
    chart = line_chart(
        lines,
        width=500,
        height=190,
        outage=(0.0, down),
        description=f"Hit rate in {name} beside the baseline",
    )
    return (
        f"<figure><figcaption>{name} <span>{escape(SCENARIOS[name])}; away for {down:.2f} s"
        f"</span></figcaption>{chart}</figure>"
    )


def _line(run: Run, *, faint: bool = False) -> Line:
    records = run.records
    rolling = rolling_hit_rate(records)
    ran = (records["ended"] > 0) & (np.arange(len(records)) >= ROLLING_REQUESTS)
    x = records["ended"][ran] - run.timeline.killed_at
    order = np.argsort(x)
    return Line(run.name, x[order], rolling[ran][order], faint)


def _clip(line: Line, x_min: float) -> Line:
    kept = line.x >= x_min
    return Line(line.name, line.x[kept], line.y[kept], line.faint)


def _ttft(report: Report, names: Sequence[str]) -> str:
    figures = []
    for name in names:
        results = [result for result in report.results if result.name == name]
        rows = []
        for phase in ("before", "during", "after"):
            values = [getattr(result.ttft_p99_s, phase) for result in results]
            known = [value for value in values if value is not None]
            rows.append((phase, phase, median(known) if known else None))
        figures.append(
            f"<figure><figcaption>{name}</figcaption>{bar_chart(rows, width=340, unit='s')}"
            "</figure>"
        )
    return (
        "<section><h2>P99 time to first token</h2>"
        '<p class="soft"><small>Modelled: measured fetch, plus '
        f"{PREFILL_SECONDS_PER_TOKEN * 1e6:g} µs for each token that the cache did not "
        f'have.</small></p><div class="bars">{"".join(figures)}</div></section>'
    )


_COLUMNS: tuple[tuple[str, Callable[[ScenarioResult], str]], ...] = (
    ("hit rate", lambda r: f"{r.hit_rate:.1%}"),
    ("baseline", lambda r: f"{r.hit_rate_baseline:.1%}"),
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
    ("restored<br>blocks", lambda r: f"{r.restored_blocks:,}"),
    ("rejected<br>blocks", lambda r: f"{r.rejected_blocks:,}"),
    ("wrong<br>bytes", lambda r: _must_be_zero(r.wrong_bytes)),
    ("lost<br>blocks", lambda r: _must_be_zero(r.lost_committed_blocks)),
)


def _table(report: Report) -> str:
    headings = "".join(f"<th>{heading}</th>" for heading, _ in _COLUMNS)
    several = len({result.seed for result in report.results}) > 1
    body = []
    for result in report.results:
        cells = "".join(f"<td>{cell(result)}</td>" for _, cell in _COLUMNS)
        name = f"{result.name} · seed {result.seed}" if several else result.name
        body.append(
            f'<tr><td style="--colour: var(--{result.name})"><i></i>{name}</td>{cells}</tr>'
        )
    return (
        '<section><h2>All figures</h2><div class="wide"><table><thead><tr><th>scenario</th>'
        f"{headings}</tr></thead><tbody>{''.join(body)}</tbody></table></div></section>"
    )


def _number(value: float | None, unit: str) -> str:
    return "–" if value is None else f"{value:.2f} {unit}"


def _must_be_zero(count: int) -> str:
    kind = "bad" if count else "zero"
    return f'<span class="{kind}">{count:,}</span>'


def _method(report: Report) -> str:
    plan = report.plan
    facts: dict[str, Any] = {
        "load": f"{len(plan.trace):,} requests over {plan.trace.block_count:,} blocks of "
        f"{plan.block_bytes // 1024} KiB, from {plan.clients} client processes, open loop, "
        f"{plan.speed:.3g} times as fast as recorded; at normal speed while the store is away.",
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
        "recovery": f"from the kill until the hit rate over {ROLLING_REQUESTS} requests is within "
        "one point of the baseline's over the same requests.",
        "during": f"from the kill to the end of the first {DURING_SHARE:.0%} of the window.",
        "throughput": "modelled: prompts served a second of modelled time to first token, "
        "beside the baseline's.",
        "lost": "blocks that were durable at the kill and are gone, though nobody removed them "
        "and the store did not log their eviction.",
    }
    if plan.inject:
        facts["damage"] = "one byte of a block in shared memory and one in a pack were flipped."
    rows = "".join(f"<dt>{key}</dt><dd>{escape(text)}</dd>" for key, text in facts.items())
    return f'<section><h2>How it was measured</h2><dl class="how">{rows}</dl></section>'
