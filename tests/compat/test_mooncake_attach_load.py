"""Looking at Mooncake while it evicts, and clients rewrite and remove: no wrong byte reaches a
pack, and what is left is what the disk has."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from fault_ledger import FaultClass, case
from mooncake_driver import MISSING, WRONG
from mooncake_packs import packed_versions
from mooncake_site import MooncakeSite

VERSIONS = (1, 2, 3)


def churn(site: MooncakeSite, seed: int, rounds: int) -> set[str]:
    """Put more than fits, rewrite in place and to other sizes, remove; keys that were removed and
    not put again."""
    chosen = random.Random(seed)
    client = site.client()
    removed: set[str] = set()
    for number in range(rounds):
        keys = [f"k-{chosen.randrange(6000)}" for _ in range(200)]
        keys = list(dict.fromkeys(keys))
        size = chosen.choice((4096, 5000, 9000))
        version = chosen.choice(VERSIONS)
        kind = chosen.choice(("put", "put", "put", "upsert", "remove"))
        if kind == "put":
            client.put(keys, version, size=size)
            removed -= set(keys)
        elif kind == "upsert":
            client.upsert(keys, version, size=size)
            removed -= set(keys)
        else:
            client.remove(keys[:50], force=True)
            removed |= set(keys[:50])
        if number % 10 == 0:
            time.sleep(0.02)
    client.close()
    return removed


def check(directory: Path, seed: int, rounds: int) -> None:
    repeat = f"seed {seed}: pytest tests/compat/test_mooncake_attach_load.py --long"
    with (
        MooncakeSite(
            directory,
            segment_bytes=16 << 20,
            eviction=(0.8, 0.1),
            lease_ttl_ms=50,
            http="",
            poll_sec=0.05,
            flush_sec=0.05,
            segment_blocks_max=8192,
        ) as site,
        case(FaultClass.NEIGHBOUR, f"evictions, rewrites and removals under looks, seed {seed}"),
    ):
        site.start()
        site.start_daemon()
        removed = churn(site, seed, rounds)
        assert site.snapd.metric("store_evictions_total") > 0, repeat
        site.snapd.snapshot()
        time.sleep(0.5)  # a request is counted before it takes effect
        site.snapd.snapshot()
        found = packed_versions(site.snapd.repository, VERSIONS, every_row=True)
        wrong = [key for key, version in found.items() if version == WRONG]
        assert not wrong, f"{wrong[:5]}, {repeat}"
        live = packed_versions(site.snapd.repository, VERSIONS)
        listed = site.keys()
        assert set(live) == listed, (set(live) ^ listed, repeat)
        assert not removed & set(live), repeat
        held = site.client().read(sorted(listed), VERSIONS)
        # A read whose short lease ends on a busy machine comes back empty: that one says nothing.
        read = {key: version for key, version in held.items() if version != MISSING}
        other = {key: (version, live[key]) for key, version in read.items() if version != live[key]}
        assert not other, (other, repeat)
        assert read, repeat


def test_under_eviction_and_rewrites_the_disk_has_what_the_store_has(tmp_path: Path) -> None:
    check(tmp_path, seed=1, rounds=60)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(2, 7))
def test_under_much_eviction_the_disk_has_what_the_store_has(tmp_path: Path, seed: int) -> None:
    check(tmp_path, seed=seed, rounds=400)
