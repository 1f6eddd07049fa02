"""Options that commands share: settings as flags, and `--json`."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from snapd.config import Settings, load_settings
from snapd.config.document import describe

R = TypeVar("R")

ALL_SETTINGS = tuple(field.name for field in msgspec.structs.fields(Settings))
"""Every setting, in the order of the schema."""

REPOSITORY_SETTINGS = ("persistent_path",)
DAEMON_SETTINGS = ("runtime_dir",)

json_option = click.option(
    "--json", "as_json", is_flag=True, help="One JSON document on stdout, messages on stderr."
)


def settings_options(*names: str) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Give a command `--config` and a flag for each named setting, and `Settings` to its function.

    The function gets the settings as its first argument, all else by name.

    Values are text here: `load_settings` checks them as it checks the environment's, so that a bad
    value fails in the same words wherever it came from.
    """

    def decorate(function: Callable[..., R]) -> Callable[..., R]:
        @functools.wraps(function)
        def wrapper(config: Path | None, **values: Any) -> R:
            flags = {name: values.pop(name) for name in names}
            return function(load_settings(config, os.environ, flags), **values)

        command: Callable[..., R] = wrapper
        for name in reversed(names):
            flag = "--" + name.replace("_", "-")
            command = click.option(flag, name, metavar="VALUE", help=describe(name))(command)
        return click.option(
            "--config",
            type=click.Path(path_type=Path, dir_okay=False),
            help="Settings file (TOML) instead of /etc/mooncake-snapd/snapd.toml.",
        )(command)

    return decorate
