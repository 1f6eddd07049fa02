"""Remove one safety check at a time and see that a named test goes red.

`tests/mutations.toml` lists the mutations: a file, the text to find (exactly once), what to put in
its place, and the test that must fail. Each runs in a copy of the checkout, so the tree is never
touched. The named tests are first run unmutated: a test that is red anyway proves nothing.

    python tools/mutations.py              # all, exit 1 if a mutation survives
    python tools/mutations.py --only epoch # those whose name contains "epoch"
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TEST_FAILURES = 1
"""pytest's exit code when tests ran and some failed; anything else is not a verdict."""


@dataclass(frozen=True, slots=True)
class Mutation:
    """One check taken out. `removes` says in words what is lost; `test` is a pytest node id;
    `faults` names the classes of `tests/support/fault_ledger.py` that it stands for."""

    name: str
    removes: str
    file: str
    find: str
    replace: str
    test: str
    faults: tuple[str, ...] = ()


def load_mutations(path: Path) -> list[Mutation]:
    """The table, in order. Raises KeyError or TypeError on a malformed entry."""
    return [Mutation(**entry) for entry in tomllib.loads(path.read_text())["mutation"]]


def copy_checkout(target: Path) -> None:
    """Copy every file that git tracks or would track."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def run_test(checkout: Path, test: str) -> subprocess.CompletedProcess[str]:
    """Run one test in a checkout; processes that it starts import the same checkout."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", test],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


def verdict(mutation: Mutation, checkout: Path) -> str:
    """ "red" if the test catches the mutation, else what went wrong. Leaves the copy as it was."""
    path = checkout / mutation.file
    source = path.read_text()
    if source.count(mutation.find) != 1:
        return f"STALE: the text to find is {source.count(mutation.find)} times in the file"
    before = run_test(checkout, mutation.test)
    if before.returncode != 0:
        return f"BROKEN: the test fails without the mutation\n{before.stdout[-2000:]}"
    path.write_text(source.replace(mutation.find, mutation.replace))
    try:
        after = run_test(checkout, mutation.test)
    finally:
        path.write_text(source)
    if after.returncode == TEST_FAILURES:
        return "red"
    return f"SURVIVED: pytest exit {after.returncode}\n{after.stdout[-2000:]}"


def main() -> int:
    """Run the table and print it; 1 if any mutation is not caught."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="run mutations whose name contains this")
    chosen = parser.parse_args().only
    survivors = 0
    mutations = load_mutations(ROOT / "tests" / "mutations.toml")
    with tempfile.TemporaryDirectory(prefix="snapd-mutations-") as directory:
        checkout = Path(directory)
        copy_checkout(checkout)
        for mutation in mutations:
            if chosen not in mutation.name:
                continue
            result = verdict(mutation, checkout)
            survivors += result != "red"
            print(
                f"{mutation.name:<24} {mutation.removes:<60} {mutation.test}: {result}", flush=True
            )
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
