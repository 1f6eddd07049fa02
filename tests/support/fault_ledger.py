"""The ledger of tried faults: what `docs/reliability.md` counts.

A test that injects faults notes every one as a case of a class. A case is named by what was done to
what ("sync of a pack's file: power cut before"), so that trying it twice counts once; a seed
belongs into the name only where another seed is another fault. A case that raises is a violation.

    with case(FaultClass.POWER_CUT, f"{step}/{operation.kind}/{side}/{number}"):
        ...

Where `SNAPD_FAULT_LEDGER` names a directory, each process appends to a file of its own there, and
`tools/reliability.py` makes the table of them; without it nothing is written.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path

VARIABLE = "SNAPD_FAULT_LEDGER"


class FaultClass(StrEnum):
    """Rows of the table, in its order."""

    POWER_CUT = "power cut before or after a disk operation"
    POWER_CUT_TWICE = "a second power cut, during the recovery from the first"
    DISK_REFUSES = "a disk operation that fails, is cut short, or hangs"
    DISK_LIES = "bytes that change on the medium: flipped, misdirected, lost after a sync"
    HOSTILE_FILE = "a file that somebody made or changed"
    FUZZED_INPUT = "a decoder fed by a coverage-guided fuzzer"
    OTHER_VERSION = "a repository of another format version"
    KILL = "SIGKILL of a real process under load"
    STOP = "SIGSTOP of a real process past every deadline, then SIGCONT"
    FULL = "a really full disk or shared memory, or a file system that turns read-only"
    CLOCK = "a wall clock that jumps by days"
    NEIGHBOUR = "a hostile or broken client"
    SOAK = "an event of the soak"


@contextmanager
def case(fault: FaultClass, name: str) -> Iterator[None]:
    """Note one case; whatever the block raises makes it a violation and goes on."""
    try:
        yield
    except BaseException:
        note(fault, name, violated=True)
        raise
    note(fault, name, violated=False)


def note(fault: FaultClass, name: str, *, violated: bool) -> None:
    """Append one line to this process's file: class, verdict and case, separated by tabs."""
    directory = os.environ.get(VARIABLE)
    if directory:
        line = "\t".join((fault.name, "VIOLATION" if violated else "ok", " ".join(name.split())))
        with (Path(directory) / f"{os.getpid()}.cases").open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def figure(name: str, value: float) -> None:
    """Add to a number that the document tells beside the table: executions, seconds, kills.

    Figures of one name are added up over all processes."""
    directory = os.environ.get(VARIABLE)
    if directory:
        with (Path(directory) / f"{os.getpid()}.figures").open("a", encoding="utf-8") as file:
            file.write(f"{name}\t{value}\n")
