"""Try every fault, count what was tried, and write the tables of `docs/reliability.md`.

    python tools/reliability.py                  # the sample that CI runs, then the table on screen
    python tools/reliability.py --long --write   # hours: everything, and the tables written anew

The tests note each case in a ledger (`tests/support/fault_ledger.py`): a class of fault, and a name
that says what was done to what. The table counts distinct names, so nothing counts twice. Stages
can run one by one into the same ledger, as long as the code stays the same:

    python tools/reliability.py --long --ledger DIR --stages tests
    python tools/reliability.py --long --ledger DIR --stages fuzz,soak --write

`--tables` runs nothing: it writes the tables anew from `docs/reliability.json`, the last results.

Exit codes: 0, no violation; 1, a violation or a stage that failed; 2, usage.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "support"))
from fault_ledger import VARIABLE, FaultClass  # noqa: E402 - the path comes first

DOCUMENT = ROOT / "docs" / "reliability.md"
RESULTS = ROOT / "docs" / "reliability.json"
MUTATIONS = ROOT / "tests" / "mutations.toml"
STAGES = ("tests", "fuzz", "soak")
_MARKED = re.compile(r"(<!-- table: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


@dataclass(slots=True)
class Ledger:
    """All that the processes of the stages noted."""

    cases: dict[FaultClass, set[str]] = field(default_factory=lambda: defaultdict(set))
    violations: dict[FaultClass, set[str]] = field(default_factory=lambda: defaultdict(set))
    figures: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @classmethod
    def read(cls, directory: Path) -> Ledger:
        """Every file in a directory. Raises ValueError or KeyError on a line that is no entry."""
        ledger = cls()
        for path in sorted(directory.glob("*.cases")):
            for line in path.read_text(encoding="utf-8").splitlines():
                fault, verdict, name = line.split("\t")
                ledger.cases[FaultClass[fault]].add(name)
                if verdict != "ok":
                    ledger.violations[FaultClass[fault]].add(name)
        for path in sorted(directory.glob("*.figures")):
            for line in path.read_text(encoding="utf-8").splitlines():
                name, value = line.split("\t")
                ledger.figures[name] += float(value)
        return ledger

    def document(self, mode: str) -> dict[str, object]:
        """What is kept in `docs/reliability.json`."""
        return {
            "mode": mode,
            "classes": {
                one.name: {
                    "cases": len(self.cases[one]),
                    "violations": len(self.violations[one]),
                }
                for one in FaultClass
            },
            "figures": {name: round(value, 1) for name, value in sorted(self.figures.items())},
        }


def cases_table(results: dict[str, object]) -> str:
    """Fault class, distinct cases, violations."""
    classes = results["classes"]
    assert isinstance(classes, dict)
    rows = [
        (one.value, f"{classes[one.name]['cases']:,}", f"{classes[one.name]['violations']:,}")
        for one in FaultClass
    ]
    total = [sum(entry[key] for entry in classes.values()) for key in ("cases", "violations")]
    rows.append(("**all**", f"**{total[0]:,}**", f"**{total[1]:,}**"))
    return _table(("fault", "distinct cases", "violations"), rows)


def figures_table(results: dict[str, object]) -> str:
    """What is not a case but says how hard it was tried."""
    figures = results["figures"]
    assert isinstance(figures, dict)
    return _table(("figure", "value"), [(name, f"{value:,.0f}") for name, value in figures.items()])


def mutations_table(_results: dict[str, object]) -> str:
    """Fault class, the check taken out, the test that goes red."""
    entries = tomllib.loads(MUTATIONS.read_text())["mutation"]
    rows = [
        (one.value, f"{entry['removes']} (`{entry['name']}`)", f"`{entry['test']}`")
        for one in FaultClass
        for entry in entries
        if one.name in entry.get("faults", ())
    ]
    return _table(("fault", "without", "goes red"), rows)


TABLES = {"cases": cases_table, "figures": figures_table, "mutations": mutations_table}


def render(text: str, results: dict[str, object]) -> str:
    """The document with its tables made anew; one stands between `<!-- table: NAME -->` and
    `<!-- end -->`. Raises KeyError for a table that is not known."""
    return _MARKED.sub(lambda found: found[1] + TABLES[found[2]](results) + found[3], text)


def commands(arguments: argparse.Namespace) -> dict[str, list[str]]:
    """What each stage runs."""
    long = ["--long"] if arguments.long else []
    return {
        "tests": [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *long],
        "fuzz": [
            sys.executable,
            "tests/fuzz/run.py",
            *("--decoder", "all"),
            *("--seconds", str(arguments.fuzz_seconds)),
            *("--seed", str(arguments.seed)),
        ],
        "soak": [
            sys.executable,
            "tools/soak.py",
            *("--seconds", str(arguments.soak_seconds)),
            *("--seed", str(arguments.seed)),
        ],
    }


def run_stages(arguments: argparse.Namespace, ledger: Path) -> bool:
    """Run the chosen stages one after another; whether all ended well."""
    good = True
    for name, command in commands(arguments).items():
        if name not in arguments.stages:
            continue
        started = time.monotonic()
        print(f"== {name}: {' '.join(command)}", flush=True)
        ended = subprocess.run(
            command, cwd=ROOT, env={**os.environ, VARIABLE: str(ledger)}, check=False
        )
        minutes = (time.monotonic() - started) / 60
        print(f"== {name}: exit {ended.returncode} after {minutes:.1f} minutes", flush=True)
        good &= ended.returncode == 0
    return good


def write(results: dict[str, object]) -> None:
    """Keep the results, and write the tables of the document anew."""
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    DOCUMENT.write_text(render(DOCUMENT.read_text(), results))


def main() -> int:
    """Run, count, print, and write if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--long", action="store_true", help="everything, not the sample of CI")
    parser.add_argument("--write", action="store_true", help="write docs/reliability.*")
    parser.add_argument("--tables", action="store_true", help="only write the tables anew")
    parser.add_argument("--ledger", type=Path, help="directory to note cases in, or to add to")
    parser.add_argument("--stages", type=_stages, default=STAGES, help="of " + ",".join(STAGES))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--fuzz-seconds", type=int, help="for each decoder; 600 with --long, or 5")
    parser.add_argument("--soak-seconds", type=int, help="3600 with --long, or 30")
    arguments = parser.parse_args()
    arguments.fuzz_seconds = arguments.fuzz_seconds or (600 if arguments.long else 5)
    arguments.soak_seconds = arguments.soak_seconds or (3600 if arguments.long else 30)
    if arguments.tables:
        write(json.loads(RESULTS.read_text()))
        return 0
    with tempfile.TemporaryDirectory(prefix="snapd-ledger-") as temporary:
        directory: Path = arguments.ledger or Path(temporary)
        directory.mkdir(parents=True, exist_ok=True)
        good = run_stages(arguments, directory)
        ledger = Ledger.read(directory)
    results = ledger.document("long" if arguments.long else "sample")
    print(cases_table(results) + "\n" + figures_table(results))
    for one, names in ledger.violations.items():
        for name in sorted(names):
            print(f"VIOLATION: {one.value}: {name}", file=sys.stderr)
            good = False
    if arguments.write:
        write(results)
    return 0 if good else 1


def _stages(text: str) -> tuple[str, ...]:
    chosen = tuple(name for name in text.split(",") if name)
    if unknown := set(chosen) - set(STAGES):
        raise argparse.ArgumentTypeError(f"{sorted(unknown)} is none of {STAGES}")
    return chosen


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
