"""Page ids: which page of a token sequence a key belongs to.

SGLang names the parts of a page by the SHA-256 of its chain of tokens, with rank and kind behind
it: `[<tag>_][<model>_]<64 hex digits>_<tp rank>[_<pp rank>]_k`. The first 16 of those digits are
the page's id. So K and V, tensor-parallel ranks and nodes that hold parts of a page name it alike
without talking to each other, and whoever looks a page up can name it without knowing the keys.

The tokens are the same under every model, so the number of a key's label is part of the id as well:
pages of weights that are gone cool, whatever is asked of those in use.

64 bits of SHA-256: among a million pages two share an id once in 37 million times. They would then
share their heat, no more: an id says what is worth keeping, never whose bytes these are.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence

import numpy as np

from snapd.blocks.keys import I64, U8, U64, Bools, KeyColumn
from snapd.blocks.labels import MARK_BYTE, label_numbers

HASH_DIGITS = 64
"""Hex digits of a page's hash in a key."""

ID_DIGITS = 16
"""Of these, the first so many are the page's id."""

_ROWS_AT_A_TIME = 65_536
"""Keys looked at together, which bounds what is held beside the result."""

_RUN = re.compile(rb"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")

_NOT_HEX = 255
_DIGIT = np.full(256, _NOT_HEX, np.uint8)
_DIGIT[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16, dtype=np.uint8)
"""Value of a lower-case hex digit by its byte."""


def page_id(name: str | bytes, label: int = 0) -> int:
    """The page that a key, or a page's bare hash, belongs to; 0 where it names none.

    The hash is a run of exactly 64 lower-case hex digits; of several such runs it is the last,
    because a tag or a model's name comes before it. `label` is the number of the label that the key
    has, where this is not the whole key (`snapd.blocks.labels`).
    """
    raw = name.encode() if isinstance(name, str) else name
    runs = _RUN.findall(raw)
    if not runs:
        return 0
    if not label and MARK_BYTE in raw:
        label = int(label_numbers(KeyColumn.from_list([raw]))[0])
    return int(runs[-1][:ID_DIGITS], 16) ^ label


def page_ids_of_hashes(hashes: Sequence[str], label: int = 0) -> U64:
    """The pages with these bare hashes, uint64 [n]; as `page_id` of each, in a tenth of the time,
    for those who ask on a request's way."""
    digits = "".join([one[:ID_DIGITS] for one in hashes])
    if set(map(len, hashes)) == {HASH_DIGITS} and digits.lower() == digits:
        with contextlib.suppress(ValueError):
            raw = bytes.fromhex(digits)  # which passes over blanks
            if len(raw) == len(hashes) * 8:
                return np.frombuffer(raw, ">u8").astype(np.uint64) ^ np.uint64(label)
    return np.array([page_id(one, label) for one in hashes], np.uint64)


def page_ids(keys: KeyColumn) -> U64:
    """The page of each of n keys, uint64 [n]; 0 where a key names none. As `page_id`."""
    result = np.zeros(len(keys), np.uint64)
    for first in range(0, len(keys), _ROWS_AT_A_TIME):
        last = min(first + _ROWS_AT_A_TIME, len(keys))
        offsets = keys.offsets[first : last + 1]
        digits = _DIGIT[keys.heap[offsets[0] : offsets[-1]]]
        begins = offsets[:-1] - offsets[0]
        starts = _runs_of_a_hash(digits, begins)
        if not len(starts):
            continue
        # An empty key begins where the next one does; the run is in the last that begins there.
        rows = np.searchsorted(begins, starts, side="right") - 1
        # Where a key has several runs, the last assignment stays, which is the last run's.
        result[first + rows] = _first_digits(digits, starts)
    named = result != 0
    result[named] ^= label_numbers(keys)[named]
    return result


def _runs_of_a_hash(digits: U8, begins: I64) -> I64:
    """Where runs of exactly `HASH_DIGITS` digits begin, ascending; none reaches over a key's
    begin."""
    count = len(digits)
    is_digit: Bools = digits != _NOT_HEX
    breaks = np.zeros(count + 1, np.bool_)
    breaks[begins] = True
    breaks[count] = True
    opens = is_digit.copy()
    opens[1:] &= ~is_digit[:-1] | breaks[1:count]
    closes = is_digit.copy()
    closes[:-1] &= ~is_digit[1:] | breaks[1:count]
    starts, ends = np.flatnonzero(opens), np.flatnonzero(closes)
    whole: I64 = starts[ends - starts == HASH_DIGITS - 1]
    return whole


def _first_digits(digits: U8, starts: I64) -> U64:
    """The number that the first `ID_DIGITS` digits from each start make, uint64 [n]."""
    value = np.zeros(len(starts), np.uint64)
    for at in range(ID_DIGITS):
        value = (value << np.uint64(4)) | digits[starts + at].astype(np.uint64)
    return value
