"""`snapctl drill`: options, the loop over seeds and scenarios, and what is printed."""

from __future__ import annotations

import json
import logging
import os
import platform
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.markup import escape

from snapd import __version__
from snapd.drill.content import BLOCK_BYTES_MIN, WRITERS_MAX
from snapd.drill.measure import Run, ScenarioResult, summarise
from snapd.drill.mooncake_scenarios import MOONCAKE_SCENARIOS
from snapd.drill.mooncake_site import MooncakeSettings, find_wheel
from snapd.drill.offload import OFFLOAD, OffloadResult
from snapd.drill.plan import DrillPlan, make_plan
from snapd.drill.report import Report, render_report
from snapd.drill.scenarios import Progress
from snapd.drill.screen import offload_table, results_table
from snapd.drill.stores import BundledKind, MooncakeKind, StoreKind
from snapd.drill.trace import MultiTurn, Trace, generate_trace, read_trace
from snapd.drill.verdict import Finding, exit_code, judge, judge_offload
from snapd.errors import SettingError, SnapdError

FLUSH_SECONDS = 0.25
SNAPSHOT_SECONDS = 2.0
DEADLINE_SECONDS = 2.0
"""As the store's own default for how long a get waits for a cold block."""
LOAD_SECONDS = 12.0
TRACE_LOAD_SECONDS = 24.0
MOONCAKE_LOAD_SECONDS = 8.0
BLOCK_BYTES_MAX = 4 << 20
"""Every client has a buffer for the longest prompt."""
TABLE_COLUMNS = 120
REPORT_FILE = "snapd-drill.html"


@click.command()
@click.option(
    "--trace",
    "trace_file",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Replay this trace (Mooncake's JSONL) instead of generated multi-turn conversations.",
)
@click.option(
    "--scenario",
    "scenarios",
    type=click.Choice([*MOONCAKE_SCENARIOS, OFFLOAD]),
    multiple=True,
    help="Run this scenario only; may be repeated. The baseline always runs, to compare with. "
    f"master, all and {OFFLOAD} are for Mooncake.",
)
@click.option("--seed", default=1, show_default=True, help="Seed of the (first) run.")
@click.option(
    "--seeds", default=1, show_default=True, type=click.IntRange(1, 1000), help="How many seeds."
)
@click.option("--inject", is_flag=True, help="Flip a byte in shared memory and one in a pack.")
@click.option(
    "--seconds",
    type=click.FloatRange(1, 3600),
    help=f"Replay within about this long [default: {LOAD_SECONDS:g}; trace: "
    f"{TRACE_LOAD_SECONDS:g}; Mooncake: {MOONCAKE_LOAD_SECONDS:g}].",
)
@click.option(
    "--speedup",
    type=click.FloatRange(0, min_open=True),
    help="Replay this many times as fast as recorded, instead of --seconds.",
)
@click.option(
    "--block-bytes",
    type=click.IntRange(BLOCK_BYTES_MIN, BLOCK_BYTES_MAX),
    help="Bytes of a block [default: 32768; trace: 16384].",
)
@click.option(
    "--clients",
    default=3,
    show_default=True,
    type=click.IntRange(1, WRITERS_MAX - 1),
    help="Client processes.",
)
@click.option(
    "--store",
    type=click.Choice(["bundled", "mooncake"]),
    default="bundled",
    show_default=True,
    help="Which store to drill.",
)
@click.option(
    "--mooncake-python",
    type=click.Path(dir_okay=False, exists=True),
    help="Python that has Mooncake's wheel and snapd [default: the one that runs this].",
)
@click.option(
    "--mooncake-store",
    type=click.Choice(["vanilla", "launcher"]),
    default="vanilla",
    show_default=True,
    help="Mooncake's own store service, or `snapd mooncake-store`.",
)
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False, exists=True, writable=True),
    help="Where repositories and logs are made [default: the temporary directory].",
)
@click.option("--keep", is_flag=True, help="Keep repositories and logs.")
@click.option(
    "--report",
    "report_file",
    type=click.Path(path_type=Path, dir_okay=False, writable=True),
    default=Path(REPORT_FILE),
    show_default=True,
    help="Where to write the HTML report.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="One JSON document on stdout, messages on stderr."
)
def drill(
    *,
    trace_file: Path | None,
    scenarios: tuple[str, ...],
    store: str,
    seed: int,
    seeds: int,
    report_file: Path,
    directory: Path | None,
    **options: Any,
) -> int:
    """Prove that the cache survives kills.

    Starts a store, a daemon and clients of their own, replays requests, kills processes in the
    middle of puts and flushes, starts them again, and compares every byte. Exits with 4 if a byte
    was wrong or a durable block was lost, with 1 if the hit rate did not come back.
    """
    _check_report_file(report_file)
    kind = _store_kind(store, options)
    names = _chosen(scenarios, kind)
    plans = [_plan(trace_file, number, store, options) for number in range(seed, seed + seeds)]
    console = Console(stderr=True)
    # That the store goes away is what the drill is about; its client need not say so.
    logging.getLogger("snapd.client").setLevel(logging.ERROR)
    with _stop_on_signals():
        job = _Job(kind, directory, console, keep=options["keep"])
        runs, unfinished = job.run_scenarios(plans, [name for name in names if name != OFFLOAD])
        offload, missing = job.run_offload(plans[0]) if OFFLOAD in names else ([], [])
    baselines = {run.seed: run for run in runs if run.name == "baseline"}
    results = [summarise(run, baselines[run.seed]) for run in runs]
    findings = (
        unfinished + missing + judge(results, injected=options["inject"], polled=kind.is_polled)
    )
    findings += judge_offload(offload, plans[0].seed)
    report = Report(
        plan=plans[0],
        workload=trace_file.name if trace_file else "Generated multi-turn conversations",
        runs=runs,
        results=results,
        findings=findings,
        version=__version__,
        machine=f"{os.cpu_count()} CPUs, {platform.system()} {platform.release()}",
        made_at=time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        scenarios=kind.scenarios,
        facts=kind.facts,
        offload=offload,
    )
    report_file.write_text(render_report(report))
    if options["as_json"]:
        click.echo(json.dumps(_document(report, store), indent=2))
    else:
        _print_tables(results, offload)
    for finding in findings:
        click.echo(f"finding: {finding}", err=True)
    click.echo(f"{report_file} shows the hit rate over time", err=True)
    return exit_code(findings)


def _print_tables(results: Sequence[ScenarioResult], offload: Sequence[OffloadResult]) -> None:
    """On a terminal as wide as that is; elsewhere as wide as the tables."""
    screen = Console()
    if not screen.is_terminal:
        screen = Console(width=TABLE_COLUMNS)
    screen.print(results_table(results))
    if offload:
        screen.print()
        screen.print(offload_table(offload))


def _check_report_file(path: Path) -> None:
    """Raise SettingError now, and not after minutes, when the report cannot be written."""
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise SettingError(f"cannot write {path}: name another file with --report")


def _store_kind(store: str, options: dict[str, Any]) -> StoreKind:
    if store == "bundled":
        return BundledKind()
    python = find_wheel(options["mooncake_python"])
    return MooncakeKind(MooncakeSettings(python, launcher=options["mooncake_store"] == "launcher"))


def _chosen(scenarios: Sequence[str], kind: StoreKind) -> list[str]:
    """What to run, in its order, the baseline first. Raises SettingError for what this store has
    no scenario for."""
    known = [*kind.scenarios, *([OFFLOAD] if kind.offload_cases else [])]
    if unknown := set(scenarios) - set(known):
        raise SettingError(
            f"--scenario {', '.join(sorted(unknown))} is for Mooncake: add --store mooncake"
        )
    return [name for name in known if name in (scenarios or known) or name == "baseline"]


def _plan(trace_file: Path | None, seed: int, store: str, options: dict[str, Any]) -> DrillPlan:
    trace: Trace
    if trace_file is None:
        trace, block_bytes, seconds = generate_trace(MultiTurn(), seed), 32 << 10, LOAD_SECONDS
    else:
        trace, block_bytes, seconds = read_trace(trace_file), 16 << 10, TRACE_LOAD_SECONDS
    if store == "mooncake" and trace_file is None:
        seconds = MOONCAKE_LOAD_SECONDS
    return make_plan(
        trace,
        seed=seed,
        block_bytes=options["block_bytes"] or block_bytes,
        clients=options["clients"],
        load_seconds=options["seconds"] or seconds,
        speed=options["speedup"],
        inject=options["inject"],
        flush_seconds=FLUSH_SECONDS,
        snapshot_seconds=SNAPSHOT_SECONDS,
        deadline_seconds=DEADLINE_SECONDS,
    )


@dataclass
class _Job:
    """Runs everything, each in a place of its own, and says how far it is."""

    kind: StoreKind
    directory: Path | None
    console: Console
    keep: bool

    def run_scenarios(
        self, plans: Sequence[DrillPlan], names: Sequence[str]
    ) -> tuple[list[Run], list[Finding]]:
        """Every scenario of every plan; one that fails is a finding and does not end the others.

        Raises SnapdError when not even the first baseline runs.
        """
        runs: list[Run] = []
        findings: list[Finding] = []
        total = len(plans) * len(names)
        for plan in plans:
            for name in names:
                label = f"[{len(runs) + len(findings) + 1}/{total}] seed {plan.seed} {name}"
                with self._place(name, label) as (place, progress):
                    try:
                        runs.append(self.kind.run(name, plan, place, progress, keep=self.keep))
                    except SnapdError as error:
                        if not runs:
                            raise
                        findings.append(Finding(name, plan.seed, f"failed: {error}", 1))
                        if name == "baseline":
                            break
                self._say(f"{label}: {self.kind.scenarios[name]}")
        return runs, findings

    def run_offload(self, plan: DrillPlan) -> tuple[list[OffloadResult], list[Finding]]:
        """Mooncake's own SSD offload on the same blocks; a kill that fails is a finding."""
        results: list[OffloadResult] = []
        findings: list[Finding] = []
        for number, case in enumerate(self.kind.offload_cases, start=1):
            label = f"[{OFFLOAD} {number}/{len(self.kind.offload_cases)}] {case}"
            with self._place(OFFLOAD, label) as (place, progress):
                run = self.kind.run_offload
                try:
                    results.append(run(case, plan, place, progress, keep=self.keep))
                except SnapdError as error:
                    findings.append(Finding(OFFLOAD, plan.seed, f"{case} failed: {error}", 1))
            self._say(label)
        return results, findings

    @contextmanager
    def _place(self, name: str, label: str) -> Iterator[tuple[Path, Progress]]:
        """A directory for one site, and how to say what it does."""
        prefix = f"snapd-drill-{os.getpid()}-{name}-"
        place = Path(tempfile.mkdtemp(prefix=prefix, dir=self.directory))
        if self.keep:
            self._say(f"{label}: kept in {place}")
        with self.console.status(escape(label)) as status:
            yield place, lambda text: status.update(escape(f"{label}: {text}"))

    def _say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def _stop_on_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the stack, so that every process and file is cleaned up."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _document(report: Report, store: str) -> dict[str, Any]:
    """The JSON document."""
    plan = report.plan
    return {
        "passed": not report.findings,
        "findings": [str(finding) for finding in report.findings],
        "settings": {
            "store": store,
            "block_bytes": plan.block_bytes,
            "blocks": plan.trace.block_count,
            "clients": plan.clients,
            "speedup": plan.speed,
            "window_requests": plan.window_requests,
            "deadline_s": plan.deadline_seconds,
            "flush_s": plan.flush_seconds,
            "snapshot_s": plan.snapshot_seconds,
            "segment_bytes": plan.site_settings.segment_bytes,
            "inject": plan.inject,
            **report.facts,
        },
        "scenarios": msgspec.to_builtins(list(report.results)),
        **({"offload": msgspec.to_builtins(list(report.offload))} if report.offload else {}),
    }
