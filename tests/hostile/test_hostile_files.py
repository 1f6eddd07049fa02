"""Files that somebody made or changed, through the entry points that users have.

The fast set takes a sample of each list, `--long` takes all. One case again:

    SNAPD_HOSTILE_CASE='<its name>' .venv/bin/pytest --long tests/hostile/test_hostile_files.py
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fault_ledger import FaultClass, case
from hostile_cases import (
    OUTSIDE,
    Hostile,
    Layout,
    flip,
    flip_cases,
    forged_column_cases,
    forged_directory_cases,
    forged_header_cases,
    forged_journal_cases,
    length_cases,
    planted_cases,
    swap_cases,
)
from hostile_exam import check, deadline, live_on, look
from sample_repository import Expected, build_sample

ONLY = os.environ.get("SNAPD_HOSTILE_CASE", "")
ALWAYS = (
    "repository.json of another repository",
    "manifests also has b'\\xd9\\xa0",
    "journal also has b'\\xff\\xfe odd\\nbytes', a FIFO",
    "repository.json is a directory",
    "INCARNATIONS[0].ordinal = 4294967295",
)
"""Cases that once went wrong, always tried."""
WRITER_EACH = 64
"""Of changed bytes, one in so many is also tried by a writer; of all other cases, each is."""


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Expected, Path]:
    """A repository, what it must give, and another repository."""
    base = tmp_path_factory.mktemp("hostile")
    expected = build_sample(base / "ours")
    build_sample(base / "theirs", b"foreign-")
    return base / "ours", expected, base / "theirs"


def check_kept(ours: Path, root: Path) -> None:
    """One commit more, and three are retained: the two newest of before are still there."""
    for path in sorted(ours.glob("manifests/*.manifest"))[-2:]:
        kept = root / path.relative_to(ours)
        assert kept.is_file(), f"{kept.name} was deleted"
        assert kept.read_bytes() == path.read_bytes(), f"{kept.name} was changed"


def try_reading(root: Path, one: Hostile, expected: Expected) -> None:
    outcome = look(root)
    check(outcome, expected, one.promise)
    assert not one.keeps_all or outcome.blocks == expected.live, "blocks are lost for nothing"
    assert not one.noticed or outcome.counted, "verify finds nothing"


def try_writing(root: Path, one: Hostile, expected: Expected) -> None:
    """Start, read, commit, start again: the same oracle, and the second start finds no less."""
    first, second = live_on(root)
    for outcome in (first, second):
        starts = not outcome.refused or outcome.newer or one.may_refuse
        assert starts, f"the daemon could not start or commit: {outcome.refused}"
    assert one.may_refuse or first.newer or second.carried, "no new block could be kept"
    check(first, expected, one.promise)
    # What the first start told is not told again: its commit made a state without the lost blocks.
    second.told_before = first.counted
    check(second, expected, one.promise)
    for outcome in (first, second):
        assert not one.keeps_all or outcome.blocks == expected.live, "blocks are lost for nothing"
    assert first.blocks.items() <= second.blocks.items() or second.counted, (
        f"{sorted(first.blocks.keys() - second.blocks.keys())} are lost after the next start"
    )


@pytest.fixture
def memory() -> Iterator[Path]:
    """A directory in memory, where a sync costs nothing: most cases say nothing about the disk."""
    with tempfile.TemporaryDirectory(prefix="snapd-hostile-", dir="/dev/shm") as directory:
        yield Path(directory)


def run(
    cases: Iterator[Hostile],
    sample: tuple[Path, Expected, Path],
    work: Path,
    *,
    count: int,
) -> int:
    """Try so many of the cases, chosen by a fixed seed (0: all); returns how many."""
    ours, expected, _ = sample
    chosen = [one for one in cases if ONLY in one.name]
    if count and not ONLY:
        always = [one for one in chosen if any(name in one.name for name in ALWAYS)]
        chosen = always + random.Random(3).sample(chosen, min(count, len(chosen)))
    for tried, one in enumerate(chosen, 1):
        again = (
            f"SNAPD_HOSTILE_CASE={one.name!r} .venv/bin/pytest --long "
            "tests/hostile/test_hostile_files.py"
        )
        try:
            with case(FaultClass.HOSTILE_FILE, one.name), deadline(one.name):
                if one.flips is None or tried % WRITER_EACH == 0 or ONLY:
                    _try_on_a_copy(ours, work / "tree", one, expected)
                else:
                    flip(ours, *one.flips)
                    try:
                        try_reading(ours, one, expected)
                    finally:
                        flip(ours, *one.flips)
        except Exception as error:
            raise AssertionError(f"{one.name}: {error}\nrepeat with: {again}") from error
    return len(chosen)


def _try_on_a_copy(ours: Path, tree: Path, one: Hostile, expected: Expected) -> None:
    shutil.copytree(ours, tree)
    try:
        one.apply(tree)
        try_reading(tree, one, expected)
        try_writing(tree, one, expected)
        if one.keeps_all:
            check_kept(ours, tree)
        for outside in (*tree.glob("*-outside"), *tree.parent.glob("*-outside")):
            assert outside.read_bytes() == OUTSIDE, f"{outside.name} was written to"
    finally:
        shutil.rmtree(tree.parent)
        tree.parent.mkdir()


Cases = Callable[[Path, Layout], Iterator[Hostile]]
LISTS: dict[str, tuple[Cases, int]] = {
    "flips": (flip_cases, 70),
    "lengths": (length_cases, 20),
    "swaps": (swap_cases, 12),
    "forged-headers": (forged_header_cases, 20),
    "forged-columns": (forged_column_cases, 40),
    "forged-directories": (forged_directory_cases, 20),
    "forged-journals": (forged_journal_cases, 15),
}
"""Each list, and how many of it the fast set tries."""
ON_DISK = {"lengths", "swaps"}
"""Lists that are tried on a disk with direct I/O, which minds lengths; planted files are, too."""


@pytest.mark.parametrize("name", LISTS)
def test_a_sample_of_hostile_files(
    name: str, sample: tuple[Path, Expected, Path], tmp_path: Path, memory: Path
) -> None:
    make, count = LISTS[name]
    work = (tmp_path if name in ON_DISK else memory) / "work"
    work.mkdir()
    assert run(make(sample[0], Layout.of(sample[0])), sample, work, count=count)


@pytest.mark.long
@pytest.mark.parametrize("name", LISTS)
def test_every_hostile_file(
    name: str, sample: tuple[Path, Expected, Path], tmp_path: Path, memory: Path
) -> None:
    make, _ = LISTS[name]
    work = (tmp_path if name in ON_DISK else memory) / "work"
    work.mkdir()
    run(make(sample[0], Layout.of(sample[0])), sample, work, count=0)


def test_a_sample_of_planted_files(sample: tuple[Path, Expected, Path], tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    cases = planted_cases(sample[0], Layout.of(sample[0]), sample[2])
    assert run(cases, sample, tmp_path / "work", count=20)


@pytest.mark.long
def test_every_planted_file(sample: tuple[Path, Expected, Path], tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    cases = planted_cases(sample[0], Layout.of(sample[0]), sample[2])
    run(cases, sample, tmp_path / "work", count=0)
