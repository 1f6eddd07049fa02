"""The look from outside finds what a kill left, no more and no less, and the damage done to it."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from snapd.drill.content import U32, block_keys
from snapd.drill.inject import flip_in_pack, flip_in_segment
from snapd.drill.load import BlockClient, LoadSpec
from snapd.drill.look import BlockNames, evicted_keys, repository_versions, segment_versions
from snapd.drill.processes import Site, SiteSettings

BLOCKS = 8
BLOCK_BYTES = 10_000
SEED = 5
SETTINGS = SiteSettings(
    segment_bytes=16 << 20,
    segment_blocks_max=1000,
    flush_seconds=0.05,
    snapshot_seconds=0.5,
    get_wait_seconds=1.0,
)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with Site(tmp_path / f"snapd-drill-look-{random.getrandbits(64):x}", SETTINGS) as site:
        site.start_store()
        site.wait_store(20)
        yield site


@pytest.fixture
def names() -> BlockNames:
    return BlockNames(*block_keys(SEED, BLOCKS))


def fill(site: Site) -> U32:
    """Put all blocks, replace block 1, remove block 2; the versions that must be there."""
    spec = LoadSpec(
        directory="",
        socket=str(site.socket),
        seed=SEED,
        block_bytes=BLOCK_BYTES,
        deadline_seconds=1.0,
        upsert_ratio=0.0,
        remove_ratio=0.0,
    )
    client = BlockClient(spec, BLOCKS, BLOCKS)
    versions = np.arange(64, 64 + BLOCKS, dtype=np.uint32)
    assert client.put(np.arange(BLOCKS), versions).all()
    versions[1] = 200
    replaced = client.fill(np.array([1]), versions[1:2])[0].tobytes()
    assert client.store.upsert(client.keys[1], replaced) == 0
    assert client.store.remove(client.keys[2], True) == 0
    versions[2] = 0
    client.close()
    return versions


def test_a_segment_shows_what_was_published(site: Site, names: BlockNames) -> None:
    expected = fill(site)
    assert site.store is not None
    site.store.kill()
    assert segment_versions(site.segment, names, BLOCK_BYTES).tolist() == expected.tolist()

    flipped = flip_in_segment(site.segment, names, random.Random(1))
    assert flipped is not None
    expected[flipped] = 0
    assert segment_versions(site.segment, names, BLOCK_BYTES).tolist() == expected.tolist()
    assert evicted_keys(site.event_log) == frozenset()


def test_a_repository_shows_what_was_sealed(site: Site, names: BlockNames) -> None:
    daemon = site.start_daemon()
    site.wait_ready(20)
    expected = fill(site)
    deadline = time.monotonic() + 20
    found = np.zeros(BLOCKS, np.uint32)
    while found.tolist() != expected.tolist() and time.monotonic() < deadline:
        time.sleep(0.05)
        found = repository_versions(site.repository, names, BLOCK_BYTES)
    daemon.kill()
    assert repository_versions(site.repository, names, BLOCK_BYTES).tolist() == expected.tolist()

    flipped = flip_in_pack(site.repository, names, random.Random(1), only=4)
    assert flipped == 4
    expected[4] = 0
    assert repository_versions(site.repository, names, BLOCK_BYTES).tolist() == expected.tolist()


def test_evictions_are_read_from_the_stores_log(tmp_path: Path) -> None:
    log = tmp_path / "events.log"
    assert evicted_keys(log) == frozenset()
    log.write_text("evict a_0_k\nremove b_0_k\nremove_all\nevict c_0_k\n")
    assert evicted_keys(log) == {"a_0_k", "c_0_k"}
