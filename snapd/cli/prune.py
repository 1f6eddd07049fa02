"""`snapctl prune`: delete what retention does not need."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from snapd.cli.options import (
    DAEMON_SETTINGS,
    REPOSITORY_SETTINGS,
    json_option,
    settings_options,
)
from snapd.cli.output import bytes_text, write_json, write_line
from snapd.cli.repository import open_repository
from snapd.cli.upkeep import blocked_code, by_daemon_or_here, timeout_option
from snapd.config import Settings


@click.command()
@settings_options(*REPOSITORY_SETTINGS, *DAEMON_SETTINGS)
@click.option(
    "--retain",
    type=click.IntRange(min=1),
    metavar="N",
    help="Keep the newest N snapshots, if that is fewer than the setting `retain`.",
)
@click.option(
    "--move-unreadable",
    is_flag=True,
    help="First move damaged files aside, into aside-<n>. They are not deleted.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@timeout_option
@json_option
def prune(
    settings: Settings,
    *,
    retain: int | None,
    move_unreadable: bool,
    dry_run: bool,
    timeout_seconds: float,
    as_json: bool,
) -> int:
    """Delete what retention does not need.

    Snapshots beyond the newest, and packs that only those needed. A running daemon does it after
    every snapshot of its own. Exits with 5 if something holds it up, such as a file that cannot be
    read or a `verify` that is running.
    """
    flags = {"move_unreadable": move_unreadable, "dry_run": dry_run}
    query = {name: "1" for name, wanted in flags.items() if wanted}
    if retain is not None:
        query["retain"] = str(retain)

    def here() -> dict[str, Any]:
        with open_repository(settings) as repository:
            if dry_run:
                repository.recover()
                return asdict(
                    repository.prune(retain, move_unreadable=move_unreadable, dry_run=True)
                )
        with open_repository(settings, read_only=False) as repository:
            repository.recover()
            return asdict(repository.prune(retain, move_unreadable=move_unreadable))

    done = by_daemon_or_here(settings, timeout_seconds, "/prune", query, here)
    if as_json:
        write_json(done | {"dry_run": dry_run})
    else:
        _write(done, dry_run=dry_run)
    return blocked_code(str(done["blocked"]))


def _write(done: dict[str, Any], *, dry_run: bool) -> None:
    what = "would delete" if dry_run else "deleted"
    write_line(
        f"{what} {done['manifests']} snapshots and {done['packs']} packs, "
        f"{bytes_text(done['bytes'])}"
    )
    for name in done["moved_aside"]:
        write_line(f"would move aside: {name}" if dry_run else f"moved aside: {name}")
