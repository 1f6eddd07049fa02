"""Row numbers for life: whatever packs come and go, a number is its block's or nobody's."""

from __future__ import annotations

from dataclasses import dataclass

import hypothesis.strategies as st
import numpy as np
from hypothesis import given
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from repository_kit import table_of

from snapd.blocks import KeyColumn, hash_keys
from snapd.formats.removals import Removals
from snapd.repository import Catalog, RowState
from snapd.repository.numbers import GONE, RowNumbers

KEYS = [b"", b"a", b"bb", b"longer-key", *(b"key-%d" % number for number in range(5))]
some_keys = st.lists(st.sampled_from(KEYS), min_size=1, max_size=5, unique=True)


@given(st.lists(st.one_of(st.integers(0, 7), st.sets(st.integers(0, 40))), max_size=14))
def test_numbers_are_the_same_as_in_a_list(steps: list[int | set[int]]) -> None:
    """A list of numbers is the model: a row's place is its position there."""
    numbers = RowNumbers()
    model: list[int] = []
    for step in steps:
        if isinstance(step, int):
            given_numbers = numbers.append(step).tolist()
            assert given_numbers == list(range(numbers.end - step, numbers.end))
            model += given_numbers
        else:
            numbers.keep(np.array([at not in step for at in range(len(model))], np.bool_))
            model = [number for at, number in enumerate(model) if at not in step]
        asked = np.arange(-2, numbers.end + 3)
        wanted = [model.index(one) if one in model else GONE for one in asked.tolist()]
        assert numbers.places(asked).tolist() == wanted
        assert numbers.numbers(np.arange(len(model))).tolist() == model
        assert numbers.count == len(model)
        for start in range(0, numbers.end, 3):
            places = numbers.places_of_range(slice(start, start + 2))
            stored = [model.index(one) for one in (start, start + 1) if one in model]
            found = None if places is None else list(range(places.start, places.stop))
            assert found == (stored if len(stored) == 2 else None)


@dataclass
class Row:
    """What the model knows of a row: its block, and whether it is live, evicted or dead."""

    key: bytes
    sequence: int
    state: str = "live"


class CatalogLives(RuleBasedStateMachine):
    """Packs come, their rows die one way or another, whole packs are forgotten, memory shrinks."""

    def __init__(self) -> None:
        super().__init__()
        self.catalog = Catalog()
        self.rows: dict[int, Row] = {}
        """Every row that was ever given a number; gone ones are "dead"."""
        self.packs: list[list[int]] = []
        self.newest: dict[bytes, int] = {}
        self.sequence = 0

    @rule(keys=some_keys)
    def add(self, keys: list[bytes]) -> None:
        self.sequence += 1
        self._add(keys, [self.sequence] * len(keys))

    @rule(at=st.integers(0, 20))
    def copy_a_pack(self, at: int) -> None:
        """As compaction does: the same versions again."""
        if self.packs:
            rows = [self.rows[row] for row in self.packs[at % len(self.packs)]]
            kept = {row.key: row.sequence for row in rows if row.state == "live"}
            self._add(list(kept), list(kept.values()))

    @rule(keys=some_keys)
    def remove(self, keys: list[bytes]) -> None:
        self.sequence += 1
        table = table_of(keys, [b"x"] * len(keys), sequence=self.sequence)
        gone = self.catalog.remove(Removals.of_blocks(table)).tolist()
        expected = [self.newest[key] for key in keys if key in self.newest]
        assert sorted(gone) == sorted(row for row in expected if self.rows[row].state == "live")
        for row in expected:
            self.rows[row].state = "dead"

    @rule(keys=some_keys, live=st.booleans())
    def evict_or_revive(self, keys: list[bytes], live: bool) -> None:
        rows = [self.newest[key] for key in keys if key in self.newest]
        before, after = ("evicted", "live") if live else ("live", "evicted")
        for row in rows:
            if self.rows[row].state == before:
                self.rows[row].state = after
        result = self.catalog.set_live(np.array(rows, np.int64), live)
        assert result.tolist() == [self.rows[row].state == after for row in rows]

    @rule(at=st.integers(0, 20))
    def forget_a_pack(self, at: int) -> None:
        if self.packs:
            rows = self.packs.pop(at % len(self.packs))
            self.catalog.forget(np.array(rows, np.int64))
            for row in rows:
                self.rows[row].state = "dead"
                if self.newest.get(self.rows[row].key) == row:
                    del self.newest[self.rows[row].key]

    @rule()
    def shrink(self) -> None:
        before = len(self.catalog)
        stored = sum(len(pack) for pack in self.packs)
        went = self.catalog.shrink(rows_min=1)
        assert len(self.catalog) == before - went
        assert went in {0, before - stored}
        forgotten = len(self.catalog) - stored
        assert forgotten == 0 or 4 * forgotten < len(self.catalog)

    @rule(heat=st.floats(0, 100, width=32))
    def warm(self, heat: float) -> None:
        rows = np.arange(-1, self.catalog.rows_end + 2)
        self.catalog.set_heat(rows, np.full(len(rows), heat, np.float32))

    @invariant()
    def every_number_is_its_blocks_or_nobodys(self) -> None:
        every = np.arange(self.catalog.rows_end)
        assert every.tolist() == sorted(self.rows), "a number was given twice, or left out"
        table, live = self.catalog.take(every), self.catalog.is_live(every)
        state = self.catalog.state_of(every)
        stored = set(self.catalog.rows().tolist())
        assert {row for pack in self.packs for row in pack} <= stored
        for row, model in self.rows.items():
            assert bool(live[row]) == (model.state == "live")
            if row in stored:
                assert (table.keys[row], int(table.sequence[row])) == (model.key, model.sequence)
            else:
                assert (table.keys[row], int(table.size[row])) == (b"", 0)
                assert state[row] == RowState.LOST
        assert self.catalog.live_rows().tolist() == np.flatnonzero(live).tolist()
        assert self.catalog.live_totals() == (int(live.sum()), int(table.size[live].sum()))
        for pack in self.packs:
            part = slice(pack[0], pack[-1] + 1)
            assert self.catalog.column("sequence", part).tolist() == table.sequence[pack].tolist()

    @invariant()
    def every_key_is_found_at_its_newest_row(self) -> None:
        found = self.catalog.find(KeyColumn.from_list(KEYS), hash_keys(KEYS)).tolist()
        assert found == [self.newest.get(key, -1) for key in KEYS]

    @invariant()
    def numbers_that_were_never_given_are_lost(self) -> None:
        never = np.array([-1, self.catalog.rows_end, self.catalog.rows_end + 99])
        assert (self.catalog.state_of(never) == RowState.LOST).all()
        assert not self.catalog.set_live(never, live=True).any()

    def _add(self, keys: list[bytes], sequences: list[int]) -> None:
        if not keys:
            return
        blocks = table_of(keys, [b"x"] * len(keys), sequence=sequences)
        rows = self.catalog.add(blocks).rows.tolist()
        for row, key, sequence in zip(rows, keys, sequences, strict=True):
            self.rows[row] = Row(key, sequence)
            old = self.newest.get(key)
            if old is not None and self.rows[old].sequence > sequence:
                self.rows[row].state = "dead"
                continue
            if old is not None:
                if self.rows[old].sequence == sequence:
                    self.rows[row].state = self.rows[old].state
                self.rows[old].state = "dead"
            self.newest[key] = row
        self.packs.append(rows)


TestCatalogLives = CatalogLives.TestCase
