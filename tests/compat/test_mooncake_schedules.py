"""Random schedules of deaths, stops, removals and rewrites: no key holds what is over, everything
comes to rest, and something comes back."""

from __future__ import annotations

from pathlib import Path

import pytest
from fault_ledger import figure
from mooncake_life import MooncakeLife

FAST_SECONDS = 8.0
LONG_SECONDS = 60.0


def explore(directory: Path, seed: int, seconds: float) -> None:
    try:
        episodes = MooncakeLife(directory, seed).run(seconds)
    except AssertionError as error:
        raise AssertionError(
            f"seed {seed}: {error}\nrepeat with: .venv/bin/pytest --long "
            f"'tests/compat/test_mooncake_schedules.py::test_many_schedules[{seed}]'"
        ) from error
    figure("schedules of deaths around real Mooncake", episodes)


def test_a_schedule(tmp_path: Path) -> None:
    explore(tmp_path, 4, FAST_SECONDS)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(12))
def test_many_schedules(tmp_path: Path, seed: int) -> None:
    explore(tmp_path, seed, LONG_SECONDS)
