"""The own test of the oldest SGLang, as its wheel has it, on the bundled store."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from sglang_own import check_own_test


@pytest.mark.long
def test_its_own_test_passes_on_the_bundled_store(tmp_path: Path) -> None:
    check_own_test(os.environ["SNAPD_TEST_SGLANG_OLD_PYTHON"], tmp_path, "--old")
