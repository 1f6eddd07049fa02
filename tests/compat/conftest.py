"""Tests against real Mooncake and SGLang are collected where the environment names interpreters
that have them, as `./check` does: each kind of file and the variable that it needs."""

import os
from collections.abc import Iterator

import pytest
from sglang_ranks import SglangRanks

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
def sglang_import() -> Iterator[SglangRanks]:
    """SGLang, imported once for all tests."""
    with SglangRanks() as ranks:
        yield ranks


@pytest.fixture
def sglang(sglang_import: SglangRanks) -> Iterator[SglangRanks]:
    """Processes of SGLang's ranks; they are killed when the test ends."""
    yield sglang_import
    sglang_import.kill()
