"""`FrozenBlocks`: where blocks were when their segment died, found by key."""

from __future__ import annotations

import numpy as np

from snapd.blocks import BlockTable, KeyColumn
from snapd.blocks.index import HashIndex
from snapd.blocks.keys import I64, U64, Bools

_NOWHERE = -1


class FrozenBlocks:
    """Places of n blocks, each key once. Not thread-safe: its owner holds a lock."""

    def __init__(self, table: BlockTable, file: I64) -> None:
        """Blocks at `table.offset` of our files `file`, int64 [n]."""
        self.file = file
        self.offset = table.offset
        self._hashes = table.key_hash
        self._keys = table.keys
        self._size = table.size
        self._checksum = table.checksum
        self._index = HashIndex.allocate(len(table))
        self._index.fill(table.key_hash, np.arange(len(table), dtype=np.int64))

    @property
    def is_used(self) -> bool:
        """Whether any block has a place left."""
        return bool((self.file != _NOWHERE).any())

    def find(self, table: BlockTable) -> I64:
        """The row with the key, size and checksum of each block, int64 [n]; -1 where there is none
        or its place is gone."""
        at = self._find(table.keys, table.key_hash)
        known = np.flatnonzero(at >= 0)
        rows = at[known]
        same = (self._size[rows] == table.size[known]) & (
            self._checksum[rows] == table.checksum[known]
        )
        at[known[~(same & (self.file[rows] != _NOWHERE))]] = -1
        return at

    def knows(self, keys: KeyColumn, hashes: U64) -> Bools:
        """Which of these keys are in it, with a place or without, bool [n]."""
        known: Bools = self._find(keys, hashes) >= 0
        return known

    def used(self, keys: KeyColumn, hashes: U64) -> None:
        """These keys are back in memory: their old places are not needed, and may be punched."""
        at = self._find(keys, hashes)
        self.file[at[at >= 0]] = _NOWHERE

    def drop_unlisted(self, files: I64, listed: U64) -> KeyColumn:
        """Know nothing more of the blocks in these files whose key hashes are not listed; their
        keys."""
        rows = np.flatnonzero(np.isin(self.file, files) & ~np.isin(self._hashes, listed))
        self._index.remove(self._hashes[rows], rows)
        self.file[rows] = _NOWHERE
        return self._keys.take(rows)

    def forget(self, files: I64) -> None:
        """These files are gone."""
        self.file[np.isin(self.file, files)] = _NOWHERE

    def _find(self, keys: KeyColumn, hashes: U64) -> I64:
        return self._index.find(hashes, lambda queries, rows: self._keys.equal(rows, keys, queries))
