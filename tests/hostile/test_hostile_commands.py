"""Hostile files through `snapctl`: an exit code that means something, and never a traceback.

SNAPD_HOSTILE_CASE='<its name>' .venv/bin/pytest --long tests/hostile/test_hostile_commands.py
"""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_ledger import FaultClass, case
from hostile_cases import (
    Hostile,
    Layout,
    flip_cases,
    forged_column_cases,
    forged_header_cases,
    forged_journal_cases,
    length_cases,
    planted_cases,
    swap_cases,
)
from hostile_exam import deadline
from sample_repository import build_sample

from snapd.cli.execute import EXIT_CODES, execute
from snapd.cli.snapctl import snapctl
from snapd.errors import IntegrityError

ONLY = os.environ.get("SNAPD_HOSTILE_CASE", "")
COMMANDS = {
    "verify": ["verify", "--all"],
    "list": ["list"],
    "show": ["show", "3"],
    "prune": ["prune", "--dry-run"],
    "rebuild": ["rebuild"],
}
FAST, LONG = 1, 40
"""Cases of each list."""


@pytest.fixture
def base() -> Iterator[Path]:
    """A directory in memory, with a repository and another one."""
    with tempfile.TemporaryDirectory(prefix="snapd-hostile-", dir="/dev/shm") as directory:
        root = Path(directory)
        build_sample(root / "ours")
        build_sample(root / "theirs", b"foreign-")
        yield root


def cases_of(base: Path, count: int) -> list[Hostile]:
    layout = Layout.of(base / "ours")
    lists = [
        list(make(base / "ours", layout))
        for make in (
            flip_cases,
            length_cases,
            swap_cases,
            forged_header_cases,
            forged_column_cases,
            forged_journal_cases,
        )
    ]
    lists.append(list(planted_cases(base / "ours", layout, base / "theirs")))
    if ONLY:
        return [one for every in lists for one in every if ONLY in one.name]
    chosen = random.Random(11)
    return [one for every in lists for one in chosen.sample(every, count)]


def run_commands(base: Path, one: Hostile, capsys: pytest.CaptureFixture[str]) -> None:
    tree = base / "work" / "tree"
    for name, words in COMMANDS.items():
        shutil.copytree(base / "ours", tree)
        try:
            one.apply(tree)
            with (
                case(FaultClass.HOSTILE_FILE, f"snapctl {name}: {one.name}"),
                deadline(f"{name}: {one.name}"),
            ):
                arguments = [*words, "--json", "--persistent-path", str(tree)]
                code = execute(snapctl, "snapctl", arguments)
                out, err = capsys.readouterr()
                assert code in EXIT_CODES, code
                assert code != 2, err
                assert "Traceback" not in err
                json.loads(out)
                if name == "verify" and one.noticed:
                    assert code == IntegrityError.exit_code, f"verify exits with {code}: {err}"
        finally:
            shutil.rmtree(tree.parent)


def run_all(base: Path, count: int, capsys: pytest.CaptureFixture[str]) -> None:
    for one in cases_of(base, count):
        again = (
            f"SNAPD_HOSTILE_CASE={one.name!r} .venv/bin/pytest --long "
            "tests/hostile/test_hostile_commands.py"
        )
        try:
            run_commands(base, one, capsys)
        except Exception as error:
            raise AssertionError(
                f"{one.name}: {type(error).__name__}: {error}\nrepeat with: {again}"
            ) from error


def test_commands_survive_a_sample_of_hostile_files(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_all(base, FAST, capsys)


@pytest.mark.long
def test_commands_survive_hostile_files(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_all(base, LONG, capsys)
