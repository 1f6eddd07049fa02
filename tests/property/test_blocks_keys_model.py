"""KeyColumn against a list of bytes."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from snapd.blocks import KeyColumn, hash_keys

# A small alphabet, so that equal keys and shared prefixes happen.
keys_lists = st.lists(
    st.binary(max_size=6) | st.text("ab", max_size=5).map(str.encode), max_size=30
)


@given(keys_lists)
def test_a_column_is_its_list(keys: list[bytes]) -> None:
    column = KeyColumn.from_list(keys)
    assert column.to_list() == keys
    assert [column[row] for row in range(len(keys))] == keys
    assert column.lengths.tolist() == [len(key) for key in keys]
    assert column.hashes().tolist() == hash_keys(keys).tolist()


@given(keys_lists, st.data())
def test_take_is_indexing(keys: list[bytes], data: st.DataObject) -> None:
    column = KeyColumn.from_list(keys)
    places = st.integers(0, max(len(keys) - 1, 0))
    rows = data.draw(st.lists(places, max_size=40 if keys else 0))
    assert column.take(np.array(rows, np.uint32)).to_list() == [keys[row] for row in rows]
    mask = data.draw(st.lists(st.booleans(), min_size=len(keys), max_size=len(keys)))
    kept = [key for key, keep in zip(keys, mask, strict=True) if keep]
    assert column.take(np.array(mask, np.bool_)).to_list() == kept


@given(keys_lists, keys_lists)
def test_equal_is_equality_of_bytes(left: list[bytes], right: list[bytes]) -> None:
    pairs = [(i, j) for i in range(len(left)) for j in range(len(right))]
    i_rows = np.array([i for i, _ in pairs], np.int64)
    j_rows = np.array([j for _, j in pairs], np.int64)
    same = KeyColumn.from_list(left).equal(i_rows, KeyColumn.from_list(right), j_rows)
    assert same.tolist() == [left[i] == right[j] for i, j in pairs]


@given(keys_lists, st.text("ab", max_size=3).map(str.encode))
def test_starts_with_is_startswith(keys: list[bytes], prefix: bytes) -> None:
    found = KeyColumn.from_list(keys).starts_with(prefix)
    assert found.tolist() == [key.startswith(prefix) for key in keys]


@given(st.lists(keys_lists, max_size=5))
def test_concatenate_is_addition(lists: list[list[bytes]]) -> None:
    columns = [KeyColumn.from_list(keys) for keys in lists]
    assert KeyColumn.concatenate(columns).to_list() == [key for keys in lists for key in keys]
