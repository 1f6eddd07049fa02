"""Every decoder under its fuzzer for a moment, with a fixed seed; and the fuzzer itself.

The runs of ten minutes are `python tests/fuzz/run.py --decoder NAME --seconds 600 --seed N`.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import run as fuzzing  # noqa: E402 - found through the line above

EXECUTIONS = {"segment": 40, "messages": 1000, "settings": 150}
"""Of the slower ones; of the others, so many as in `_EXECUTIONS`."""
_EXECUTIONS = 400
SEED = 20240607


@pytest.mark.parametrize("decoder", fuzzing.DECODERS)
def test_a_decoder_survives_a_fuzzer_for_a_moment(decoder: str, tmp_path: Path) -> None:
    executions = EXECUTIONS.get(decoder, _EXECUTIONS)
    result = fuzzing.fuzz(
        decoder,
        seconds=0,
        executions=executions,
        seed=SEED,
        corpus=tmp_path / "corpus",
        artifacts=tmp_path / "artifacts",
    )
    fuzzing.note_cases(result)
    again = (
        f"python tests/fuzz/run.py --decoder {decoder} --seconds 0 "
        f"--executions {executions} --seed {SEED}"
    )
    assert not result.report, f"{result.report}\nrepeat with: {again}"
    assert result.executions >= executions
    assert result.cases > 0, "nothing new was reached: the fuzzer is blind"


def test_a_crash_is_made_small_and_repeats_with_one_command(tmp_path: Path) -> None:
    """On a decoder with a bug of our own: it crashes on one byte that no seed has."""
    target = tmp_path / "fuzz_broken.py"
    target.write_text(
        "def seeds():\n    return [bytes(64)]\n\n\n"
        "def mutate(data, rng):\n    return data + bytes([rng.randrange(256)])\n\n\n"
        "def check(data):\n    assert 0x7F not in data, 'planted'\n"
    )
    result = fuzzing.fuzz(
        "broken",
        seconds=20,
        executions=-1,
        seed=SEED,
        corpus=tmp_path / "corpus",
        artifacts=tmp_path / "artifacts",
        targets=tmp_path,
        minimise_seconds=2,
    )
    assert "planted" in result.report
    crash = Path(result.crash)
    assert 0x7F in crash.read_bytes()
    assert crash.read_bytes() == b"\x7f", "not made small"
    ended = fuzzing.replay("broken", crash, targets=tmp_path)
    assert ended.returncode != 0
    assert "planted" in ended.stdout + ended.stderr


def test_the_command_replays_an_input_that_is_fine(tmp_path: Path) -> None:
    path = tmp_path / "input"
    path.write_bytes(b"{}")
    line = fuzzing.command("repository", path).split()
    assert line[0] == "python"
    ended = subprocess.run(
        [sys.executable, *line[1:]], cwd=HERE.parents[1], capture_output=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
