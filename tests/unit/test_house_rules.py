"""The rules of CONTRIBUTING.md that no linter checks."""

import ast
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted((ROOT / "snapd").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))

FUNCTION_LINES_MAX = 70
MODULE_LINES_MAX = 500
SKIPS = re.compile(r"\b(?:pytest\.)?(?:mark\.)?(skip|skipif|xfail|importorskip|skipTest)\b")
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def functions(path: Path) -> Iterator[Function]:
    return (node for node in ast.walk(tree_of(path)) if isinstance(node, Function))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_functions_fit_on_a_screen(path: Path) -> None:
    lengths = {f.name: (f.end_lineno or f.lineno) - f.lineno + 1 for f in functions(path)}
    assert {n: lines for n, lines in lengths.items() if lines > FUNCTION_LINES_MAX} == {}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_modules_have_one_reason_to_change(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MODULE_LINES_MAX


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_import_hides_in_a_function(path: Path) -> None:
    hidden = [
        f"line {node.lineno}"
        for function in functions(path)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert hidden == []


@pytest.mark.parametrize("path", [*MODULES, *TESTS], ids=name_of)
def test_nothing_is_left_unfinished(path: Path) -> None:
    if path != Path(__file__):
        assert UNFINISHED.findall(path.read_text()) == []


@pytest.mark.parametrize("path", TESTS, ids=name_of)
def test_no_test_is_skipped(path: Path) -> None:
    """What takes minutes is marked `long` and deselected; what cannot run here is a defect."""
    if path == Path(__file__):
        return
    names = [
        node.attr if isinstance(node, ast.Attribute) else node.id
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Attribute | ast.Name)
    ]
    assert [name for name in names if SKIPS.fullmatch(name)] == []


def test_nothing_is_unpickled() -> None:
    """Bytes from a disk, a segment or a socket must not choose the code that reads them."""
    for path in MODULES:
        imported = {
            alias.name.split(".")[0]
            for node in ast.walk(tree_of(path))
            if isinstance(node, ast.Import)
            for alias in node.names
        }
        assert not imported & {"pickle", "shelve", "marshal", "dill"}, name_of(path)
        assert "allow_pickle=True" not in path.read_text(), name_of(path)


def requirement_names(lines: list[str]) -> set[str]:
    """Names as registries compare them: in lower case, with `-` for `_` and `.`."""
    names = (re.split(r"[<>=!~\[; ]", line, maxsplit=1)[0] for line in lines)
    return {re.sub(r"[-_.]+", "-", name).lower() for name in names}


def pins(name: str) -> list[str]:
    lines = (ROOT / "requirements" / name).read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_every_dependency_is_pinned_to_one_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    runtime = project["project"]["dependencies"] + project["build-system"]["requires"]
    assert requirement_names(runtime) <= requirement_names(pins("runtime.txt"))
    both = pins("runtime.txt") + pins("dev.txt")
    assert requirement_names(project["dependency-groups"]["dev"]) <= requirement_names(both)
    mooncake = project["project"]["optional-dependencies"]["mooncake"]
    assert set(mooncake) <= set(pins("mooncake.txt"))
    for line in both + pins("mooncake.txt"):
        assert re.fullmatch(r"[\w.-]+==[\w.]+", line), line
    assert len(requirement_names(both)) == len(both), "pinned twice"
