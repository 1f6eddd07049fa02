"""`execute`: runs a command line; the only place that turns errors into exit codes.

| code | meaning |
|---|---|
| 0 | done |
| 1 | failed |
| 2 | usage: a wrong argument or setting |
| 3 | nothing to do it on: no snapshot, no daemon, no store |
| 4 | integrity findings |
| 5 | refused: a lock is held, a target is not empty, a format is newer |

Each `SnapdError` carries its code. An interrupt (Ctrl-C) ends the process by that signal, as shells
expect. Anything else is a defect and keeps its traceback.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from snapd.cli.output import write_json
from snapd.errors import SnapdError

EXIT_CODES = {
    0: "done",
    1: "failed",
    2: "usage: a wrong argument or setting",
    3: "nothing to do it on: no snapshot, no daemon, no store",
    4: "integrity findings",
    5: "refused: a lock is held, a target is not empty, a format is newer",
}
"""What the exit codes mean; `docs/cli.md` is generated from here."""


def run_main(command: click.Command) -> None:
    """Run `command` on this process's arguments and exit."""
    sys.exit(execute(command, Path(sys.argv[0]).name, sys.argv[1:]))


def execute(command: click.Command, program: str, arguments: Sequence[str]) -> int:
    """Run a command line and return its exit code.

    Messages go to stderr. With `--json` an error is also the one JSON document on stdout.
    """
    # Asked of the words themselves: a usage error leaves no parsed options to ask.
    as_json = "--json" in arguments
    try:
        result = command.main(list(arguments), program, standalone_mode=False)
        sys.stdout.flush()
    except click.Abort:
        _die_of_interrupt()
        return 1
    except click.ClickException as error:
        error.show()
        return _failed(error.format_message(), error.exit_code, as_json)
    except SnapdError as error:
        click.echo(f"{program}: {error}", err=True)
        return _failed(str(error), error.exit_code, as_json)
    except BrokenPipeError:
        # The reader went away (`snapctl list | head`). What is left unwritten goes nowhere, so that
        # the interpreter's own flush at exit does not fail once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return result if isinstance(result, int) else 0


def _failed(message: str, exit_code: int, as_json: bool) -> int:
    if as_json:
        write_json({"error": message, "exit_code": exit_code})
    return exit_code


def _die_of_interrupt() -> None:
    """End by SIGINT, so that a shell's loop around this command ends too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGINT)
