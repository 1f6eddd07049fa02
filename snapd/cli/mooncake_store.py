"""`snapd mooncake-store`: Mooncake's store service with a putter inside."""

from __future__ import annotations

import os

import click

from snapd.config import load_settings
from snapd.putter.launcher import run_store_service


@click.command(
    "mooncake-store",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def mooncake_store(arguments: tuple[str, ...]) -> int:
    """Run Mooncake's store service, with a fast way in for the daemon.

    ARGUMENTS are those of `python -m mooncake.mooncake_store_service`, and so is the environment.
    The daemon puts blocks back through a socket in runtime_dir (SNAPD_RUNTIME_DIR).
    """
    return run_store_service(load_settings(None, os.environ, {"store": "mooncake"}), arguments)
