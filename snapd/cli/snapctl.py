"""The command `snapctl`: the operator's view of a daemon and its repository."""

from __future__ import annotations

import click

from snapd import __version__
from snapd.cli.execute import run_main
from snapd.cli.group import CONTEXT_SETTINGS, LazyGroup

COMMANDS = {
    "status": ("snapd.cli.status", "status", "Show what the daemon is doing."),
    "snapshot": ("snapd.cli.snapshot", "snapshot", "Take a snapshot now."),
    "list": ("snapd.cli.list", "list_generations", "List the snapshots in the repository."),
    "show": ("snapd.cli.show", "show", "Show one snapshot."),
    "verify": ("snapd.cli.verify", "verify", "Read snapshots and check every byte."),
    "backup": (
        "snapd.cli.backup",
        "backup",
        "Write a backup somewhere else, while the daemon runs.",
    ),
    "restore": ("snapd.cli.restore", "restore", "Bring a backup back, all of it or nothing."),
    "prune": ("snapd.cli.prune", "prune", "Delete what retention does not need."),
    "purge": ("snapd.cli.purge", "purge", "Remove blocks from store and disk for good."),
    "rebuild": ("snapd.cli.rebuild", "rebuild", "Make a new snapshot from the packs alone."),
    "doctor": ("snapd.cli.doctor", "doctor", "Find out whether this host suits."),
    "drill": ("snapd.cli.drill", "drill", "Prove that the cache survives kills."),
}


@click.group(cls=LazyGroup, members=COMMANDS, context_settings=CONTEXT_SETTINGS)
@click.version_option(__version__, message="%(prog)s %(version)s")
def snapctl() -> None:
    """Look after a repository of KV cache snapshots and the daemon that writes it."""


def main() -> None:
    """Entry point."""
    run_main(snapctl)
