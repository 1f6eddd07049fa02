"""`snapd store`: the bundled store."""

from __future__ import annotations

from pathlib import Path

import click

from snapd.cli.options import ALL_SETTINGS, settings_options
from snapd.config import Settings, configure_logging
from snapd.store.main import run_store


@click.command()
@settings_options(*ALL_SETTINGS)
@click.option(
    "--event-log",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Append each eviction and removal to this file, for audits such as the drill's.",
)
def store(settings: Settings, event_log: Path | None) -> int:
    """Run the bundled store in the foreground.

    It holds blocks in shared memory. After a kill it takes over the blocks that are still there.
    """
    configure_logging(settings)
    return run_store(settings, event_log)
