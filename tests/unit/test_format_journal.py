"""Journal records: torn tails, damaged middles, foreign and unknown records."""

from __future__ import annotations

import contextlib

import pytest
from repository_kit import table_of

from snapd.errors import CorruptError, NewerFormatError
from snapd.formats import journal
from snapd.formats.journal import (
    RECORD_DTYPE,
    JournalContents,
    RecordPlace,
    decode_records,
    encode_batch,
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


def record_of(number: int, place: int) -> bytes:
    """The record of this number, as a part of a batch or (place 0) written once."""
    at = RecordPlace(number, place)
    return (
        encode_removed(removals(b"a", b"bb"), at, REPOSITORY),
        encode_incarnation(Incarnation(4, b"s" * 16, 7), at, REPOSITORY),
        encode_remove_all(9, at, REPOSITORY),
        encode_removed(removals(b"ccc"), at, REPOSITORY),
    )[number]


RECORDS = [record_of(number, 0) for number in range(4)]
BATCHES = [
    b"".join(encode_batch([record_of(0, 1), record_of(1, 2)])),
    b"".join(encode_batch([record_of(2, 1)])),
    b"".join(encode_batch([record_of(3, 1)])),
]


def keys_in(raw: bytes) -> list[bytes]:
    found = decode_records(raw, REPOSITORY).removals
    return Removals.concatenate(found).keys.to_list()


def losses(contents: JournalContents) -> tuple[int, int, int]:
    return contents.lost, contents.copies_damaged, contents.stretches_damaged


def test_records_come_back() -> None:
    contents = decode_records(b"".join(RECORDS), REPOSITORY)
    assert [one.keys.to_list() for one in contents.removals] == [[b"a", b"bb"], [b"ccc"]]
    assert (contents.removals[0].sequence == 5).all()
    assert (contents.removals[0].epoch == 2).all()
    assert contents.epoch == 9
    assert contents.incarnations == [Incarnation(4, b"s" * 16, 7)]
    assert (contents.records, contents.torn_bytes, contents.unknown) == (4, 0, 0)
    assert losses(contents) == (0, 0, 0)


def test_a_tail_torn_anywhere_costs_only_the_records_in_it() -> None:
    raw = b"".join(RECORDS)
    ends = [sum(len(record) for record in RECORDS[: n + 1]) for n in range(4)]
    for length in range(len(raw)):
        contents = decode_records(raw[:length], REPOSITORY)
        assert contents.records == sum(end <= length for end in ends)
        assert losses(contents) == (0, 0, 0)
        whole = max([0, *(end for end in ends if end <= length)])
        assert contents.torn_bytes == length - whole


def test_damage_in_the_middle_costs_only_that_record_and_is_counted() -> None:
    raw = b"".join(RECORDS)
    for at in range(len(RECORDS[0]), len(RECORDS[0]) + len(RECORDS[1])):
        bad = bytearray(raw)
        bad[at] ^= 0x20
        contents = decode_records(bytes(bad), REPOSITORY)
        assert contents.records == 3, at
        assert losses(contents) == (0, 0, 1), at
        assert keys_in(bytes(bad)) == [b"a", b"bb", b"ccc"]


def test_every_flipped_byte_costs_at_most_one_record() -> None:
    raw = b"".join(RECORDS)
    for at in range(len(raw)):
        bad = bytearray(raw)
        bad[at] ^= 0x01
        contents = decode_records(bytes(bad), REPOSITORY)
        assert contents.records == 3, at
        assert contents.stretches_damaged or contents.torn_bytes


def test_zeros_after_the_end_are_a_torn_tail() -> None:
    contents = decode_records(b"".join(RECORDS) + bytes(4096), REPOSITORY)
    assert (contents.records, contents.torn_bytes) == (4, 4096)
    assert losses(contents) == (0, 0, 0)


def test_records_of_another_repository_never_verify() -> None:
    contents = decode_records(b"".join(RECORDS), b"other repository")
    assert contents.records == 0
    assert contents.torn_bytes


def test_a_kind_that_is_not_known_is_counted_and_not_damage() -> None:
    at = RecordPlace(1, 0)
    unknown = journal._encode(77, b"future", 0, at, REPOSITORY)  # type: ignore[arg-type]
    contents = decode_records(RECORDS[0] + unknown + RECORDS[3], REPOSITORY)
    assert (contents.records, contents.unknown) == (3, 1)
    assert losses(contents) == (0, 0, 0)


def test_a_record_that_verifies_and_makes_no_sense_is_damage() -> None:
    for payload, rows in ((b"", 3), (b"\xff" * 60, 2), (b"", 1 << 30)):
        at = RecordPlace(0, 0)
        bad = journal._encode(journal.RecordKind.REMOVED, payload, rows, at, REPOSITORY)
        contents = decode_records(bad + RECORDS[3], REPOSITORY)
        assert contents.stretches_damaged == 1
        assert contents.records == 1


def test_a_batch_is_there_twice_and_no_page_holds_bytes_of_both_copies() -> None:
    raw = BATCHES[0]
    assert len(raw) == 8192
    assert raw[:4096] == raw[4096:]
    contents = decode_records(raw, REPOSITORY)
    assert [one.keys.to_list() for one in contents.removals] == [[b"a", b"bb"]]
    assert contents.records == 2
    assert losses(contents) == (0, 0, 0)


@pytest.mark.parametrize("page", range(6))
def test_any_one_bad_page_loses_nothing_and_is_told(page: int) -> None:
    raw = bytearray(b"".join(BATCHES))
    raw[page * 4096 : (page + 1) * 4096] = bytes(4096)
    contents = decode_records(bytes(raw), REPOSITORY)
    assert contents.records == 4
    # Of the last batch nobody knows whether both copies were ever there.
    told = {0: 2, 1: 2, 2: 1, 3: 1, 4: 0, 5: 0}[page]
    assert losses(contents) == (0, told, 0)


def test_what_both_copies_lost_is_counted_when_a_later_batch_proves_that_it_was_durable() -> None:
    raw = bytearray(b"".join(BATCHES))
    raw[:8192] = bytes(8192)
    contents = decode_records(bytes(raw), REPOSITORY)
    assert contents.records == 2
    assert losses(contents) == (2, 0, 0)
    half = bytearray(b"".join(BATCHES))
    first = len(record_of(0, 1))
    half[first : first + 8] = half[4096 + first : 4096 + first + 8] = bytes(8)
    contents = decode_records(bytes(half), REPOSITORY)
    assert contents.records == 3
    assert losses(contents) == (1, 0, 0)


def test_a_torn_last_batch_is_no_damage_whatever_is_left_of_it() -> None:
    last = encode_batch([record_of(2, 1), record_of(3, 2)])
    raw = BATCHES[0] + b"".join(last)
    for kept in range(2**4):
        torn = bytearray(raw)
        at = len(BATCHES[0])
        for piece, data in enumerate((last[0], last[1], last[3], last[4])):
            start = at + (4096 if piece > 1 else 0) + (len(last[0]) if piece % 2 else 0)
            if not kept >> piece & 1:
                torn[start : start + len(data)] = bytes(len(data))
        contents = decode_records(bytes(torn), REPOSITORY)
        assert losses(contents) == (0, 0, 0), kept
        found = {number for piece, number in enumerate((2, 3, 2, 3)) if kept >> piece & 1}
        assert contents.records == 2 + len(found), kept


def test_a_number_without_any_sense_is_no_crash() -> None:
    far = encode_remove_all(3, RecordPlace(2**64 - 1, 1), REPOSITORY)
    assert decode_records(far, REPOSITORY).lost == 2**64 - 1
    before = encode_remove_all(3, RecordPlace(0, 9), REPOSITORY)
    assert losses(decode_records(before, REPOSITORY)) == (0, 0, 0)


def test_a_record_inside_the_key_of_another_is_not_a_record_of_its_own() -> None:
    inner = encode_remove_all(77, RecordPlace(9, 0), REPOSITORY)
    pad = next(n for n in range(8) if (40 + 26 + n) % 8 == 0)
    outer = encode_removed(removals(b"k" * pad + inner), RecordPlace(0, 0), REPOSITORY)
    contents = decode_records(outer, REPOSITORY)
    assert contents.epoch == 0
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
    newer = raw.replace(b'"format_version": 1', b'"format_version": 2')
    with pytest.raises(CorruptError, match="checksum"):
        decode_repository(newer)
    for bit in range(8 * len(raw)):
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << bit % 8
        with contextlib.suppress(CorruptError):
            assert decode_repository(bytes(changed)) == REPOSITORY
    older = newer.replace(b'"checksum"', b'"something"')
    with pytest.raises(NewerFormatError):
        decode_repository(older)
    assert decode_repository(older.replace(b": 2", b": 1")) == REPOSITORY
    with pytest.raises(CorruptError):
        decode_repository(raw.replace(b"0001", b"zz01"))
    assert decode_repository(raw.replace(b"{", b'{"later": [1, 2], ', 1)) == REPOSITORY
