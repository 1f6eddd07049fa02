"""`snapctl doctor`: whether this host suits, and what to do where it does not."""

from __future__ import annotations

from collections import Counter

import click

from snapd.cli.options import ALL_SETTINGS, json_option, settings_options
from snapd.cli.output import write_json, write_line
from snapd.cli.repository import open_repository
from snapd.config import Settings
from snapd.doctor import Finding, Level, examine, probe
from snapd.errors import SnapdError

_MARKS = {Level.OK: "ok", Level.WARNING: "WARNING", Level.ERROR: "ERROR"}


@click.command()
@settings_options(*ALL_SETTINGS)
@click.option("--no-speed", is_flag=True, help="Do not measure how fast the disk is.")
@json_option
def doctor(settings: Settings, no_speed: bool, as_json: bool) -> int:
    """Find out whether this host suits.

    Looks at what snapd depends on: disk, shared memory, permissions, clock, Mooncake.

    Run it as the daemon's user and with its settings. It writes and reads at most 512 MiB in a file
    without a name, to see how fast the disk is. It fails if anything has to be changed.
    """
    facts = probe(
        settings, newest_snapshot_at=_newest_snapshot_at(settings), measure_speed=not no_speed
    )
    findings = examine(facts)
    counts = Counter(finding.level for finding in findings)
    if as_json:
        write_json({"findings": [_plain(finding) for finding in findings]})
    else:
        for finding in findings:
            _write(finding)
        write_line(
            f"{counts[Level.ERROR]} errors, {counts[Level.WARNING]} warnings, "
            f"{counts[Level.OK]} good"
        )
    return 1 if counts[Level.ERROR] else 0


def _newest_snapshot_at(settings: Settings) -> float:
    try:
        with open_repository(settings) as repository:
            return repository.recover().committed_at
    except SnapdError:
        return 0.0  # what is wrong with it is for `verify` to say


def _plain(finding: Finding) -> dict[str, str]:
    return {
        "name": finding.name,
        "level": finding.level.value,
        "said": finding.said,
        "advice": finding.advice,
    }


def _write(finding: Finding) -> None:
    write_line(f"{_MARKS[finding.level]:8} {finding.name}: {finding.said}")
    if finding.advice:
        write_line(f"{'':8} -> {finding.advice}")
