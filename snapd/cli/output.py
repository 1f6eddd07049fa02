"""What commands print: one JSON document for scripts, or text for people."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass
from datetime import UTC, datetime
from typing import Any

import click

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def write_json(document: object) -> None:
    """Write the one JSON document of a `--json` command to stdout."""
    click.echo(json.dumps(document, indent=2, default=_plain))


def write_line(text: str) -> None:
    """Write one line for people to stdout."""
    click.echo(text)


def note(text: str) -> None:
    """Write one line to stderr, where it does not disturb a JSON document."""
    click.echo(text, err=True)


def write_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write a table with blanks between its columns; numbers are for the caller to format.

    Columns that hold only numbers are set to the right. Nothing is cut off or wrapped, so that the
    output can be searched.
    """
    columns = list(zip(headings, *rows, strict=True))
    widths = [max(len(cell) for cell in column) for column in columns]
    rights = [all(cell[:1].isdigit() for cell in column[1:]) for column in columns]
    for row in (headings, *rows):
        cells = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, rights, strict=True)
        )
        click.echo("  ".join(cells).rstrip())


def bytes_text(count: int) -> str:
    """Bytes for people, in powers of 1024: `0 B`, `512 KiB`, `1.5 GiB`."""
    value, unit = float(count), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.0f} {_UNITS[unit]}" if value == int(value) else f"{value:.1f} {_UNITS[unit]}"


def time_text(seconds: float) -> str:
    """Seconds since 1970 for people, in UTC to the second."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _plain(value: object) -> Any:
    """What `json` does not know: dataclasses, NumPy scalars and arrays, bytes (as hex)."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, bytes):
        return value.hex()
    tolist = getattr(value, "tolist", None)
    if callable(tolist):
        return tolist()
    raise TypeError(f"{type(value).__name__} has no JSON form")
