"""Fuzz one decoder, guided by coverage, for so many seconds.

    python tests/fuzz/run.py --decoder pack --seconds 600 --seed 1
    python tests/fuzz/run.py --decoder pack --replay INPUT

What is counted. An *execution* is one input that was decoded; most of them take a way through the
code that others took before. A *case*, for the ledger of faults, is an input that reached code or
a branch that no input before it had reached: libFuzzer keeps just these in its corpus. Seeds that
the encoders made are no cases. So the number of cases stops rising when there is nothing new to
find, however long the run.

An input that crashes is made smaller and kept below --artifacts, with one line that repeats it.
Exits with 1 then. The same seed, on the same code and with --executions instead of --seconds, makes
the same inputs in the same order.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "support")]

from fault_ledger import FaultClass, figure, note  # noqa: E402 - found through the line above

DECODERS = tuple(sorted(path.stem.removeprefix("fuzz_") for path in HERE.glob("fuzz_*.py")))
INPUT_BYTES_MAX = 1 << 18
INPUT_SECONDS_MAX = 10
RESIDENT_MIB_MAX = 1536
_GRACE_SECONDS = 120
_SLICE_SECONDS = 150
"""Longest life of one fuzzer process: Atheris keeps a little of every input, so that the limit of
memory, which is there for one input, would end a long run."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a run did."""

    decoder: str
    seed: int
    executions: int
    seeds: int
    cases: int
    """Inputs that reached something new, without the seeds."""
    found: tuple[str, ...]
    """Their names: digests of their bytes."""
    resident_mib_max: int
    crash: str = ""
    """The smallest input that crashes, kept as a file; empty without one."""
    report: str = ""


def fuzz(
    decoder: str,
    *,
    seconds: int,
    executions: int,
    seed: int,
    corpus: Path,
    artifacts: Path,
    targets: Path = HERE,
    minimise_seconds: int = 60,
) -> Result:
    """Run the fuzzer in a process of its own over `corpus`, which may hold what runs before kept.

    It ends after `seconds` (0: no limit) or `executions` (-1: no limit). `targets` is where
    `fuzz_<decoder>.py` is.
    """
    corpus.mkdir(parents=True, exist_ok=True)
    artifacts.mkdir(parents=True, exist_ok=True)
    made = {_name(one): one for one in _seeds(decoder, targets)}
    for name, data in made.items():
        (corpus / name).write_bytes(data)
    before = {path.name for path in artifacts.iterdir()}
    done = resident_mib = 0
    crash = ""
    left = seconds
    while True:
        arguments = [
            f"-seed={seed + (seconds - left)}",
            f"-max_total_time={min(left, _SLICE_SECONDS)}",
            f"-runs={executions}",
            *_options(artifacts / f"{decoder}-"),
        ]
        ended = _harness(targets, decoder, [*arguments, str(corpus)], left + _GRACE_SECONDS)
        done += _figure(ended.stderr, "number_of_executed_units")
        resident_mib = max(resident_mib, _figure(ended.stderr, "peak_rss_mb"))
        left -= min(left, _SLICE_SECONDS)
        new = {path.name for path in artifacts.iterdir()} - before
        crashes = sorted(name for name in new if name.startswith(f"{decoder}-"))
        if crashes:
            crash = str(_minimised(targets, decoder, artifacts / crashes[0], minimise_seconds))
        if crashes or ended.returncode or not left:
            break
    failed = ended.returncode != 0 or bool(crash)
    found = sorted({path.name for path in corpus.iterdir()} - made.keys())
    return Result(
        decoder=decoder,
        seed=seed,
        executions=done,
        seeds=len(made),
        cases=len(found),
        found=tuple(found),
        resident_mib_max=resident_mib,
        crash=crash,
        report=(ended.stdout + ended.stderr)[-4000:] if failed else "",
    )


def _options(artifacts: Path) -> list[str]:
    """What every run of libFuzzer is told. What crashes is kept under names that begin so."""
    return [
        f"-max_len={INPUT_BYTES_MAX}",
        "-len_control=0",
        # The mutators stack changes themselves; more of them and nothing is ever accepted.
        "-mutate_depth=1",
        f"-timeout={INPUT_SECONDS_MAX}",
        f"-rss_limit_mb={RESIDENT_MIB_MAX}",
        f"-artifact_prefix={artifacts}",
        "-print_final_stats=1",
        "-verbosity=1",
    ]


def replay(decoder: str, path: Path, targets: Path = HERE) -> subprocess.CompletedProcess[str]:
    """Decode one input again, without fuzzing."""
    return _harness(targets, decoder, [f"-timeout={INPUT_SECONDS_MAX}", str(path)], _GRACE_SECONDS)


def command(decoder: str, path: Path | str) -> str:
    """The line that repeats a crash."""
    return f"python tests/fuzz/run.py --decoder {decoder} --replay {path}"


def _seeds(decoder: str, targets: Path) -> list[bytes]:
    if str(targets) not in sys.path:
        sys.path.insert(0, str(targets))
    made: list[bytes] = importlib.import_module(f"fuzz_{decoder}").seeds()
    return made


def _harness(
    targets: Path, decoder: str, arguments: list[str], seconds: int
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(HERE / "harness.py"), str(targets), decoder, *arguments],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=seconds,
        check=False,
    )


def _minimised(targets: Path, decoder: str, crash: Path, seconds: int) -> Path:
    """A smaller input that crashes too, if there is one; else the one that was found."""
    small = crash.with_name(crash.name + "-small")
    arguments = ["--minimise", str(crash), str(small), str(seconds)]
    _harness(targets, decoder, arguments, seconds + _GRACE_SECONDS)
    return small if small.exists() else crash


def _name(data: bytes) -> str:
    """LibFuzzer's name for an input."""
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


def _figure(report: str, name: str) -> int:
    found = re.search(rf"stat::{name}:\s+(\d+)", report)
    return int(found[1]) if found else 0


def note_cases(result: Result) -> None:
    """Cases by the digest of their input: the same input found again is the same case."""
    for name in result.found:
        note(FaultClass.FUZZED_INPUT, f"{result.decoder}: input {name[:16]}", violated=False)
    figure(f"executions of the fuzzer of {result.decoder}", result.executions)
    if result.report:
        note(FaultClass.FUZZED_INPUT, f"{result.decoder}: {result.crash or 'run'}", violated=True)


def main() -> int:
    """Parse arguments, run, print one JSON document; 1 if an input crashed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--decoder", required=True, choices=DECODERS)
    parser.add_argument("--seconds", type=int, default=60, help="0 with --executions: no limit")
    parser.add_argument("--executions", type=int, default=-1, help="stop after so many inputs")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--corpus", type=Path, help="keep what was found here (default: nowhere)")
    parser.add_argument(
        "--artifacts", type=Path, default=Path(tempfile.gettempdir()) / "snapd-fuzz-crashes"
    )
    parser.add_argument("--replay", type=Path, help="only decode this input")
    chosen = parser.parse_args()
    if chosen.replay is not None:
        ended = replay(chosen.decoder, chosen.replay)
        sys.stderr.write(ended.stdout + ended.stderr)
        return int(ended.returncode != 0)
    with tempfile.TemporaryDirectory(prefix="snapd-fuzz-") as directory:
        corpus = chosen.corpus or Path(directory)
        result = fuzz(
            chosen.decoder,
            seconds=chosen.seconds,
            executions=chosen.executions,
            seed=chosen.seed,
            corpus=corpus,
            artifacts=chosen.artifacts,
        )
    note_cases(result)
    document = asdict(result)
    report = document.pop("report")
    del document["found"]
    print(json.dumps(document))
    if report:
        sys.stderr.write(report)
        if result.crash:
            sys.stderr.write(f"\nrepeat with: {command(chosen.decoder, result.crash)}\n")
    return int(bool(report))


if __name__ == "__main__":
    sys.exit(main())
