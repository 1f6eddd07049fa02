"""Content: every byte depends on key, version and page, and a wrong page says whose it is."""

from __future__ import annotations

import numpy as np
import pytest

from snapd.drill.content import (
    PAGE_BYTES,
    WRITERS_MAX,
    block_keys,
    describe_block,
    make_blocks,
    next_version,
    stamped_versions,
    wrong_bytes,
)

HASHES = np.array([11, 22, 33], np.uint64)
VERSIONS = np.array([64, 65, 130], np.uint32)


@pytest.mark.parametrize("size", [64, 100, 4095, 4096, 4097, 40_000, 65_536])
def test_blocks_of_any_size_are_right_and_carry_their_version(size: int) -> None:
    blocks = make_blocks(HASHES, VERSIONS, size)
    assert blocks.shape == (3, size)
    assert wrong_bytes(blocks, HASHES, VERSIONS).tolist() == [0, 0, 0]
    assert stamped_versions(blocks).tolist() == VERSIONS.tolist()


@pytest.mark.parametrize("place", [0, 9, 17, 31, 32, 4095, 4096, 8191, 9999])
def test_every_single_flipped_byte_is_found(place: int) -> None:
    blocks = make_blocks(HASHES, VERSIONS, 10_000).copy()
    blocks[1, place] ^= 0x40
    assert wrong_bytes(blocks, HASHES, VERSIONS).tolist() == [0, 1, 0]


def test_another_version_writer_or_key_is_another_block() -> None:
    blocks = make_blocks(HASHES, VERSIONS, 8192)
    for hashes, versions in ((HASHES + np.uint64(1), VERSIONS), (HASHES, VERSIONS + np.uint32(1))):
        wrong = wrong_bytes(blocks, hashes, versions)
        assert bool((wrong > 8192 * 0.9).all()), "nearly every byte differs"


def test_pages_of_one_block_differ() -> None:
    pages = make_blocks(HASHES, VERSIONS, 64 * PAGE_BYTES).reshape(-1, PAGE_BYTES)
    assert len(np.unique(pages, axis=0)) == len(pages)


def test_a_version_rises_with_every_write_and_names_its_writer() -> None:
    first = next_version(np.zeros(2, np.uint32), 63)
    second = next_version(first, 0)
    assert bool((second > first).all())
    assert (first % WRITERS_MAX).tolist() == [63, 63]
    assert (second // WRITERS_MAX).tolist() == [2, 2]


def test_a_wrong_page_is_attributed() -> None:
    block = make_blocks(HASHES[:1], VERSIONS[:1], 3 * PAGE_BYTES)[0].copy()
    block[PAGE_BYTES : 2 * PAGE_BYTES] = make_blocks(HASHES[1:2], VERSIONS[1:2], 8192)[0][4096:]
    block[2 * PAGE_BYTES :] = 0
    text = describe_block(block)
    assert "0: key 000000000000000b version 1 writer 0 page 0" in text
    assert "1: key 0000000000000016 version 1 writer 1 page 1" in text
    assert "2: zeros" in text


def test_keys_look_like_pages_of_an_engine_and_do_not_repeat() -> None:
    keys, hashes = block_keys(7, 500)
    assert len(set(keys)) == len(set(hashes.tolist())) == 500
    assert all(key.endswith("_0_k") and len(key) == 68 for key in keys)
    assert set(keys).isdisjoint(block_keys(8, 500)[0])


def test_no_blocks_are_no_bytes() -> None:
    none = make_blocks(HASHES[:0], VERSIONS[:0], 8192)
    assert none.shape == (0, 8192)
    assert wrong_bytes(none, HASHES[:0], VERSIONS[:0]).tolist() == []
