"""The command `snapd`: the daemon, and the bundled store."""

from __future__ import annotations

import click

from snapd import __version__
from snapd.cli.execute import run_main
from snapd.cli.group import CONTEXT_SETTINGS, LazyGroup

COMMANDS = {
    "run": ("snapd.cli.run", "run", "Run the daemon in the foreground."),
    "store": ("snapd.cli.store", "store", "Run the bundled store in the foreground."),
    "mooncake-store": (
        "snapd.cli.mooncake_store",
        "mooncake_store",
        "Run Mooncake's store service, with a fast way in for the daemon.",
    ),
}


@click.group(cls=LazyGroup, members=COMMANDS, context_settings=CONTEXT_SETTINGS)
@click.version_option(__version__, message="%(prog)s %(version)s")
def snapd() -> None:
    """Keep a KV cache over restarts: write it to NVMe, put it back."""


def main() -> None:
    """Entry point."""
    run_main(snapd)
