"""Tests against real Mooncake are collected where `SNAPD_TEST_MOONCAKE_PYTHON` names an interpreter
that has the wheel, as `./check` makes one."""

import os

collect_ignore_glob = [] if "SNAPD_TEST_MOONCAKE_PYTHON" in os.environ else ["test_*_wheel.py"]
