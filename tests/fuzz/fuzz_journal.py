"""Journals: the records behind the header."""

from __future__ import annotations

import contextlib
import random

import numpy as np
from format_mutators import mutate_journal
from repository_kit import table_of

from snapd.errors import CorruptError, NewerFormatError
from snapd.formats.journal import (
    RecordPlace,
    decode_records,
    encode_batch,
    encode_incarnation,
    encode_remove_all,
    encode_removed,
)
from snapd.formats.removals import COLUMN_DTYPES, Removals
from snapd.formats.sealed import (
    JOURNAL_MAGIC,
    PAGE_BYTES,
    FileHeader,
    decode_header,
    encode_header,
)
from snapd.formats.tables import Incarnation

_ID = b"repository-fuzz!"


def _removals(rows: int) -> Removals:
    keys = [b"key-%d" % row for row in range(rows)]
    return Removals.of_blocks(table_of(keys, [b"x"] * rows, sequence=list(range(rows))))


def seeds() -> list[bytes]:
    """A header and records of all kinds."""
    header = encode_header(FileHeader(JOURNAL_MAGIC, _ID, b"journal-fuzzing!", 3))
    batches = [
        [
            encode_incarnation(Incarnation(1, b"s" * 16, 0), RecordPlace(0, 1), _ID),
            encode_removed(_removals(3), RecordPlace(1, 2), _ID),
        ],
        [encode_remove_all(2, RecordPlace(2, 1), _ID)],
        [encode_removed(_removals(40), RecordPlace(3, 1), _ID)],
    ]
    once = encode_removed(_removals(1), RecordPlace(4, 0), _ID)
    files = [
        header + b"".join(b"".join(encode_batch(batch)) for batch in batches[:count])
        for count in range(1, len(batches) + 1)
    ]
    return [*files, header + once, files[-1] + once]


def mutate(data: bytes, rng: random.Random) -> bytes:
    return mutate_journal(data, rng)


def check(data: bytes) -> None:
    """Decode; every removal that is accepted is well formed, and the same when written again."""
    identity = _ID
    # Records are bound to the repository by their seed, and read behind a bad header as well.
    with contextlib.suppress(CorruptError, NewerFormatError):
        identity = decode_header(data[:PAGE_BYTES], JOURNAL_MAGIC).repository_id
    body = data[PAGE_BYTES:]
    contents = decode_records(body, identity)
    for removals in contents.removals:
        assert len(removals.keys) == len(removals)
        assert all(removals.keys.to_list()), "a key is empty"
        again = decode_records(encode_removed(removals, RecordPlace(0, 0), identity), identity)
        assert again.lost == 0
        assert len(again.removals) == 1
        assert again.removals[0].keys.to_list() == removals.keys.to_list()
        for name in COLUMN_DTYPES:
            assert np.array_equal(getattr(again.removals[0], name), getattr(removals, name)), name
    Removals.concatenate(contents.removals)
    for one in contents.incarnations:
        assert len(one.segment_id) == len(_ID)
