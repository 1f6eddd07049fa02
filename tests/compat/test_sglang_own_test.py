"""SGLang's own test of its Mooncake backend, as its wheel has it, on the bundled store."""

from __future__ import annotations

import os
from pathlib import Path

from sglang_own import check_own_test


def test_sglangs_own_test_passes_on_the_bundled_store(tmp_path: Path) -> None:
    check_own_test(os.environ["SNAPD_TEST_SGLANG_PYTHON"], tmp_path)
