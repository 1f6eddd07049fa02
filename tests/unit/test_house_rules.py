"""The rules of CONTRIBUTING.md that no linter checks."""

import ast
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODULES = sorted((ROOT / "snapd").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))

FUNCTION_LINES_MAX = 70
MODULE_LINES_MAX = 500
SKIPS = {"skip", "skipif", "skipTest", "xfail", "importorskip"}
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def functions(path: Path) -> Iterator[Function]:
    return (node for node in ast.walk(tree_of(path)) if isinstance(node, Function))


def test_functions_fit_on_a_screen() -> None:
    lengths = {
        f"{name_of(path)}:{f.lineno} {f.name}": (f.end_lineno or f.lineno) - f.lineno + 1
        for path in MODULES
        for f in functions(path)
    }
    assert {at: lines for at, lines in lengths.items() if lines > FUNCTION_LINES_MAX} == {}


def test_modules_have_one_reason_to_change() -> None:
    lengths = {name_of(path): len(path.read_text().splitlines()) for path in MODULES}
    assert {at: lines for at, lines in lengths.items() if lines > MODULE_LINES_MAX} == {}


def test_no_import_hides_in_a_function() -> None:
    hidden = [
        f"{name_of(path)}:{node.lineno}"
        for path in MODULES
        for function in functions(path)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert hidden == []


def test_nothing_is_left_unfinished() -> None:
    others = [path for path in [*MODULES, *TESTS] if path != Path(__file__)]
    assert [name_of(path) for path in others if UNFINISHED.search(path.read_text())] == []


def test_no_test_is_skipped() -> None:
    """What takes minutes is marked `long` and deselected; what cannot run here is a defect."""
    skips = [
        f"{name_of(path)}:{node.lineno}"
        for path in TESTS
        for node in ast.walk(tree_of(path))
        if (isinstance(node, ast.Attribute) and node.attr in SKIPS)
        or (isinstance(node, ast.Name) and node.id in SKIPS)
    ]
    assert skips == []


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
    files = sorted(path.name for path in (ROOT / "requirements").glob("*.txt"))
    assert files == [
        "dev.txt",
        "mooncake-old.txt",
        "mooncake.txt",
        "runtime.txt",
        "sglang-old.txt",
        "sglang.txt",
    ]
    for line in [line for name in files for line in pins(name)]:
        assert re.fullmatch(r"[\w.-]+==[\w.]+", line), line
    assert len(requirement_names(both)) == len(both), "pinned twice"
