"""Columns of a request: decoded, and cut where one key occurs more than once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from snapd.blocks.keys import I64, U64, Bools
from snapd.store.keys import PaddedKeys
from snapd.wire.codes import ReturnCode
from snapd.wire.messages import Codes, KeyBatch, Reserved, decode_column, decode_keys

I32 = npt.NDArray[np.int32]

DUPLICATES_MAX = 16
"""Most occurrences of one key in a batch that are carried out one after another."""


def padded_keys(batch: KeyBatch, hashes: U64 | None = None) -> PaddedKeys:
    """The keys of a request. Raises ProtocolError."""
    return PaddedKeys(decode_keys(batch), hashes)


def slots_and_sequences(slots: bytes, sequences: bytes) -> tuple[I64, U64]:
    """Two columns of one length. Raises ProtocolError."""
    rows = decode_column(slots, np.uint32).astype(np.int64)
    return rows, decode_column(sequences, np.uint64, len(rows))


def rounds(hashes: U64) -> list[I64]:
    """Positions in rounds: none has a key twice, and a key's occurrences keep their order.

    Occurrences after `DUPLICATES_MAX` are in no round, so that a batch of one key over and over
    cannot hold the store up.
    """
    if all_differ(hashes):
        return [np.arange(len(hashes))]
    order = np.argsort(hashes, kind="stable")
    in_order = hashes[order]
    fresh = np.ones(len(hashes), np.bool_)
    fresh[1:] = in_order[1:] != in_order[:-1]
    at = np.arange(len(hashes))
    rank = np.empty(len(hashes), np.int64)
    rank[order] = at - np.maximum.accumulate(np.where(fresh, at, 0))
    last = min(int(rank.max()) + 1, DUPLICATES_MAX)
    return [np.flatnonzero(rank == number) for number in range(last)]


def all_differ(hashes: U64) -> bool:
    """Whether no hash occurs twice."""
    in_order = np.sort(hashes)
    return not bool((in_order[1:] == in_order[:-1]).any())


def first_of_key(keys: PaddedKeys) -> Bools:
    """Whether each key is the first of its kind in the batch, bool [n], on the full keys."""
    result: Bools = np.ones(len(keys), np.bool_)
    in_order = np.sort(keys.hashes)
    twice = in_order[1:][in_order[1:] == in_order[:-1]]
    seen: set[bytes] = set()
    if len(twice):
        for row in np.flatnonzero(np.isin(keys.hashes, twice)).tolist():
            key = keys.keys[row]
            result[row] = key not in seen
            seen.add(key)
    return result


def codes_reply(codes: I32) -> Codes:
    """`Codes` of int32 [n]."""
    return Codes(codes.astype(np.int32).tobytes())


def reserved_reply(codes: I32, slots: I64, sequences: U64, offsets: I64) -> Reserved:
    """`Reserved`, with zeros where the code is not 0."""
    good = codes == ReturnCode.OK
    return Reserved(
        codes.astype(np.int32).tobytes(),
        np.where(good, slots, 0).astype(np.uint32).tobytes(),
        np.where(good, sequences, 0).astype(np.uint64).tobytes(),
        np.where(good, offsets, 0).astype(np.uint64).tobytes(),
    )
