"""What `prune` and `purge` share: through the daemon where one runs, else on the repository."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlencode

import click

from snapd.cli.control import ControlClient
from snapd.cli.output import note
from snapd.config import Settings
from snapd.errors import NothingThereError, RefusedError

timeout_option = click.option(
    "--timeout",
    "timeout_seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=600.0,
    show_default=True,
    help="Seconds to wait for the daemon.",
)


def by_daemon_or_here(
    settings: Settings,
    timeout_seconds: float,
    target: str,
    query: Mapping[str, str],
    here: Callable[[], dict[str, Any]],
) -> dict[str, Any]:
    """Have the daemon do it; where none answers, do it `here`.

    A daemon that dies in between cannot be taken for one that is not there: then the request fails.
    Raises what either raises.
    """
    try:
        client = ControlClient(settings.runtime_dir, timeout_seconds)
        return client.request("POST", f"{target}?{urlencode(query)}")
    except NothingThereError:
        return here()


def blocked_code(blocked: str) -> int:
    """The exit code of a result that says why it is not complete; says it on stderr."""
    if not blocked:
        return 0
    note(f"not everything was deleted: {blocked}")
    return RefusedError.exit_code
