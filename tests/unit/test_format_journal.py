"""Journal records: torn tails, damaged middles, foreign and unknown records."""

from __future__ import annotations

import pytest
from repository_kit import table_of

from snapd.errors import CorruptError, NewerFormatError
from snapd.formats import journal
from snapd.formats.journal import (
    RECORD_DTYPE,
    decode_records,
    encode_incarnation,
    encode_remove_all,
    encode_removed,
)
from snapd.formats.removals import Removals
from snapd.formats.repository import decode_repository, encode_repository
from snapd.formats.tables import Incarnation

REPOSITORY = bytes(range(16))


def removals(*keys: bytes, sequence: int = 5) -> Removals:
    return Removals.of_blocks(table_of(keys, [b"x"] * len(keys), sequence=sequence, epoch=2))


RECORDS = [
    encode_removed(removals(b"a", b"bb"), 0, REPOSITORY),
    encode_incarnation(Incarnation(4, b"s" * 16, 7), 1, REPOSITORY),
    encode_remove_all(9, 2, REPOSITORY),
    encode_removed(removals(b"ccc"), 3, REPOSITORY),
]


def keys_in(raw: bytes) -> list[bytes]:
    found = decode_records(raw, REPOSITORY).removals
    return Removals.concatenate(found).keys.to_list()


def test_records_come_back() -> None:
    contents = decode_records(b"".join(RECORDS), REPOSITORY)
    assert [one.keys.to_list() for one in contents.removals] == [[b"a", b"bb"], [b"ccc"]]
    assert (contents.removals[0].sequence == 5).all()
    assert (contents.removals[0].epoch == 2).all()
    assert contents.epoch == 9
    assert contents.incarnations == [Incarnation(4, b"s" * 16, 7)]
    assert (contents.records, contents.damaged, contents.torn_bytes, contents.unknown) == (
        4,
        0,
        0,
        0,
    )


def test_a_tail_torn_anywhere_costs_only_the_records_in_it() -> None:
    raw = b"".join(RECORDS)
    ends = [sum(len(record) for record in RECORDS[: n + 1]) for n in range(4)]
    for length in range(len(raw)):
        contents = decode_records(raw[:length], REPOSITORY)
        assert contents.records == sum(end <= length for end in ends)
        assert contents.damaged == 0
        whole = max([0, *(end for end in ends if end <= length)])
        assert contents.torn_bytes == length - whole


def test_damage_in_the_middle_costs_only_that_record_and_is_counted() -> None:
    raw = b"".join(RECORDS)
    for at in range(len(RECORDS[0]), len(RECORDS[0]) + len(RECORDS[1])):
        bad = bytearray(raw)
        bad[at] ^= 0x20
        contents = decode_records(bytes(bad), REPOSITORY)
        assert contents.records == 3, at
        assert contents.damaged == 1, at
        assert keys_in(bytes(bad)) == [b"a", b"bb", b"ccc"]


def test_every_flipped_byte_costs_at_most_one_record() -> None:
    raw = b"".join(RECORDS)
    for at in range(len(raw)):
        bad = bytearray(raw)
        bad[at] ^= 0x01
        contents = decode_records(bytes(bad), REPOSITORY)
        assert contents.records == 3, at
        assert contents.damaged or contents.torn_bytes


def test_zeros_after_the_end_are_a_torn_tail() -> None:
    contents = decode_records(b"".join(RECORDS) + bytes(4096), REPOSITORY)
    assert (contents.records, contents.damaged, contents.torn_bytes) == (4, 0, 4096)


def test_records_of_another_repository_never_verify() -> None:
    contents = decode_records(b"".join(RECORDS), b"other repository")
    assert contents.records == 0
    assert contents.torn_bytes


def test_a_kind_that_is_not_known_is_counted_and_not_damage() -> None:
    unknown = journal._encode(77, b"future", 0, 1, REPOSITORY)  # type: ignore[arg-type]
    contents = decode_records(RECORDS[0] + unknown + RECORDS[3], REPOSITORY)
    assert (contents.records, contents.unknown, contents.damaged) == (3, 1, 0)


def test_a_record_that_verifies_and_makes_no_sense_is_damage() -> None:
    for payload, rows in ((b"", 3), (b"\xff" * 60, 2), (b"", 1 << 30)):
        bad = journal._encode(journal.RecordKind.REMOVED, payload, rows, 0, REPOSITORY)
        contents = decode_records(bad + RECORDS[3], REPOSITORY)
        assert contents.damaged == 1
        assert contents.records == 1


def test_records_are_aligned() -> None:
    assert all(len(record) % 8 == 0 for record in RECORDS)
    assert RECORD_DTYPE.itemsize == 40


def test_repository_file() -> None:
    raw = encode_repository(REPOSITORY)
    assert decode_repository(raw) == REPOSITORY
    for length in range(len(raw) - 2):
        with pytest.raises(CorruptError):
            decode_repository(raw[:length])
    with pytest.raises(NewerFormatError):
        decode_repository(raw.replace(b'"format_version": 1', b'"format_version": 2'))
    with pytest.raises(CorruptError):
        decode_repository(raw.replace(b"0001", b"zz01"))
    assert decode_repository(raw.replace(b"{", b'{"later": [1, 2], ', 1)) == REPOSITORY
