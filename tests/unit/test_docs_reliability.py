"""docs/reliability.md says what was run, and names tests that exist."""

from __future__ import annotations

import ast
import json
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest
import reliability
from fault_ledger import FaultClass

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "reliability.md"
MUTATIONS = tomllib.loads((ROOT / "tests" / "mutations.toml").read_text())["mutation"]


def bugs() -> list[tuple[str, str]]:
    """The rows of the table of bugs: what was wrong, and where it is found."""
    table = DOCUMENT.read_text().split("| bug | the test that finds it |\n|---|---|\n")[1]
    rows = [line.strip("| ").split(" | ") for line in table.split("\n\n")[0].splitlines()]
    return [(bug, tests) for bug, tests in rows]


@cache
def names_in(name: str) -> frozenset[str]:
    """Functions and classes of a test file."""
    tree = ast.parse((ROOT / name).read_text())
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, kinds)) | {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def missing_in(text: str) -> list[str]:
    """Node ids in a text that name no test."""
    missing = []
    for node in re.findall(r"tests/[\w/]+\.py(?:::[\w.]+)?", text):
        name, _, function = node.partition("::")
        if not (ROOT / name).is_file() or (function and function not in names_in(name)):
            missing.append(node)
    return missing


def test_the_tables_are_those_of_the_last_run() -> None:
    results = json.loads((ROOT / "docs" / "reliability.json").read_text())
    text = DOCUMENT.read_text()
    assert reliability.render(text, results) == text, "run: python tools/reliability.py --tables"
    assert results["mode"] == "long"
    assert all(entry["violations"] == 0 for entry in results["classes"].values())
    assert all(entry["cases"] > 0 for entry in results["classes"].values())


def test_every_bug_names_a_test_that_exists() -> None:
    assert len(bugs()) >= 40
    for bug, tests in bugs():
        assert re.search(r"tests/[\w/]+\.py", tests), bug
        assert missing_in(tests) == [], bug


def test_every_mutation_names_a_test_that_exists() -> None:
    assert missing_in(" ".join(entry["test"] for entry in MUTATIONS)) == []


@pytest.mark.parametrize("fault", list(FaultClass), ids=lambda one: one.name)
def test_every_class_of_fault_has_a_mutation(fault: FaultClass) -> None:
    assert any(fault.name in entry.get("faults", ()) for entry in MUTATIONS)


def test_a_ledger_counts_names_once(tmp_path: Path) -> None:
    (tmp_path / "1.cases").write_text("KILL\tok\tstore in a put\nKILL\tok\tstore in a put\n")
    (tmp_path / "2.cases").write_text("KILL\tVIOLATION\tdaemon in a flush\n")
    (tmp_path / "2.figures").write_text("kills\t2\nkills\t3\n")
    ledger = reliability.Ledger.read(tmp_path)
    assert {one.name: len(names) for one, names in ledger.cases.items()} == {"KILL": 2}
    assert ledger.violations[FaultClass.KILL] == {"daemon in a flush"}
    assert ledger.document("long")["figures"] == {"kills": 5.0}
