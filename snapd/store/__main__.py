"""`python -m snapd.store`: the store from environment settings, for the daemon and for tests."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

from snapd.config import configure_logging, load_settings
from snapd.errors import SnapdError
from snapd.store.main import run_store


def main() -> int:
    """Run; errors go to stderr as they stand, and with `--last-words FILE` to that file as well,
    for whoever started the store. Another argument names the event log."""
    words = sys.argv[1:]
    last_words = Path(words[1]) if words[:1] == ["--last-words"] else None
    event_log = Path(words[0]) if words and last_words is None else None
    try:
        settings = load_settings(None, os.environ)
        configure_logging(settings)
        return run_store(settings, event_log)
    except SnapdError as error:
        sys.stderr.write(f"{error}\n")
        if last_words is not None:
            with contextlib.suppress(OSError):  # what it was about is on stderr
                last_words.write_text(f"{error}\n", encoding="utf-8")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
