"""The table that people see: a column for each scenario, so that it fits on a narrow screen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

from rich.table import Table

from snapd.drill.measure import Phases, ScenarioResult
from snapd.drill.offload import OFFLOAD_HEADINGS, OffloadResult, offload_cells

Cell = Callable[[Sequence[ScenarioResult]], str]
UNKNOWN = "-"
"""A cell without a figure. A row of nothing else is left out."""


def results_table(results: Sequence[ScenarioResult]) -> Table:
    """Figures by scenario; over several seeds medians, and sums of what must be 0."""
    names = list(dict.fromkeys(result.name for result in results))
    seeds = len({result.seed for result in results})
    title = "medians over the seeds" if seeds > 1 else None
    table = Table(title=title, title_justify="left", pad_edge=False, show_edge=False)
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right")
    for label, cell in _ROWS:
        cells = [cell([result for result in results if result.name == name]) for name in names]
        if set(cells) != {UNKNOWN}:  # the bundled store, say, counts no reads of NVMe
            table.add_row(label, *cells)
    return table


def offload_table(results: Sequence[OffloadResult]) -> Table:
    """Mooncake's own SSD offload beside snapd: a row for each kill."""
    title = "The same blocks, the node lost: Mooncake's SSD offload and snapd"
    table = Table(title=title, title_justify="left", pad_edge=False, show_edge=False)
    for heading in OFFLOAD_HEADINGS:
        table.add_column(heading, justify="left" if heading == "kept by" else "right")
    for result in results:
        table.add_row(*offload_cells(result))
    return table


def _mebibytes(size: int | None) -> float | None:
    return None if size is None else size / 2**20


def _middle(figure: Callable[[ScenarioResult], float | None], form: str) -> Cell:
    """The median of what is known, as `form` formats it."""

    def cell(results: Sequence[ScenarioResult]) -> str:
        known = [value for result in results if (value := figure(result)) is not None]
        return form.format(median(known)) if known else UNKNOWN

    return cell


def _phases(figure: Callable[[ScenarioResult], Phases], phase: str) -> Cell:
    return _middle(lambda result: getattr(figure(result), phase), "{:.2f} s")


def _sum(figure: Callable[[ScenarioResult], int]) -> Cell:
    def cell(results: Sequence[ScenarioResult]) -> str:
        total = sum(figure(result) for result in results)
        return f"[red]{total:,}[/red]" if total else "[green]0[/green]"

    return cell


_ROWS: tuple[tuple[str, Cell], ...] = (
    ("hit rate", _middle(lambda r: r.hit_rate, "{:.1%}")),
    ("  before the kill", _middle(lambda r: r.hit_rate_before, "{:.1%}")),
    ("  without restart", _middle(lambda r: r.hit_rate_baseline, "{:.1%}")),
    ("  less undurable", _middle(lambda r: r.hit_rate_durable, "{:.1%}")),
    ("not durable at the kill", _middle(lambda r: r.undurable_at_kill, "{:.2%}")),
    ("ready after", _middle(lambda r: r.ready_s, "{:.2f} s")),
    ("first hit after", _middle(lambda r: r.first_hit_s, "{:.2f} s")),
    ("hit rate back after", _middle(lambda r: r.recovery_s, "{:.2f} s")),
    ("fetch p50", _middle(lambda r: r.fetch_p50_s * 1e3, "{:.1f} ms")),
    ("fetch p99", _middle(lambda r: r.fetch_p99_s * 1e3, "{:.1f} ms")),
    ("P99 TTFT before", _phases(lambda r: r.ttft_p99_s, "before")),
    ("P99 TTFT during", _phases(lambda r: r.ttft_p99_s, "during")),
    ("P99 TTFT after", _phases(lambda r: r.ttft_p99_s, "after")),
    ("throughput", _middle(lambda r: r.throughput_ratio, "{:.2f}x")),
    ("blocks from NVMe", _middle(lambda r: r.nvme_blocks_read, "{:,.0f}")),
    ("read from NVMe", _middle(lambda r: _mebibytes(r.nvme_bytes_read), "{:,.1f} MiB")),
    ("restored blocks", _middle(lambda r: r.restored_blocks, "{:,.0f}")),
    ("rejected blocks", _middle(lambda r: r.rejected_blocks, "{:,.0f}")),
    ("wrong bytes", _sum(lambda r: r.wrong_bytes)),
    ("lost durable blocks", _sum(lambda r: r.lost_committed_blocks)),
)
