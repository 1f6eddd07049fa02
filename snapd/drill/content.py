"""What a block must hold: bytes as a function of its key, its version and who wrote it.

Every 4 KiB page begins with a stamp (key hash, version, page number, length), so that a wrong page
names where it came from; the rest is a window into a fixed pool of random words, at a place that
the stamp decides. Making or checking a block costs about as much as copying it.

A version is uint32: an ordinal that rises with every write of the key, times `WRITERS_MAX`, plus
the writer's number. So versions of one key are ordered, and the writer can be read off.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

U8 = npt.NDArray[np.uint8]
U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

PAGE_BYTES = 4096
WRITERS_MAX = 64
BLOCK_BYTES_MIN = 64

_WORDS = PAGE_BYTES // 8
_STAMP_WORDS = 4
_MAGIC = np.uint64(0x6C6C697264_70616E)
_POOL_WORDS = 1 << 16
_pool: U64 = np.random.default_rng(20_250_101).integers(
    0, 2**64, _POOL_WORDS + _WORDS, dtype=np.uint64
)
_windows: U64 = np.lib.stride_tricks.sliding_window_view(_pool, _WORDS - _STAMP_WORDS)


def next_version(version: U32, writer: int) -> U32:
    """The version that follows each of these when `writer` writes next, uint32 [n]."""
    ordinal = version // np.uint32(WRITERS_MAX) + np.uint32(1)
    result: U32 = ordinal * np.uint32(WRITERS_MAX) + np.uint32(writer)
    return result


def block_keys(seed: int, blocks: int) -> tuple[list[str], U64]:
    """Keys shaped like SGLang's page keys, and a hash of each for the stamps, uint64 [blocks]."""
    digests = [hashlib.sha256(f"{seed}/{block}".encode()).digest() for block in range(blocks)]
    hashes = np.frombuffer(b"".join(digest[:8] for digest in digests), np.uint64)
    return [f"{digest.hex()}_0_k" for digest in digests], hashes


def make_blocks(key_hashes: U64, versions: U32, block_bytes: int) -> U8:
    """The bytes of n blocks, uint8 [n, block_bytes]."""
    rows, pages = len(key_hashes), -(-block_bytes // PAGE_BYTES)
    words = np.empty((rows, pages, _WORDS), np.uint64)
    page_numbers = np.arange(pages, dtype=np.uint64)
    words[:, :, 0] = _MAGIC
    words[:, :, 1] = key_hashes[:, None]
    words[:, :, 2] = versions[:, None]
    words[:, :, 3] = (page_numbers << np.uint64(32) | np.uint64(block_bytes))[None, :]
    words[:, :, _STAMP_WORDS:] = _windows[_places(key_hashes, versions, page_numbers)]
    whole: U8 = words.reshape(rows, pages * _WORDS).view(np.uint8)
    return whole[:, :block_bytes]


def block_stamp(key_hash: np.uint64, version: np.uint32) -> bytes:
    """How every page of this block begins."""
    return np.array([_MAGIC, key_hash, version], np.uint64).tobytes()


def _places(key_hashes: U64, versions: U32, page_numbers: U64) -> I64:
    """Where in the pool each page's window begins, int64 [n, pages] (SplitMix64's finaliser)."""
    mixed = key_hashes[:, None] + (versions.astype(np.uint64) << np.uint64(20))[:, None]
    mixed = mixed + page_numbers[None, :] * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    result: I64 = ((mixed ^ (mixed >> np.uint64(31))) % np.uint64(_POOL_WORDS)).astype(np.int64)
    return result


def stamped_versions(blocks: U8) -> U32:
    """The version that the first page of each block claims, uint32 [n]; believe nothing of it
    before `wrong_bytes` says 0."""
    words = np.ascontiguousarray(blocks[:, :32]).view(np.uint64)
    return words[:, 2].astype(np.uint32)


def wrong_bytes(blocks: U8, key_hashes: U64, versions: U32) -> I64:
    """How many bytes of each block are not those of its key in that version, int64 [n]."""
    expected = make_blocks(key_hashes, versions, blocks.shape[1])
    wrong = np.zeros(len(blocks), np.int64)
    for row in range(len(blocks)):
        # One memcmp a block: a mask over every byte would cost four times the comparison.
        if blocks[row].data != expected[row].data:
            wrong[row] = int(np.count_nonzero(blocks[row] != expected[row]))
    return wrong


def describe_block(block: U8) -> str:
    """What the stamps of a block say, for a message about a wrong one: runs of pages that agree."""
    pages = [block[first : first + 32] for first in range(0, len(block), PAGE_BYTES)]
    said: list[str] = []
    for page in pages:
        if len(page) < 32:
            continue
        magic, key_hash, version, place = np.ascontiguousarray(page).view(np.uint64).tolist()
        if magic != int(_MAGIC):
            said.append("no stamp" if page.any() else "zeros")
            continue
        ordinal, writer = divmod(version, WRITERS_MAX)
        said.append(f"key {key_hash:016x} version {ordinal} writer {writer} page {place >> 32}")
    return "; ".join(f"{number}: {text}" for number, text in enumerate(said))
