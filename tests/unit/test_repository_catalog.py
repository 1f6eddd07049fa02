"""The catalog: full keys decide, versions decide, rows keep their numbers while it grows."""

from __future__ import annotations

import numpy as np
from repository_kit import table_of

from snapd.blocks import BlockTable, KeyColumn
from snapd.formats.removals import Removals
from snapd.repository import Catalog, RowState
from snapd.repository.catalog import newest_versions


def table(*keys: bytes, sequence: int | list[int] = 1, epoch: int = 0) -> BlockTable:
    return table_of(keys, [b"x"] * len(keys), sequence=sequence, epoch=epoch)


def colliding(*keys: bytes, sequence: int | list[int] = 1) -> BlockTable:
    """Keys that all have one hash: whoever chooses keys can make such."""
    blocks = table(*keys, sequence=sequence)
    return blocks.with_columns(key_hash=np.full(len(blocks), 5))


def live_keys(catalog: Catalog) -> list[bytes]:
    return sorted(catalog.take(catalog.live_rows()).keys.to_list())


def test_keys_with_one_hash_are_still_different_keys() -> None:
    catalog = Catalog()
    catalog.add(colliding(b"a", b"b", b"c"))
    catalog.add(colliding(b"b", b"d", sequence=2))
    assert live_keys(catalog) == [b"a", b"b", b"c", b"d"]
    wanted = [b"a", b"b", b"d", b"e"]
    rows = catalog.find(KeyColumn.from_list(wanted), np.full(4, 5, np.uint64))
    assert rows.tolist() == [0, 3, 4, -1]
    catalog.remove(Removals.of_blocks(colliding(b"c", sequence=9)))
    assert live_keys(catalog) == [b"a", b"b", b"d"]


def test_the_newest_version_within_a_table_wins_and_the_last_of_equal_ones() -> None:
    blocks = colliding(b"a", b"b", b"a", b"a", b"b", sequence=[3, 1, 2, 3, 7])
    assert newest_versions(blocks).tolist() == [False, False, False, True, True]
    catalog = Catalog()
    added = catalog.add(blocks)
    assert catalog.is_live(catalog.rows()).tolist() == [False, False, False, True, True]
    assert len(added.superseded) == 0


def test_epoch_then_incarnation_then_sequence() -> None:
    catalog = Catalog()
    catalog.add(table_of([b"k"], [b"1"], sequence=100, incarnation=1, epoch=1))
    catalog.add(table_of([b"k"], [b"2"], sequence=1, incarnation=2, epoch=1))
    assert catalog.is_live(catalog.rows()).tolist() == [False, True]
    catalog.add(table_of([b"k"], [b"3"], sequence=999, incarnation=9, epoch=0))
    assert catalog.is_live(catalog.rows()).tolist() == [False, True, False]
    catalog.add(table_of([b"k"], [b"4"], sequence=1, incarnation=1, epoch=2))
    assert catalog.is_live(catalog.rows()).tolist() == [False, False, False, True]


def test_a_copy_of_a_version_takes_over_and_inherits_its_fate() -> None:
    catalog = Catalog()
    first = catalog.add(table(b"live", b"evicted", b"removed")).rows
    catalog.set_live(first[1:2], live=False)
    catalog.remove(Removals.of_blocks(table(b"removed")))
    added = catalog.add(table(b"live", b"evicted", b"removed"))
    assert catalog.state_of(added.rows).tolist() == [
        RowState.LIVE,
        RowState.EVICTED,
        RowState.REMOVED,
    ]
    assert len(added.superseded) == 0, "a copy supersedes no version"
    assert (catalog.state_of(first[:2]) == RowState.SUPERSEDED).all()


def test_a_removal_takes_what_is_older_and_leaves_what_is_newer() -> None:
    catalog = Catalog()
    catalog.add(table(b"a", b"b", b"c", sequence=[4, 5, 6]))
    gone = catalog.remove(Removals.of_blocks(table(b"a", b"b", b"c", b"never", sequence=5)))
    assert gone.tolist() == [0, 1]
    assert live_keys(catalog) == [b"c"]


def test_rows_and_keys_stay_as_they_are_while_everything_grows() -> None:
    catalog = Catalog()
    early = None
    for batch in range(40):
        keys = [b"%d-%d" % (batch, n) for n in range(200)]
        rows = catalog.add(table(*keys, sequence=batch + 1)).rows
        assert rows.tolist() == list(range(batch * 200, batch * 200 + 200))
        early = early or catalog.take(np.arange(10))
    assert early is not None
    assert early.keys[3] == b"0-3", "an old view is not what it was"
    names = [b"%d-%d" % (batch, 7) for batch in range(40)]
    found = catalog.find(KeyColumn.from_list(names), KeyColumn.from_list(names).hashes())
    assert found.tolist() == [batch * 200 + 7 for batch in range(40)]


def test_forgotten_rows_make_room_for_their_keys() -> None:
    catalog = Catalog()
    rows = catalog.add(table(b"a", b"b")).rows
    catalog.forget(rows)
    assert catalog.find(table(b"a").keys, table(b"a").key_hash).tolist() == [-1]
    catalog.add(table(b"a"))
    assert live_keys(catalog) == [b"a"]
    assert not catalog.set_live(rows, live=True).any()
