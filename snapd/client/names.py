"""Keys of a batch as they travel."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence

from snapd.blocks import KEY_BYTES_MAX
from snapd.wire.framing import FRAME_BYTES_MAX
from snapd.wire.messages import BATCH_KEYS_MAX, KeyBatch

REQUEST_KEY_BYTES_MAX = FRAME_BYTES_MAX // 2
"""Most key bytes in one request; the columns beside them fit into the rest of a frame."""

REQUEST_BLOCK_BYTES_MAX = 2**30
"""Most block bytes that one request reserves or puts under lease, unless one block has more."""


def encode_names(names: Sequence[bytes]) -> KeyBatch:
    """Keys of 1 to `KEY_BYTES_MAX` bytes as a message has them."""
    return KeyBatch(b"".join(names), array("H", map(len, names)).tobytes())


def split_batch(
    names: Sequence[bytes],
    block_bytes: Sequence[int] | None = None,
    block_bytes_max: int | None = None,
) -> Iterator[slice]:
    """Cut a batch into runs of rows that fit one request each: by number of keys, by their bytes
    and, with `block_bytes`, by the bytes of the blocks."""
    bytes_max = REQUEST_BLOCK_BYTES_MAX if block_bytes_max is None else block_bytes_max
    small = len(names) <= min(BATCH_KEYS_MAX, REQUEST_KEY_BYTES_MAX // KEY_BYTES_MAX)
    if small and sum(block_bytes or ()) <= bytes_max:
        if names:
            yield slice(0, len(names))
        return
    start = key_total = block_total = 0
    for row, name in enumerate(names):
        block = block_bytes[row] if block_bytes is not None else 0
        key_total += len(name)
        block_total += block
        full = (
            row - start == BATCH_KEYS_MAX
            or key_total > REQUEST_KEY_BYTES_MAX
            or block_total > bytes_max
        )
        if full and row > start:
            yield slice(start, row)
            start, key_total, block_total = row, len(name), block
    yield slice(start, len(names))
