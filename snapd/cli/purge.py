"""`snapctl purge`: remove blocks from store and disk for good."""

from __future__ import annotations

import os
import sys
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
from snapd.errors import RefusedError
from snapd.repository import Purge


@click.command()
@settings_options(*REPOSITORY_SETTINGS, *DAEMON_SETTINGS, "segment_path")
@click.option(
    "--prefix",
    metavar="P",
    default="",
    help="Only keys that begin with P. Without it, everything.",
)
@click.option("--yes", is_flag=True, help="Do not ask first.")
@timeout_option
@json_option
def purge(
    settings: Settings, *, prefix: str, yes: bool, timeout_seconds: float, as_json: bool
) -> int:
    """Remove blocks from store and disk for good.

    Blocks disclose prompts. The keys are removed, durably, and every file that holds their bytes is
    deleted: packs (what else is in them is copied first), the snapshots that name those, copies in
    the quarantine and files that were moved aside. Names of keys may stay in records that say that
    they are gone, and the store's memory holds the bytes until it is used again or ends.

    Exits with 5 if files could not be deleted yet, such as while a `verify` reads them: the keys
    are removed then, and another purge deletes the rest. While the daemon is stopped it is refused
    as long as the store's memory holds blocks, because those would be written again.
    """
    what = f"every block whose key begins with {prefix!r}" if prefix else "EVERY block"
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError(f"this deletes {what}: say --yes")
        if not click.confirm(f"Delete {what}?", err=True):
            raise RefusedError("nothing was purged")
    query = {"prefix": prefix} if prefix else {"everything": "1"}
    done = by_daemon_or_here(
        settings, timeout_seconds, "/purge", query, lambda: _purge_here(settings, prefix)
    )
    if as_json:
        write_json(done)
    else:
        _write(done)
    return blocked_code(str(done["blocked"]))


def _purge_here(settings: Settings, prefix: str) -> dict[str, Any]:
    """Purge the repository alone, as no daemon runs."""
    if os.path.lexists(settings.segment_path):
        raise RefusedError(
            f"the store's memory {settings.segment_path} is still there, and what it holds would "
            "be written again: start the daemon and purge through it, or stop the store and delete "
            "that file"
        )
    with open_repository(settings):
        pass  # to find that there is none, before opening it for writing would make one
    with open_repository(settings, read_only=False) as repository:
        repository.recover()
        purge = Purge(repository, prefix.encode(), repository.compact)
        if prefix:
            purge.remove(repository.catalog.rows_end)
        else:
            repository.journal(epoch=repository.epoch + 1)
        return asdict(purge.erase())


def _write(done: dict[str, Any]) -> None:
    write_line(
        f"purged {done['keys']} keys, {bytes_text(done['bytes'])}: deleted {done['packs_deleted']} "
        f"packs, {done['packs_rewritten']} of them rewritten, and "
        f"{done['generations_deleted']} snapshots"
    )
    copies = done["quarantine_files"] + done["aside_files"]
    if copies:
        write_line(f"deleted {copies} copies in the quarantine and among files moved aside")
