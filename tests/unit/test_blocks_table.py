"""BlockTable keeps its schema, whatever is done to it; versions have one total order."""

from dataclasses import fields

import numpy as np
import pytest

from snapd.blocks import BlockTable, KeyColumn, is_newer, version_order
from snapd.blocks.table import DTYPES


def table_of(count: int, seed: int = 0) -> BlockTable:
    """Random columns, so that a column taken for another is seen."""
    random = np.random.default_rng(seed)
    keys = KeyColumn.from_list([b"%d/%d" % (seed, row) for row in range(count)])
    columns = {
        name: random.random(count).astype(np.float32)
        if dtype.kind == "f"
        else random.integers(0, np.iinfo(dtype).max, count, dtype, endpoint=True)
        for name, dtype in DTYPES.items()
    }
    return BlockTable(keys=keys, **columns)


def rows_of(table: BlockTable) -> list[tuple[object, ...]]:
    columns = [getattr(table, name).tolist() for name in DTYPES]
    return list(zip(table.keys.to_list(), *columns, strict=True))


def test_a_fresh_table_has_the_keys_and_zeros() -> None:
    keys = KeyColumn.from_list([b"a", b"bc"])
    table = BlockTable.for_keys(keys, keys.hashes())
    assert len(table) == 2
    assert table.key_hash.tolist() == keys.hashes().tolist()
    for name in set(DTYPES) - {"key_hash"}:
        assert getattr(table, name).tolist() == [0, 0], name


def test_the_empty_table_has_the_schema() -> None:
    table = BlockTable.empty()
    assert len(table) == 0
    assert {name: getattr(table, name).dtype for name in DTYPES} == DTYPES
    assert len(BlockTable.concatenate([])) == 0


@pytest.mark.parametrize(
    "name", [field.name for field in fields(BlockTable) if field.name != "keys"]
)
def test_a_column_of_another_type_or_length_is_refused(name: str) -> None:
    columns = {other: np.zeros(2, dtype) for other, dtype in DTYPES.items()}
    keys = KeyColumn.from_list([b"a", b"b"])
    BlockTable(keys=keys, **columns)
    for wrong in (np.zeros(3, DTYPES[name]), np.zeros((2, 1), DTYPES[name]), np.zeros(2, np.int16)):
        with pytest.raises(ValueError, match=f"column {name} "):
            BlockTable(keys=keys, **{**columns, name: wrong})


def test_take_moves_whole_rows() -> None:
    table = table_of(50)
    rows = rows_of(table)
    order = np.random.default_rng(3).integers(0, 50, 70)
    assert rows_of(table.take(order)) == [rows[row] for row in order]
    mask = table.size % 2 == 0
    assert rows_of(table.take(mask)) == [row for row, keep in zip(rows, mask, strict=True) if keep]
    assert rows_of(table.take(np.empty(0, np.int64))) == []


def test_concatenate_keeps_rows_and_their_order() -> None:
    tables = [table_of(count, seed) for seed, count in enumerate([3, 0, 5, 1])]
    joined = BlockTable.concatenate(tables)
    assert rows_of(joined) == [row for table in tables for row in rows_of(table)]


def test_with_columns_casts_to_the_schema_and_leaves_the_original() -> None:
    table = table_of(4)
    before = rows_of(table)
    changed = table.with_columns(slot=np.arange(4), heat=np.array([1, 2, 3, 4]))
    assert changed.slot.tolist() == [0, 1, 2, 3]
    assert changed.heat.dtype == np.float32
    assert changed.sequence is table.sequence
    assert rows_of(table) == before
    with pytest.raises(KeyError):
        table.with_columns(no_such_column=np.arange(4))


def test_nbytes_counts_keys_and_columns() -> None:
    row_bytes = sum(dtype.itemsize for dtype in DTYPES.values())
    keys = KeyColumn.from_list([b"12345678"] * 1000)
    table = BlockTable.for_keys(keys, keys.hashes())
    assert table.nbytes == 1000 * row_bytes + 8 * 1000 + 8 * 1001
    # The daemon's memory budget is 250 bytes a block in all, with keys of 80 bytes.
    assert row_bytes + 8 + 80 < 200


def versions_of(rows: list[tuple[int, int, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    array = np.array(rows, np.uint64).reshape(-1, 3)
    return array[:, 0].astype(np.uint32), array[:, 1].astype(np.uint32), array[:, 2]


def test_versions_are_ordered_by_epoch_then_incarnation_then_sequence() -> None:
    random = np.random.default_rng(5)
    rows = [tuple(map(int, row)) for row in random.integers(0, 3, (300, 3))]
    order = version_order(*versions_of(rows)).tolist()
    assert order == sorted(range(300), key=lambda row: rows[row])  # stable, as sorted is
    left, right = rows[:150], rows[150:]
    expected = [a > b for a, b in zip(left, right, strict=True)]
    assert is_newer(versions_of(left), versions_of(right)).tolist() == expected


def test_versions_at_the_ends_of_their_ranges_still_compare() -> None:
    top32, top64 = 2**32 - 1, 2**64 - 1
    rising = [(0, 0, 0), (0, 0, top64), (0, top32, 0), (top32, 0, 0), (top32, top32, top64)]
    assert version_order(*versions_of(rising[::-1])).tolist() == [4, 3, 2, 1, 0]
    assert is_newer(versions_of(rising[1:]), versions_of(rising[:-1])).all()
    assert not is_newer(versions_of(rising), versions_of(rising)).any()


def test_the_version_column_is_what_names_a_version_beside_its_key() -> None:
    table = table_of(7)
    version = table.version
    assert version.dtype == np.uint64
    assert version.T.tolist() == [
        table.epoch.tolist(),
        table.incarnation.tolist(),
        table.sequence.tolist(),
    ]
