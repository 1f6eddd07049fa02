"""`snapctl snapshot`: commit a snapshot now."""

from __future__ import annotations

import click

from snapd.cli.control import ControlClient
from snapd.cli.options import DAEMON_SETTINGS, json_option, settings_options
from snapd.cli.output import bytes_text, write_json, write_line
from snapd.config import Settings


@click.command()
@settings_options(*DAEMON_SETTINGS)
@click.option(
    "--timeout",
    "timeout_seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=600.0,
    show_default=True,
    help="Seconds to wait for the daemon.",
)
@json_option
def snapshot(settings: Settings, timeout_seconds: float, as_json: bool) -> None:
    """Take a snapshot now.

    The daemon writes what is not on disk yet and commits a new generation over everything.
    """
    answer = ControlClient(settings.runtime_dir, timeout_seconds).snapshot()
    if as_json:
        write_json(answer)
        return
    write_line(
        f"generation {answer['generation']}: {answer['blocks']} blocks, "
        f"{bytes_text(answer['bytes_written'])} written in {answer['duration_seconds']:.2f} s"
    )
