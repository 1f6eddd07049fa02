"""`python -m snapd.daemon`: the daemon without the command line's options."""

from __future__ import annotations

import os
import sys
from functools import partial

from snapd.config import configure_logging, load_settings
from snapd.daemon.main import run_daemon
from snapd.errors import SnapdError


def main() -> int:
    """Settings from the default file and the environment; `--with-store` is the only flag."""
    unknown = [argument for argument in sys.argv[1:] if argument != "--with-store"]
    if unknown:
        sys.stderr.write(f"unknown argument {unknown[0]}; use `snapd run --help` for options\n")
        return 2
    try:
        settings = load_settings(None, os.environ)
        configure_logging(settings)
        load = partial(load_settings, None, os.environ)
        return run_daemon(settings, "--with-store" in sys.argv[1:], load)
    except SnapdError as error:
        sys.stderr.write(f"snapd: {error}\n")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
