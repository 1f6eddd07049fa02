"""Labels of blocks, and the tag that carries one in a key.

A label (a *fingerprint*) says under which model, dtype, layout and weights a block's bytes mean
something. Keys of two labels may be equal although their bytes are not, so the label is part of the
key: behind a key of a labelled client come a mark, 0x1F, and the label's number as 16 hexadecimal
digits. Whoever has a key knows its label's number, from memory, from a pack, or after anything was
lost; the text is only for people. Keys of unlabelled clients have no tag, and no client can name a
key that ends like one.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
import xxhash

from snapd.blocks.keys import U8, U64, Bools, KeyColumn, gather_ranges

LABEL_LENGTH_MAX = 1024
"""Characters of the longest label that a client may say."""

MARK_BYTE = b"\x1f"
"""ASCII's unit separator: nobody types it, and no key of SGLang has it."""

TAG_BYTES = 17
"""The mark, and a number's 16 digits."""

Scalar = str | int | float | bool | None
"""A value that a label may name."""

_DIGITS = b"0123456789abcdef"
_DIGIT_VALUES: U8 = np.full(256, 0xFF, np.uint8)
_DIGIT_VALUES[np.frombuffer(_DIGITS, np.uint8)] = np.arange(16)
"""Of each byte; 0xFF where it is no digit."""

_NUMBER_NAME = "xxh3_64="
_SAFE = "/.:@+,-_"


def label_text(values: Mapping[str, Scalar], *, length_max: int = LABEL_LENGTH_MAX) -> str:
    """The label that says these values: `key=value`, sorted by key, separated by spaces; blanks and
    the like in a value are percent-encoded. None, "" and "{}" say nothing. One of more than
    `length_max` characters is named by its digest."""
    label = " ".join(
        f"{name}={quote(_text(value), safe=_SAFE)}"
        for name, value in sorted(values.items())
        if value is not None and value not in {"", "{}"}
    )
    if len(label) > length_max:
        return f"xxh3_128={xxhash.xxh3_128_hexdigest(label.encode())}"
    return label


def label_number(label: str) -> int:
    """The number of a label: XXH3-64 of its UTF-8, but never 0; 0 for the empty label."""
    return (xxhash.xxh3_64_intdigest(label.encode()) or 1) if label else 0


def label_tag(label: str) -> bytes:
    """What stands behind the keys of a label, `TAG_BYTES` bytes; nothing for the empty label."""
    return MARK_BYTE + b"%016x" % label_number(label) if label else b""


def number_as_label(number: int) -> str:
    """What a label is called whose text nobody knows any more; "" for 0."""
    return f"{_NUMBER_NAME}{number:016x}" if number else ""


def number_of_recorded(label: str) -> int:
    """The number of a label in a repository's table, where some are called by it."""
    digits = label.removeprefix(_NUMBER_NAME)
    named = label.startswith(_NUMBER_NAME) and len(digits) == TAG_BYTES - 1
    if named and all(digit in _DIGITS for digit in digits.encode()):
        return int(digits, 16)
    return label_number(label)


def label_numbers(keys: KeyColumn) -> U64:
    """The number of the label that each key is tagged with, uint64 [n]; 0 where there is no tag."""
    numbers = np.zeros(len(keys), np.uint64)
    ends = keys.offsets[1:]
    tagged = np.flatnonzero(keys.lengths > TAG_BYTES)
    tagged = tagged[keys.heap[ends[tagged] - TAG_BYTES] == MARK_BYTE[0]]
    if not len(tagged):
        return numbers
    width = TAG_BYTES - 1
    digits = gather_ranges(keys.heap, ends[tagged] - width, np.full(len(tagged), width))
    values = _DIGIT_VALUES[digits].reshape(-1, width)
    number = (values[:, ::2] << 4 | values[:, 1::2]).view(">u8").reshape(-1)
    numbers[tagged] = np.where((values < len(_DIGITS)).all(axis=1), number, 0)
    return numbers


def tagged_with(keys: KeyColumn, tag: bytes) -> Bools:
    """Whether each key has this tag, bool [n]; with an empty one, whether it has none."""
    if not tag:
        result: Bools = label_numbers(keys) == 0
        return result
    result = keys.lengths > TAG_BYTES
    ends = keys.offsets[1:][result]
    tails = gather_ranges(keys.heap, ends - TAG_BYTES, np.full(len(ends), TAG_BYTES))
    result[result] = (tails.reshape(-1, TAG_BYTES) == np.frombuffer(tag, np.uint8)).all(axis=1)
    return result


def without_tags(keys: KeyColumn) -> KeyColumn:
    """The keys as their clients name them, n keys: those that have a tag without it."""
    lengths = keys.lengths - TAG_BYTES * (label_numbers(keys) != 0)
    heap = gather_ranges(keys.heap, keys.offsets[:-1], lengths)
    return KeyColumn.from_lengths(heap, lengths)


def short_numbers(numbers: U64) -> npt.NDArray[np.uint16]:
    """Numbers in 16 bits, for counting: uint16 [n], 0 only for 0. Two labels may share one."""
    low = numbers & np.uint64(0xFFFF)
    low[(low == 0) & (numbers != 0)] = 1
    short: npt.NDArray[np.uint16] = low.astype(np.uint16)
    return short


def _text(value: Scalar) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
