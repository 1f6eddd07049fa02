"""`snapd run`: the daemon."""

from __future__ import annotations

import os
from functools import partial

import click

from snapd.cli.options import ALL_SETTINGS, settings_options
from snapd.config import Settings, configure_logging, load_settings
from snapd.daemon.main import run_daemon


@click.command()
@settings_options(*ALL_SETTINGS)
@click.option(
    "--with-store",
    is_flag=True,
    help="Also start the bundled store, or adopt the one that survived.",
)
def run(settings: Settings, with_store: bool) -> int:
    """Run the daemon in the foreground.

    It attaches to the store, puts back what the store lost, writes new blocks to the repository
    and takes snapshots, until SIGTERM, on which it writes what is left and ends. On SIGHUP it reads
    its settings again; docs/systemd.md says which take effect at once.
    """
    configure_logging(settings)
    given = click.get_current_context().params
    flags = {name: given[name] for name in ALL_SETTINGS}
    load = partial(load_settings, given["config"], os.environ, flags)
    return run_daemon(settings, with_store, load)
