"""What must hold of a repository whatever somebody did to its files: one oracle for all cases.

`look` opens for reading, `live_on` as a writer does: twice, with a commit in between. Both raise
AssertionError with a sentence. Everything goes through the entry points that users have.

    python tests/support/hostile_exam.py ROOT    # in a process of its own; prints what it cost
"""

from __future__ import annotations

import json
import mmap
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import FrameType

import numpy as np
from repository_kit import aligned, table_of
from sample_repository import Expected

from snapd.disk.posix import PosixDisk
from snapd.errors import NewerFormatError, NothingThereError, SnapdError
from snapd.formats.removals import Removals
from snapd.formats.sealed import padded
from snapd.repository import Recovery, Repository

BLOCK_BYTES_READ_MAX = 64 * 2**20
"""Larger blocks are not in the sample: only a forged index names one, and nobody must read it."""
CASE_SECONDS_MAX = 60
ATTACHED = b"another segment!"
CARRIED = b"carried-on"


class Promise(Enum):
    """How much is promised after a change."""

    DAMAGED = "what comes back is right, nothing that went comes back, what is lost is counted"
    FORGED = "no crash, no hang, and every block that is read is one that its key once held"
    RENAMED = "as FORGED, but somebody gave blocks other keys, checksums or versions"


@dataclass(slots=True)
class Outcome:
    """What an open repository gave."""

    blocks: dict[bytes, bytes] = field(default_factory=dict)
    unreadable: int = 0
    """Live rows that could not be read."""
    recovery: Recovery | None = None
    refused: str = ""
    """Why it was not opened, or not committed: a typed refusal."""
    newer: bool = False
    """Whether that was because of a newer format."""
    findings: list[str] = field(default_factory=list)
    carried: bool = False
    """Whether a new segment could attach and bring a block."""
    told_before: bool = False
    """Whether an earlier start told what this one has to do without."""

    @property
    def counted(self) -> bool:
        """Whether somebody was told that something is missing."""
        told = self.recovery
        if self.told_before or self.refused or self.unreadable or self.findings:
            return True
        return told is not None and bool(
            told.unreadable_packs
            or told.unreadable_manifests
            or told.journal_findings
            or told.blocks_lost
            or told.moved_aside
        )


@contextmanager
def deadline(name: str) -> Iterator[None]:
    """Whatever does not end in time fails."""

    def expire(_signal: int, _frame: FrameType | None) -> None:
        raise AssertionError(f"{name} hangs")

    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, CASE_SECONDS_MAX)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def look(root: Path, *, verify: bool = True) -> Outcome:
    """Open for reading, read every live block, verify everything."""
    return _visit(root, read_only=True, verify=verify)


def live_on(root: Path) -> tuple[Outcome, Outcome]:
    """Start as a writer, read, commit; then start again: what each of the two starts gave."""
    first = _visit(root, read_only=False, commit=True)
    return first, _visit(root, read_only=False)


def check(outcome: Outcome, expected: Expected, promise: Promise) -> None:
    """Raise AssertionError unless what was read is what was promised."""
    for key, data in outcome.blocks.items():
        if promise is Promise.DAMAGED:
            assert key not in expected.gone, f"{key!r} was removed and is back"
            right = expected.live.get(key, expected.evicted.get(key))
            assert data == right, f"{key!r} has bytes that it does not hold: a wrong byte"
        elif promise is Promise.FORGED:
            assert data in expected.ever.get(key, set()), f"{key!r} never held these bytes"
    if promise is Promise.DAMAGED:
        lost = expected.live.keys() - outcome.blocks.keys()
        assert not lost or outcome.counted, f"{sorted(lost)} are lost and nobody was told"


def _visit(root: Path, *, read_only: bool, verify: bool = False, commit: bool = False) -> Outcome:
    outcome = Outcome()
    disk = PosixDisk(root)
    try:
        repository = Repository.open(disk, read_only=read_only)
    except SnapdError as error:
        _refuse(outcome, error)
        disk.close()
        return outcome
    try:
        outcome.recovery = repository.recover()
        _read_all(repository, outcome)
        if verify:
            for generation in repository.generations():
                if generation.problem:
                    outcome.findings.append(generation.problem)
            with suppress(NothingThereError):
                found = repository.verify(all_blocks=True).findings
                outcome.findings += [f"{one.file}: {one.problem}" for one in found]
        if commit:
            _carry_on(repository, outcome)
            repository.commit()
    except SnapdError as error:
        _refuse(outcome, error)
    finally:
        repository.close()
        disk.close()
    return outcome


def _carry_on(repository: Repository, outcome: Outcome) -> None:
    """What a store that attaches brings: an incarnation, a block, and after it a removal."""
    ordinal = repository.incarnation(ATTACHED).ordinal
    epoch = repository.epoch
    table = table_of([CARRIED], [b"on" * 3000], incarnation=ordinal, epoch=epoch)
    writer = repository.begin_pack()
    assert writer.append(table, [aligned(b"on" * 3000)]).all()
    writer.seal()
    gone = table_of([b"nobody"], [b"x"], incarnation=ordinal, epoch=epoch, sequence=2)
    repository.journal(Removals.of_blocks(gone))
    outcome.carried = True


def _refuse(outcome: Outcome, error: SnapdError) -> None:
    outcome.refused = f"{type(error).__name__}: {error}"
    outcome.newer = isinstance(error, NewerFormatError)


def _read_all(repository: Repository, outcome: Outcome) -> None:
    catalog = repository.catalog
    rows = catalog.live_rows()
    table = catalog.take(rows)
    small = table.size <= BLOCK_BYTES_READ_MAX
    outcome.unreadable += int((~small).sum())
    rows, table = rows[small], table.take(small)
    sizes = table.size.tolist()
    buffers = [memoryview(mmap.mmap(-1, max(4096, padded(size)))) for size in sizes]
    good = repository.read(rows, buffers)
    outcome.unreadable += int((~good).sum())
    keys = table.keys.to_list()
    for row in np.flatnonzero(good).tolist():
        if keys[row] == CARRIED:
            outcome.carried = True
            continue
        outcome.blocks[keys[row]] = bytes(buffers[row][: sizes[row]])


def main() -> None:
    """Look at a repository and live on in it, in this process; print what it cost as JSON."""
    root = Path(sys.argv[1])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with deadline(str(root)):
        seen = look(root)
        first, second = live_on(root)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    document = {
        "grown_kib": after - before,
        "seen": len(seen.blocks),
        "first": len(first.blocks),
        "second": len(second.blocks),
        "findings": seen.findings,
        "refused": [seen.refused, first.refused, second.refused],
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
