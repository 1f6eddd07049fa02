"""Tests against real Mooncake and SGLang are collected where the environment names interpreters
that have them, as `./check` does: each kind of file and the variable that it needs."""

import os
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from sglang_ranks import SGLANG_OLD_PYTHON_VARIABLE, SGLANG_PYTHON_VARIABLE, SglangRanks

_NEEDS = {
    "test_*_wheel.py": "SNAPD_TEST_MOONCAKE_PYTHON",
    "test_mooncake_*.py": "SNAPD_TEST_MOONCAKE_PYTHON",
    "test_mooncake_versions.py": "SNAPD_TEST_MOONCAKE_OLD_PYTHON",
    "test_mooncake_old_*.py": "SNAPD_TEST_MOONCAKE_OLD_PYTHON",
    "test_mooncake_sglang*.py": "SNAPD_TEST_SGLANG_PYTHON",
    "test_sglang_*.py": "SNAPD_TEST_SGLANG_PYTHON",
    "test_sglang_old_*.py": "SNAPD_TEST_SGLANG_OLD_PYTHON",
}

collect_ignore_glob = [glob for glob, variable in _NEEDS.items() if variable not in os.environ]


@pytest.fixture(scope="session")
def sglang_imports() -> Iterator[dict[str, SglangRanks]]:
    """Each SGLang that there is, imported once for all tests, all at the same time: it takes eight
    seconds of a CPU."""
    with ExitStack() as stack:
        variables = (SGLANG_PYTHON_VARIABLE, SGLANG_OLD_PYTHON_VARIABLE)
        yield {
            variable: stack.enter_context(SglangRanks(variable))
            for variable in variables
            if variable in os.environ
        }


@pytest.fixture
def sglang(sglang_imports: dict[str, SglangRanks]) -> Iterator[SglangRanks]:
    """Processes of SGLang's ranks; they are killed when the test ends."""
    ranks = sglang_imports[SGLANG_PYTHON_VARIABLE]
    yield ranks
    ranks.kill()


@pytest.fixture(scope="session")
def sglang_old_import(sglang_imports: dict[str, SglangRanks]) -> SglangRanks:
    """The oldest SGLang."""
    return sglang_imports[SGLANG_OLD_PYTHON_VARIABLE]


@pytest.fixture
def sglang_old(sglang_old_import: SglangRanks) -> Iterator[SglangRanks]:
    """Processes of its ranks; they are killed when the test ends."""
    yield sglang_old_import
    sglang_old_import.kill()
