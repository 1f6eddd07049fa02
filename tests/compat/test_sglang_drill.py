"""The drill through SGLang's own classes: ranks as processes fill the bundled store, everything is
killed, and what comes back is byte for byte what was there, on every rank or on none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from daemon_site import DaemonSite
from fault_ledger import FaultClass, case
from sglang_ranks import SglangRanks, fill_all, states_of, together

PAGES = 150  # more than one of SGLang's batches
TP = [{"tp_rank": rank, "tp_size": 4} for rank in range(4)]
PP = [
    {"pp_rank": rank, "pp_size": 2, "pool": {"layers": (2 * rank, 2 * rank + 2)}}
    for rank in range(2)
]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[DaemonSite]:
    with DaemonSite(tmp_path, global_segment_size="96mb") as site:
        site.start()
        yield site


def at(site: DaemonSite, options: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A rank's options, with this site's store."""
    extra = {"snapd_runtime_dir": str(site.runtime), **more.pop("extra", {})}
    return {**options, **more, "extra": extra}


def lose_everything(site: DaemonSite) -> None:
    """SIGKILL of the store and its daemon, and their shared memory with them."""
    site.flushed()
    site.snapshot()
    site.kill_store()
    site.kill_daemon()
    site.wipe_segment()
    site.start()


@pytest.mark.parametrize(
    ("name", "ranks"),
    [
        ("4 TP ranks, MHA", TP),
        ("4 TP ranks, MLA", [{**rank, "pool": {"mla": True}} for rank in TP]),
        ("2 PP ranks, MHA", PP),
        ("2 PP ranks, MLA", [{**rank, "pool": {**rank["pool"], "mla": True}} for rank in PP]),
    ],
)
def test_pages_are_identical_after_everything_was_killed(
    site: DaemonSite, sglang: SglangRanks, name: str, ranks: list[dict[str, Any]]
) -> None:
    options = [at(site, each) for each in ranks]
    first = sglang.start(*options)
    fill_all(first, 0, PAGES)
    assert states_of(first, 0, PAGES) == {"right": PAGES * len(ranks)}
    with case(FaultClass.KILL, f"SGLang, store, daemon and shared memory under {name}"):
        sglang.kill()
        lose_everything(site)
        second = sglang.start(*options)
        assert together(second, "exists", count=PAGES + 1) == [PAGES] * len(ranks)
        assert states_of(second, 0, PAGES) == {"right": PAGES * len(ranks)}
