"""Deleting what no retained snapshot needs. The one place that deletes packs and manifests."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from snapd.blocks.keys import I64, U64
from snapd.disk import Disk
from snapd.errors import LockHeldError, SnapdError
from snapd.formats.removals import Removals
from snapd.repository.catalog import RowState
from snapd.repository.journal import Journal
from snapd.repository.manifests import read_manifest
from snapd.repository.names import (
    MANIFESTS,
    PACKS,
    PINS_FILE,
    manifest_name,
    parse_manifest,
)
from snapd.repository.recovery import load_pack
from snapd.repository.state import PackInfo, RepositoryState

_CARRIED_BYTES = 128
"""About what a removal costs when it is said again: in the journal and in the next pack."""


@dataclass(frozen=True, slots=True)
class PruneResult:
    """What was deleted, or why nothing was."""

    manifests: int = 0
    packs: int = 0
    journals: int = 0
    bytes: int = 0
    blocked: str = ""
    """Why nothing (more) was deleted; empty if everything was that could be."""


class Pruner:
    """Deletes manifests beyond the retained ones and the packs that only those needed.

    What keeps a file:

    - A manifest that cannot be read keeps everything: nobody knows what it needs.
    - A reader's pin keeps everything.
    - Each of the newest `retain` manifests keeps every pack that it names.
    - A pack above the newest manifest's floor was sealed after it.
    - A pack with live rows is in the next manifest.

    A pack that goes may be all that says that an older copy of a key, in a pack that stays, was
    superseded or removed. So before it goes that is said again in the journal, from where it gets
    into the next pack: a rebuild from packs and journals never brings such a copy back.
    """

    def __init__(self, disk: Disk, journal: Journal, retain: int) -> None:
        self._disk = disk
        self._journal = journal
        self._retain = retain
        self._packs_of: dict[int, frozenset[int]] = {}
        """Packs that each readable manifest names."""
        self._removal_hashes: dict[int, U64] = {}

    @property
    def retained(self) -> frozenset[int]:
        """Generations that were on disk after the last run, and those learned of since."""
        return frozenset(self._packs_of)

    def named(self, newest: int) -> frozenset[int]:
        """Packs that the newest so many manifests name, of those that were learned of."""
        kept = sorted(self._packs_of)[max(0, len(self._packs_of) - newest) :]
        return frozenset[int]().union(*(self._packs_of[one] for one in kept))

    def learn(self, generation: int, packs: Collection[int]) -> None:
        """A manifest was just committed, or read, and names these packs."""
        self._packs_of[generation] = frozenset(packs)

    def prune(
        self,
        state: RepositoryState,
        writing: Collection[int],
        journal_floor: int,
        journal_keep: frozenset[int],
        retain: int | None = None,
    ) -> PruneResult:
        """Delete what nothing keeps. `writing`: packs that are being written. Journal files up to
        `journal_floor` are covered by the newest manifest, except those in `journal_keep`.
        `retain` (1 or more) generations stay, if that is fewer than usual.

        Crash argument: manifests go first, and durably; a crash then leaves packs that nobody
        needs, which the next run deletes. What packs say about others is durable in the journal
        before they go. Raises DiskError; what was deleted by then was not needed.
        """
        try:
            pin = self._disk.lock(PINS_FILE)
        except LockHeldError:
            return PruneResult(blocked="a reader holds a pin (verify or backup is running)")
        try:
            keep = self._retain if retain is None else max(1, min(retain, self._retain))
            return self._prune(state, writing, journal_floor, journal_keep, keep)
        finally:
            pin.release()

    def _prune(
        self,
        state: RepositoryState,
        writing: Collection[int],
        journal_floor: int,
        journal_keep: frozenset[int],
        retain: int,
    ) -> PruneResult:
        generations = sorted(
            found
            for name in self._disk.list(MANIFESTS)
            if (found := parse_manifest(name)) is not None
        )
        for generation in generations:
            if generation not in self._packs_of:
                try:
                    manifest, _ = read_manifest(self._disk, state.repository_id, generation)
                except SnapdError as error:
                    return PruneResult(blocked=f"a manifest cannot be read: {error}")
                self.learn(generation, [pack.sequence for pack in manifest.packs])
        outdated, retained = generations[:-retain], generations[-retain:]
        for generation in outdated:
            self._disk.remove(manifest_name(generation))
        if outdated:
            self._disk.sync_directory(MANIFESTS)
        self._packs_of = {one: self._packs_of[one] for one in retained}
        gone = self._delete_packs(state, writing)
        journals = self._journal.delete(journal_floor, journal_keep)
        return PruneResult(
            len(outdated), len(gone), journals, sum(pack.file_bytes for pack in gone)
        )

    def _delete_packs(self, state: RepositoryState, writing: Collection[int]) -> list[PackInfo]:
        needed = frozenset[int]().union(writing, *self._packs_of.values())
        with state.catalog.lock:
            idle = [
                pack
                for pack in state.packs.values()
                if pack.sequence not in needed
                and pack.sequence <= state.pack_floor
                and not bool(state.catalog.is_live(pack.rows).any())
            ]
            gone = self._worth_deleting(state, idle)
            if not gone:
                return []
            carry = state.catalog.take(self._rows_to_carry(state, gone))
            epoch = self._epoch_to_keep(state, gone)
            # From here on nobody can bring an evicted row of theirs back to life.
            for pack in gone:
                state.catalog.forget(np.arange(pack.rows.start, pack.rows.stop))
        self._journal.append(Removals.of_blocks(carry), epoch)
        for pack in gone:
            self._disk.remove(pack.name)
            self._removal_hashes.pop(pack.sequence, None)
            with state.catalog.lock:
                del state.packs[pack.sequence]
        self._disk.sync_directory(PACKS)
        return gone

    def _worth_deleting(self, state: RepositoryState, idle: list[PackInfo]) -> list[PackInfo]:
        """Those whose space is worth more than saying again what they say. The others, small packs
        with many removals that still cover something, wait until what those cover has gone."""
        if not idle:
            return []
        rows = self._dead_rows_outside(state, idle)
        ranked = np.sort(state.catalog.column("key_hash", rows))
        chosen: list[PackInfo] = []
        for pack in idle:
            hashes = np.unique(self._hashes_in(state, pack))
            first = np.searchsorted(ranked, hashes, side="left")
            carried = int((np.searchsorted(ranked, hashes, side="right") - first).sum())
            if 2 * _CARRIED_BYTES * carried < pack.file_bytes:
                chosen.append(pack)
        return chosen

    def _rows_to_carry(self, state: RepositoryState, gone: list[PackInfo]) -> I64:
        """Dead versions in remaining packs whose end only the packs in `gone` may tell.

        Too many do no harm: each is of a version that is dead already, and up to that one only.
        """
        rows = self._dead_rows_outside(state, gone)
        hashes = np.concatenate([self._hashes_in(state, pack) for pack in gone])
        found: I64 = rows[np.isin(state.catalog.column("key_hash", rows), hashes)]
        return found

    def _dead_rows_outside(self, state: RepositoryState, leaving: list[PackInfo]) -> I64:
        """Rows on disk, outside of these packs, that must never come back."""
        catalog = state.catalog
        gone = {pack.sequence for pack in leaving}
        found: list[I64] = [np.empty(0, np.int64)]
        for pack in state.packs.values():
            if pack.sequence in gone:
                continue
            dead = catalog.state_of(pack.rows)
            never = (dead != RowState.LIVE) & (dead != RowState.EVICTED)
            # The epoch says enough about versions of earlier ones.
            never &= catalog.column("epoch", pack.rows) >= np.uint32(state.epoch)
            found.append(np.flatnonzero(never) + pack.rows.start)
        return np.concatenate(found)

    def _hashes_in(self, state: RepositoryState, pack: PackInfo) -> U64:
        """Key hashes of all blocks and removals in a pack."""
        blocks: U64 = state.catalog.column("key_hash", pack.rows)
        if not pack.removals:
            return blocks
        return np.concatenate([blocks, self._hashes_of_removals(state, pack)])

    def _hashes_of_removals(self, state: RepositoryState, pack: PackInfo) -> U64:
        """Key hashes of the removals in a pack's index; kept, since idle packs are asked often."""
        if pack.sequence not in self._removal_hashes:
            _, index = load_pack(self._disk, state.repository_id, pack.name)
            self._removal_hashes[pack.sequence] = index.removals.key_hash
        return self._removal_hashes[pack.sequence]

    def _epoch_to_keep(self, state: RepositoryState, gone: list[PackInfo]) -> int | None:
        """The repository's epoch, if packs remain that need it and none of them says it."""
        leaving = {pack.sequence for pack in gone}
        epochs = [pack.epoch for pack in state.packs.values() if pack.sequence not in leaving]
        return state.epoch if epochs and max(epochs) < state.epoch else None
