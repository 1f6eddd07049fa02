"""Runs SGLang's own test of its Mooncake backend on the bundled store."""

from __future__ import annotations

import subprocess
from pathlib import Path

from client_store import StoreProcess
from client_wheel import SUPPORT
from mooncake_site import plain_environment

MODULE = "sglang.srt.mem_cache.storage.mooncake_store.test_mooncake_store"
SECONDS_MAX = 120


def check_own_test(python: str, directory: Path, *flags: str) -> None:
    """The test as SGLang's wheel has it, in this interpreter; AssertionError unless it passes."""
    with StoreProcess(directory) as store:
        done = subprocess.run(
            [python, str(SUPPORT / "mooncake_alias.py"), *flags, MODULE],
            check=False,
            capture_output=True,
            timeout=SECONDS_MAX,
            env=plain_environment() | {"MOONCAKE_MASTER": store.address, "PYTHONPATH": ""},
        )
        output = (done.stdout + done.stderr).decode(errors="replace")
        assert done.returncode == 0, output[-4000:]
        assert "All tests passed" in output
        stats = store.stats()
    # Its 13 pages of 2 keys (MHA, two ranks) or 1 (MLA, twice), 1 page of 1 key, and what SGLang
    # puts to warm each of its five stores up.
    assert stats.puts >= 2 * 26 + 2 * 13 + 1
    assert stats.hits >= stats.puts
    assert stats.corrupt == 0
