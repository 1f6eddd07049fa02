"""SIGKILL of real processes at random moments under load; every byte against what was acknowledged.

The kills are those of `kill_schedule`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from fault_ledger import FaultClass, case
from kill_schedule import Schedule
from real_site import RealSite, wait_for


@pytest.mark.parametrize(
    ("kills", "seed"),
    [
        (4, 11),
        pytest.param(110, 1, marks=pytest.mark.long),
        pytest.param(110, 2, marks=pytest.mark.long),
    ],
)
def test_kills_at_any_moment_bring_back_no_wrong_byte(
    tmp_path: Path, kills: int, seed: int
) -> None:
    with RealSite(
        tmp_path, seed=seed, load={"busy_ratio": 0.25}, io_bytes_per_sec_max=2_000_000
    ) as site:
        site.start()
        for number in range(2):
            site.start_client(number)
        wait_for(lambda: site.shared.moved > 100, 20.0, 0.01)
        schedule = Schedule(site, seed)
        for number in range(kills):
            schedule.run(number)
        assert site.shared.moved > 20 * kills, "the load worked"


def test_two_daemons_at_once_are_one(tmp_path: Path) -> None:
    """Started at the same moment: one serves, the other is refused and says so."""
    with RealSite(tmp_path, seed=3) as site, case(FaultClass.KILL, "two daemons at once"):
        site.start_store()
        both = [site._spawn("snapd.daemon") for _ in range(2)]
        try:
            assert wait_for(lambda: sum(one.poll() is not None for one in both) == 1, 20.0, 0.01)
            refused = next(one for one in both if one.poll() is not None)
            assert refused.returncode == 5
            site.wait_ready()
            assert site.logged("is locked by another") + site.logged("another daemon serves") == 1
        finally:
            for one in both:
                one.kill()
                one.wait()


def test_a_lock_file_that_is_deleted_lets_no_second_writer_in(tmp_path: Path) -> None:
    """The second has a runtime directory of its own, so that only the repository can tell."""
    with RealSite(tmp_path, seed=4) as site, case(FaultClass.KILL, "lock file deleted"):
        site.start()
        site.start_client(0)
        wait_for(lambda: site.shared.moved > 20, 20.0, 0.01)
        promise = site.committed()
        (site.repository / "lock").unlink()
        ours = dict(site._settings)
        site.configure(runtime_dir=tmp_path / "other", segment_path=f"{site.segment_path}-other")
        second = site._spawn("snapd.daemon")
        assert second.wait(20) == 5
        assert site.logged("though its lock file is not") == 1
        site.configure(**ours)
        site.snapshot()
        site.power_cut()
        site.start()
        site.audit(promise)
