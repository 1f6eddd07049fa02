"""`BlockAccess`: bytes of catalog rows, from wherever the newest copy of each is by now."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from typing_extensions import Buffer

from snapd.blocks.keys import I64, Bools
from snapd.disk import Disk
from snapd.repository.catalog import Catalog
from snapd.repository.quarantine import copy_to_quarantine
from snapd.repository.reader import PackFiles, read_blocks
from snapd.repository.state import RepositoryState

_MOVES_MAX = 8
"""Times that a block is followed to a newer copy within one read. Each takes a compaction and a
commit that deletes the pack read from, so one is rare and a second one all but impossible."""


class BlockAccess:
    """Reads and rejects rows of one catalog. For several threads."""

    def __init__(self, disk: Disk, files: PackFiles, state: RepositoryState) -> None:
        self._disk = disk
        self._files = files
        self._state = state

    @property
    def _catalog(self) -> Catalog:
        return self._state.catalog

    def read(self, rows: I64, buffers: Sequence[Buffer]) -> tuple[Bools, I64]:
        """Read n blocks into n buffers; bool [n], which are whole and have their checksums, and
        int64 [n], the rows that they were read from in the end.

        Whoever asks holds a row number from before, and between then and now compaction may have
        copied the block and the pack of the old copy may be gone. So a block that cannot be read
        where it was is looked up by its key and version again, and read where it is. Raises
        DiskError.
        """
        with self._catalog.lock:
            blocks = self._catalog.take(rows)
            names = self._state.pack_names()
        good = read_blocks(self._files, names, blocks, buffers)
        at = rows.copy()
        for _ in range(_MOVES_MAX):
            bad = np.flatnonzero(~good)
            if not len(bad):
                break
            with self._catalog.lock:
                found = self._catalog.find_versions(blocks.take(bad))
                moved = (found >= 0) & (found != at[bad])
                bad, found = bad[moved], found[moved]
                copies = self._catalog.take(found)
                names = self._state.pack_names()
            if not len(bad):
                break
            at[bad] = found
            good[bad] = read_blocks(
                self._files, names, copies, [buffers[one] for one in bad.tolist()]
            )
        return good, at

    def reject(self, rows: I64) -> int:
        """Take rows whose bytes are bad out of the live set for good, and keep a copy of what is on
        disk for a look, as far as the quarantine has room. Returns the copies made."""
        with self._catalog.lock:
            self._catalog.set_lost(rows)
            blocks = self._catalog.take(rows)
            names = self._state.pack_names()
        return copy_to_quarantine(self._disk, self._files, names, blocks)
