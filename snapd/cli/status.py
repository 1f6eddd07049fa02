"""`snapctl status`: what the daemon is doing, or what the repository knows while it is stopped."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import click

from snapd.cli.control import ControlClient
from snapd.cli.execute import EXIT_CODES
from snapd.cli.options import (
    DAEMON_SETTINGS,
    REPOSITORY_SETTINGS,
    json_option,
    settings_options,
)
from snapd.cli.output import bytes_text, note, time_text, write_json, write_line
from snapd.cli.repository import open_repository
from snapd.config import Settings
from snapd.errors import NothingThereError

STOPPED = 3
"""Exit code for a daemon that is not running, see `EXIT_CODES`."""


@click.command()
@settings_options(*DAEMON_SETTINGS, *REPOSITORY_SETTINGS)
@click.option("--watch", is_flag=True, help="Show it again every two seconds, until Ctrl-C.")
@json_option
def status(settings: Settings, watch: bool, as_json: bool) -> int:
    """Show what the daemon is doing.

    While it is stopped, show what the repository knows, and exit with 3.
    """
    if watch and as_json:
        raise click.UsageError("--watch is for people: use --json without it")
    while watch:
        document, _ = _status(settings)
        click.clear()
        _write(document)
        time.sleep(2.0)
    document, exit_code = _status(settings)
    if as_json:
        write_json(document)
    else:
        _write(document)
    return exit_code


def _status(settings: Settings) -> tuple[Mapping[str, Any], int]:
    """The document and the exit code."""
    try:
        return {"daemon": "running", **ControlClient(settings.runtime_dir).status()}, 0
    except NothingThereError as error:
        note(f"{EXIT_CODES[STOPPED].partition(':')[0]}: {error}")
    with open_repository(settings) as repository:
        recovery = repository.recover()
    document = {"path": settings.persistent_path, **asdict(recovery)}
    return {"daemon": "stopped", "repository": document}, STOPPED


def _write(document: Mapping[str, Any]) -> None:
    """One line a value, its path in front."""
    lines = dict(_flatten("", document))
    width = max(map(len, lines))
    for name, text in lines.items():
        write_line(f"{name.ljust(width)}  {text}")


def _flatten(prefix: str, value: object) -> Iterator[tuple[str, str]]:
    """(path, text) of every value below `value`."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flatten(f"{prefix}.{key}" if prefix else str(key), inner)
    else:
        yield prefix, _text(prefix.rpartition(".")[2], value)


def _text(name: str, value: object) -> str:
    """A value for people; what it counts is in its name, as everywhere."""
    if value is None or value in ("", [], ()):
        return "-"
    if isinstance(value, list):
        return "; ".join(_text("", one) for one in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(key, inner)}" for key, inner in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float) and name.endswith("_at"):
        return time_text(value) if value else "-"
    if isinstance(value, int) and "bytes" in name.split("_"):
        return bytes_text(value)
    return f"{value:.3f}" if isinstance(value, float) else str(value)
