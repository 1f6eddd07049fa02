"""SIGKILL of real processes while most blocks are in the SSD tier; every byte is compared.

Four times as many bytes as memory holds are put, read, replaced and removed, so that blocks go to
disk and come back all the time. The kills are those of `kill_schedule`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from kill_schedule import Schedule
from real_site import RealSite, wait_for

BLOCKS, BLOCK_BYTES, MEMORY = 700, 12_000, "2mb"


def tier_site(directory: Path, seed: int, **settings: object) -> RealSite:
    return RealSite(
        directory,
        seed=seed,
        blocks=BLOCKS,
        block_bytes=BLOCK_BYTES,
        load={"busy_ratio": 0.5, "batch": 16, "remove_ratio": 0.05, "upsert_ratio": 0.15},
        global_segment_size=MEMORY,
        segment_blocks_max=4 * BLOCKS,
        enable_ssd_offload=True,
        **settings,
    )


@pytest.mark.parametrize(
    ("kills", "seed"),
    [
        (2, 1),
        pytest.param(80, 2, marks=pytest.mark.long),
        pytest.param(80, 3, marks=pytest.mark.long),
    ],
)
def test_kills_lose_nothing_that_is_in_the_tier(tmp_path: Path, kills: int, seed: int) -> None:
    with tier_site(tmp_path, seed) as site:
        site.start()
        for number in range(2):
            site.start_client(number)
        assert wait_for(lambda: site.metric("offload_blocks") > 100, 20.0, 0.1), site.log_tail()
        schedule = Schedule(site, seed, "SSD tier: ")
        for number in range(kills):
            schedule.run(number)
        assert site.metric("offload_blocks") > 100
        assert site.metric("demand_load_blocks_total", result="loaded") > 0
