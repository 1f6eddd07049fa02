"""`python -m snapd.store`: the store from environment settings, for tests and debugging."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from snapd.config import configure_logging, load_settings
from snapd.errors import SnapdError
from snapd.store.main import run_store


def main() -> int:
    """Run; errors go to stderr as they stand. An argument names the event log."""
    try:
        settings = load_settings(None, os.environ)
        configure_logging(settings)
        return run_store(settings, Path(sys.argv[1]) if len(sys.argv) > 1 else None)
    except SnapdError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
