"""The report: one file that needs nothing else, and escapes what it is told."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import msgspec
import numpy as np
import pytest
from rich.console import Console

from snapd.drill.chart import Line, bar_chart, line_chart
from snapd.drill.measure import Run, Survival, Timeline, summarise
from snapd.drill.mooncake_scenarios import MOONCAKE_SCENARIOS
from snapd.drill.mooncake_site import MooncakeSettings
from snapd.drill.offload import OffloadResult
from snapd.drill.plan import make_plan
from snapd.drill.report import Report, render_report
from snapd.drill.screen import results_table
from snapd.drill.shared import RECORD_DTYPE
from snapd.drill.stores import MooncakeKind
from snapd.drill.trace import MultiTurn, generate_trace
from snapd.drill.verdict import Finding

VOID = {"meta", "br"}


class TagBalance(HTMLParser):
    """Collects tags that are closed in the wrong order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


@pytest.fixture
def report() -> Report:
    plan = make_plan(
        generate_trace(MultiTurn(), 1),
        seed=1,
        block_bytes=4096,
        clients=2,
        load_seconds=10.0,
        speed=None,
        inject=True,
        flush_seconds=1.0,
        snapshot_seconds=2.0,
        deadline_seconds=1.0,
    )
    requests = len(plan.trace)
    records = np.zeros(requests, RECORD_DTYPE)
    records["fired"] = np.arange(requests) * 0.01 + 50
    records["ended"] = records["fired"] + 0.002
    records["fetch_s"], records["blocks"], records["hits"] = 0.002, 10, 7
    runs = []
    for seed in (1, 2):
        for name in ("baseline", "cold", "shm", "nvme", "sigterm"):
            at = 56.0
            timeline = Timeline(at, at, at, at + 0.5, restarts=name != "baseline")
            tokens = plan.trace.prompt_tokens
            window = plan.window_requests
            times = plan.trace.times
            runs.append(Run(name, seed, records, tokens, times, timeline, Survival(), window))
    results = [summarise(run, runs[0]) for run in runs]
    return Report(
        plan=plan,
        workload="a <b>bold</b> trace",
        runs=runs,
        results=results,
        findings=[],
        version="1.2.3",
        machine="2 CPUs",
        made_at="today",
    )


def test_the_page_is_well_formed_and_needs_nothing_else(report: Report) -> None:
    page = render_report(report)
    balance = TagBalance()
    balance.feed(page)
    assert balance.wrong == []
    assert balance.open == []
    assert not re.search(r"(https?:|src=|@import|url\()", page)
    assert "prefers-color-scheme: dark" in page
    assert page.count("<polyline") == len(report.runs) + 2 * 4


def test_what_belongs_to_mooncake_is_told_with_mooncake_only(report: Report) -> None:
    assert "client_ttl" not in render_report(report)
    one = OffloadResult(
        keeper="offload",
        kill="10 s",
        restart="at once",
        blocks=1000,
        block_bytes=1000 << 15,
        disk_bytes=20 << 20,
        blocks_back=640,
        back_s=2.5,
        read_s=0.25,
        wrong_bytes=0,
    )
    facts = MooncakeKind(MooncakeSettings("python", launcher=True)).facts
    page = render_report(replace(report, scenarios=MOONCAKE_SCENARIOS, facts=facts, offload=[one]))
    balance = TagBalance()
    balance.feed(page)
    assert balance.wrong == balance.open == []
    assert "launcher store service" in page
    assert "client_ttl is 2 s" in page
    for cell in (
        "Mooncake&#x27;s SSD offload",
        "10 s",
        "at once",
        "20 MiB",
        "640 (64.0%)",
        "2.5 s",
    ):
        assert f"<td>{cell}</td>" in page


def test_names_are_escaped(report: Report) -> None:
    page = render_report(report)
    assert "<b>bold</b>" not in page
    assert "&lt;b&gt;bold" in page


def test_findings_are_told_and_the_verdict_turns(report: Report) -> None:
    assert "Every byte right" in render_report(report)
    bad = replace(report, findings=[Finding("nvme", 1, "3 bytes came back wrong", 4)])
    page = render_report(bad)
    assert "3 bytes came back wrong" in page
    assert "Every byte right" not in page


def test_a_long_line_is_thinned_and_stays_inside() -> None:
    x = np.linspace(-5, 20, 10_000)
    chart = line_chart(
        [Line("nvme", x, np.abs(np.sin(x)))],
        width=500,
        height=200,
        outage=(0.0, 1.0),
        description="test",
    )
    points = re.search(r'points="([^"]+)"', chart)
    assert points is not None
    pairs = [tuple(map(float, pair.split(","))) for pair in points[1].split()]
    assert 100 < len(pairs) <= 400
    assert all(0 <= px <= 500 and 0 <= py <= 200 for px, py in pairs)


def test_bars_show_what_is_unknown() -> None:
    chart = bar_chart([("before", 1.5), ("after", None)], width=300, longest=2.0, unit="s")
    assert "1.50 s" in chart
    assert "none" in chart


def test_a_figure_that_no_scenario_has_is_left_out(report: Report) -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(results_table(report.results))
    text = console.export_text()
    assert "restored blocks" in text
    assert "NVMe" not in text, "nobody counted reads here"
    page = render_report(report)
    assert "restored<br>blocks" in page
    assert "blocks from<br>NVMe" not in page

    some = msgspec.structs.replace(report.results[0], nvme_blocks_read=3, nvme_bytes_read=4 << 20)
    results = [some, *report.results[1:]]
    console.print(results_table(results))
    assert "blocks from NVMe" in console.export_text()
    assert "blocks from<br>NVMe" in render_report(replace(report, results=results))
