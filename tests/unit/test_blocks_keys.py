"""KeyColumn at its edges: empty, very long, more rows than one gather, columns cut from others."""

import numpy as np
import pytest
import xxhash

from snapd.blocks import KEY_BYTES_MAX, KeyColumn, hash_keys
from snapd.blocks.keys import _GATHER_ROWS

MANY = _GATHER_ROWS * 2 + 17


def mixed_keys(count: int) -> list[bytes]:
    return [b"%d" % (row * row * 7919) for row in range(count)]


def test_an_empty_column_supports_every_operation() -> None:
    column = KeyColumn.empty()
    none = np.empty(0, np.int64)
    assert len(column) == 0
    assert column.to_list() == []
    assert column.hashes().shape == (0,)
    assert column.take(none).to_list() == []
    assert column.take(np.empty(0, np.bool_)).to_list() == []
    assert column.equal(none, column, none).shape == (0,)
    assert column.starts_with(b"x").shape == (0,)
    assert KeyColumn.concatenate([]).to_list() == []
    assert KeyColumn.concatenate([column, column]).to_list() == []
    assert KeyColumn.from_list([]).to_list() == []


def test_hashes_are_the_published_xxh3_of_the_bytes() -> None:
    keys = [b"", b"a", b"key/1", bytes(range(256)) * 4]
    expected = [xxhash.xxh3_64_intdigest(key) for key in keys]
    assert KeyColumn.from_list(keys).hashes().tolist() == expected
    assert hash_keys(keys).tolist() == expected
    # A known value, so that a change of the library or the function cannot go unnoticed: hashes are
    # in files and segments.
    assert hash_keys([b""]).tolist() == [0x2D06800538D394C2]


def test_the_longest_key_and_the_one_byte_key_survive() -> None:
    keys = [b"k" * KEY_BYTES_MAX, b"k", b"\x00" * KEY_BYTES_MAX, b"\x00"]
    column = KeyColumn.from_list(keys)
    assert column.to_list() == keys
    assert [column[row] for row in range(4)] == keys
    assert column.lengths.tolist() == [KEY_BYTES_MAX, 1, KEY_BYTES_MAX, 1]
    assert column.nbytes == 2 * KEY_BYTES_MAX + 2 + 5 * 8


def test_take_gathers_more_rows_than_one_chunk_in_the_order_asked_for() -> None:
    keys = mixed_keys(MANY)
    column = KeyColumn.from_list(keys)
    rows = np.random.default_rng(1).permutation(MANY)
    assert column.take(rows).to_list() == [keys[row] for row in rows]
    mask = np.zeros(MANY, np.bool_)
    mask[rows[: MANY // 2]] = True
    assert column.take(mask).to_list() == [keys[row] for row in np.flatnonzero(mask)]


def test_take_of_equal_lengths_gives_the_same_as_of_mixed_ones() -> None:
    keys = [b"%06d" % row for row in range(MANY)]
    rows = np.arange(MANY)[::-3]
    assert KeyColumn.from_list(keys).take(rows).to_list() == [keys[row] for row in rows]


def test_equal_compares_more_rows_than_one_chunk_on_their_full_bytes() -> None:
    keys = mixed_keys(MANY)
    changed = list(keys)
    differing = [0, 1, _GATHER_ROWS - 1, _GATHER_ROWS, MANY - 1]
    for row in differing:
        changed[row] = keys[row][:-1] + b"x"  # of the same length, different in the last byte
    rows = np.arange(MANY)
    same = KeyColumn.from_list(keys).equal(rows, KeyColumn.from_list(changed), rows)
    assert np.flatnonzero(~same).tolist() == differing


def test_equal_does_not_take_a_prefix_for_the_key() -> None:
    left = KeyColumn.from_list([b"ab", b"abc", b"", b"a"])
    right = KeyColumn.from_list([b"abc", b"ab", b"a", b""])
    rows = np.arange(4)
    assert left.equal(rows, right, rows).tolist() == [False] * 4


def test_starts_with_reaches_over_chunks_and_ignores_keys_that_are_too_short() -> None:
    keys = mixed_keys(MANY)
    found = KeyColumn.from_list(keys).starts_with(b"79")
    assert found.tolist() == [key.startswith(b"79") for key in keys]


def test_a_column_that_begins_inside_its_heap_concatenates_only_its_own_keys() -> None:
    whole = KeyColumn.from_list([b"one", b"two", b"three", b"four"])
    middle = KeyColumn(whole.heap, whole.offsets[1:4])
    assert middle.to_list() == [b"two", b"three"]
    assert KeyColumn.concatenate([middle, middle]).to_list() == [b"two", b"three"] * 2
    assert middle.take(np.array([1, 0])).to_list() == [b"three", b"two"]
    assert middle.hashes().tolist() == hash_keys([b"two", b"three"]).tolist()


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64, np.uint64])
def test_lengths_of_any_integer_type_are_accepted(dtype: type[np.integer]) -> None:
    heap = np.frombuffer(b"abcde", np.uint8)
    assert KeyColumn.from_lengths(heap, np.array([2, 0, 3], dtype)).to_list() == [
        b"ab",
        b"",
        b"cde",
    ]


@pytest.mark.parametrize("lengths", [[2, 2], [6], [], [-1, 6], [7, -2]])
def test_lengths_that_do_not_add_up_to_the_heap_are_refused(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="lengths add up"):
        KeyColumn.from_lengths(np.zeros(5, np.uint8), np.array(lengths, np.int64))
