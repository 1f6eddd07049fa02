"""`snapctl rebuild`: a new snapshot from the packs alone."""

from __future__ import annotations

from dataclasses import asdict

import click

from snapd.cli.options import REPOSITORY_SETTINGS, json_option, settings_options
from snapd.cli.output import bytes_text, note, write_json, write_line
from snapd.cli.repository import open_repository
from snapd.config import Settings
from snapd.errors import IntegrityError, NothingThereError
from snapd.repository import Recovery


@click.command()
@settings_options(*REPOSITORY_SETTINGS)
@json_option
def rebuild(settings: Settings, as_json: bool) -> int:
    """Make a new snapshot from the packs alone.

    For a repository whose manifests are damaged, while the daemon is stopped. The newest version
    of each key that was not removed is taken. Nothing is deleted; damaged manifests are moved
    aside. Exits with 4 if packs could not be read.
    """
    with open_repository(settings):
        pass  # to find that there is none, before opening it for writing would make one
    with open_repository(settings, read_only=False) as repository:
        recovery = repository.rebuild()
        if not recovery.packs:
            raise NothingThereError(f"there is no readable pack in {settings.persistent_path}")
        summary = repository.commit(prune=False)
    if as_json:
        write_json(asdict(recovery) | {"generation": summary.generation})
    else:
        write_line(
            f"generation {summary.generation}: {summary.blocks} blocks, "
            f"{bytes_text(summary.bytes)}, from {recovery.packs} packs"
        )
    findings = _findings(recovery)
    for finding in findings:
        note(f"found: {finding}")
    for name in recovery.moved_aside:
        note(f"moved aside: {name}")
    return IntegrityError.exit_code if findings else 0


def _findings(recovery: Recovery) -> list[str]:
    """What the new snapshot has to do without. Damaged manifests are not among it: they are why
    an operator rebuilds."""
    return [*recovery.unreadable_packs, *recovery.journal_findings]
