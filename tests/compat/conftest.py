"""Tests against real Mooncake and SGLang are collected where the environment names interpreters
that have them, as `./check` does: each kind of file and the variable that it needs."""

import os

_NEEDS = {
    "test_*_wheel.py": "SNAPD_TEST_MOONCAKE_PYTHON",
    "test_mooncake_*.py": "SNAPD_TEST_MOONCAKE_PYTHON",
    "test_mooncake_versions.py": "SNAPD_TEST_MOONCAKE_OLD_PYTHON",
    "test_mooncake_old_*.py": "SNAPD_TEST_MOONCAKE_OLD_PYTHON",
    "test_mooncake_sglang*.py": "SNAPD_TEST_SGLANG_PYTHON",
}

collect_ignore_glob = [glob for glob, variable in _NEEDS.items() if variable not in os.environ]
