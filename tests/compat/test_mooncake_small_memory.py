"""Shared memory that holds one segment file and not two: slower, and no end of the world.

After a death a new file is mounted beside the old one. Where that does not fit the old one has to
go first; and after the death of the master alone the store still holds its memory.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from fault_ledger import FaultClass, case
from mooncake_small_memory import KEYS, run


def check(tmp_path: Path, *deaths: str) -> None:
    reports = run(tmp_path, *deaths)
    assert len(reports) == len(deaths)
    for number, report in enumerate(reports, 1):
        with case(
            FaultClass.FULL,
            f"Mooncake's {report['death']} killed where /dev/shm has no room for a second file",
        ):
            assert report["back"] == KEYS, reports
            assert report["wrong"] == 0, reports
            assert report["files"] == 1, reports
            assert report["warnings"] >= number, reports
            assert report["from_disk"] == number * KEYS, reports


def test_a_master_that_died_where_two_files_do_not_fit(tmp_path: Path) -> None:
    check(tmp_path, "master")


@pytest.mark.long
def test_deaths_one_after_the_other_where_two_files_do_not_fit(tmp_path: Path) -> None:
    check(tmp_path, "store", "master", "master", "store")
