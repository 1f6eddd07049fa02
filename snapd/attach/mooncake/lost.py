"""`LostBlocks`: what died with its segments: where its bytes are, and what of it may come back."""

from __future__ import annotations

import numpy as np

from snapd.attach.mooncake.frozen import FrozenBlocks
from snapd.attach.mooncake.places import NOWHERE, Places
from snapd.blocks import BlockTable, KeyColumn
from snapd.blocks.keys import I64, U64, Bools


class LostBlocks:
    """Over all sessions of one daemon. Not thread-safe: its owner holds a lock."""

    def __init__(self) -> None:
        self._frozen: list[FrozenBlocks] = []
        """Everything whose old place may still serve, newest first."""
        self._lost: list[FrozenBlocks] = []
        """What was lost since the session began."""
        self._waiting: list[FrozenBlocks] = []
        """What this session may put back, where it may put back nothing else."""

    def lose(self, table: BlockTable, file: I64) -> None:
        """These blocks died with the segments in our files `file`, int64 [n]."""
        frozen = FrozenBlocks(table, file)
        self._frozen.insert(0, frozen)
        self._lost.append(frozen)

    def begin(
        self, cold: BlockTable, file: I64, *, was_registered: bool, keeps_waiting: bool
    ) -> None:
        """A session begins. It may put back, with `keeps_waiting`, what was lost since the one
        before began and what waited in it: `cold`, and where not all of that `was_registered`
        there, the rest as well: nobody has seen what that session did not get to."""
        unregistered = [] if was_registered else self._waiting
        # What was lost since the session before stands in front of what waited in it.
        known = [*self._lost, FrozenBlocks(cold, file), *unregistered]
        self._waiting = known if keeps_waiting else []
        self._lost = []

    def may_come_back(self, keys: KeyColumn, hashes: U64) -> Bools:
        """Which of these keys are among what waits, bool [n]."""
        may: Bools = np.zeros(len(keys), np.bool_)
        for waiting in self._waiting:
            may |= waiting.knows(keys, hashes)
        return may

    def drop_unlisted(self, files: I64, listed: U64) -> KeyColumn:
        """Of what waits from these files, forget what is not among the `listed` key hashes; the
        keys."""
        return KeyColumn.concatenate(
            [waiting.drop_unlisted(files, listed) for waiting in self._waiting]
        )

    def held_by(self, table: BlockTable) -> Places:
        """Where bytes with the key, size and checksum of these blocks were when their segment
        died; the newest such place."""
        result = Places.none(len(table))
        for frozen in self._frozen:
            left = np.flatnonzero(result.file == NOWHERE)
            if not len(left):
                break
            at = frozen.find(table if len(left) == len(table) else table.take(left))
            hit = at >= 0
            result.file[left[hit]] = frozen.file[at[hit]]
            offset = result.offset.copy()
            offset[left[hit]] = frozen.offset[at[hit]]
            result = Places(result.file, offset, table.size)
        return result

    def used(self, keys: KeyColumn, hashes: U64) -> None:
        """These keys are back in memory: their old places are not needed, and may be punched."""
        for frozen in self._frozen:
            frozen.used(keys, hashes)

    def forget_files(self, files: I64) -> None:
        """These files are deleted: nothing is held there any more."""
        for frozen in self._frozen:
            frozen.forget(files)
        self._frozen = [frozen for frozen in self._frozen if frozen.is_used]
