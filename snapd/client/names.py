"""Keys of a batch as they travel: the caller's, each with the tag of the client's label behind it.

Nobody else in the client knows of tags: callers name keys without one and get them without one.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Sequence

from snapd.blocks import KEY_BYTES_MAX
from snapd.blocks.labels import TAG_BYTES
from snapd.wire.framing import FRAME_BYTES_MAX
from snapd.wire.messages import BATCH_KEYS_MAX, KeyBatch

REQUEST_KEY_BYTES_MAX = FRAME_BYTES_MAX // 2
"""Most key bytes in one request; the columns beside them fit into the rest of a frame."""

REQUEST_BLOCK_BYTES_MAX = 2**30
"""Most block bytes that one request reserves or puts under lease, unless one block has more."""


_TAGGED = re.compile(rb"\x1f[0-9a-f]{16}\Z")


def encode_names(names: Sequence[bytes], tag: bytes = b"") -> KeyBatch:
    """Keys as a message has them: each of these with `tag` behind it, together 1 to
    `KEY_BYTES_MAX` bytes."""
    if not tag:
        return KeyBatch(b"".join(names), array("H", map(len, names)).tobytes())
    heap = tag.join((*names, b""))
    return KeyBatch(heap, array("H", [len(name) + len(tag) for name in names]).tobytes())


def strip_tag(name: bytes) -> bytes:
    """A key as its caller named it: without the tag that it ends with, if it does."""
    return name[:-TAG_BYTES] if len(name) > TAG_BYTES and _TAGGED.search(name) else name


def usable_rows(names: Sequence[bytes], tag: bytes = b"") -> Sequence[int]:
    """Rows of the keys that a client with this tag can name: at least 1 byte, with the tag at most
    `KEY_BYTES_MAX`, and not ending like a tag, which would make it the key of another label."""
    longest = KEY_BYTES_MAX - len(tag)
    lengths = list(map(len, names))
    fit = bool(names) and min(lengths) > 0 and max(lengths) <= longest
    if fit and b"\x1f" not in b"".join(names):
        return range(len(names))
    return [
        row
        for row, name in enumerate(names)
        if 0 < len(name) <= longest and not _TAGGED.search(name)
    ]


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
