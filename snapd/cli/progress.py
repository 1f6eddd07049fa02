"""Progress of long work on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from snapd.cli.output import bytes_text, note

Report = Callable[[int, int], None]
"""report(done_bytes, total_bytes)."""

PLAIN_SECONDS = 5.0
"""Seconds between two lines where there is no terminal, so that a log is not flooded."""


@contextmanager
def progress(label: str) -> Iterator[Report]:
    """A context in which the report that it gives shows how far the work has come."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _plain(label)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True))
    with Progress(*columns, TransferSpeedColumn(), console=console, transient=True) as bar:
        task = bar.add_task(label, total=None)

        def report(done_bytes: int, total_bytes: int) -> None:
            bar.update(task, completed=done_bytes, total=total_bytes)

        yield report


def _plain(label: str) -> Report:
    due = time.monotonic() + PLAIN_SECONDS

    def report(done_bytes: int, total_bytes: int) -> None:
        nonlocal due
        if time.monotonic() >= due:
            due = time.monotonic() + PLAIN_SECONDS
            note(f"{label}: {bytes_text(done_bytes)} of {bytes_text(total_bytes)}")

    return report
