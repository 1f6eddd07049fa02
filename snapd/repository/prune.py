"""Deleting what no retained snapshot needs. The one place that deletes packs and manifests."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial

import numpy as np

from snapd.blocks.keys import I64, U64
from snapd.disk import Disk
from snapd.errors import LockHeldError, SnapdError
from snapd.formats.removals import Removals
from snapd.repository.catalog import RowState
from snapd.repository.journal import Journal
from snapd.repository.layout import is_damaged, move_aside, told
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

PINNED = "a reader holds a pin (verify or backup is running)"
"""Why nothing was deleted while somebody reads."""
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
    moved_aside: tuple[str, ...] = ()
    """Files that could not be read and were moved, with where they are now."""


@dataclass(frozen=True, slots=True)
class PruneRules:
    """How to prune, where it is not as after every snapshot."""

    retain: int | None = None
    """Generations that stay (1 or more), if that is fewer than usual."""
    move_unreadable: bool = False
    """Move aside whatever is damaged, at once."""
    dry_run: bool = False
    """Change nothing: only say what would be."""


class Pruner:
    """Deletes manifests beyond the retained ones and the packs that only those needed.

    What keeps a file:

    - A manifest that cannot be read keeps everything: nobody knows what it needs.
    - A pack that cannot be read keeps every pack, because any of them may be all that says that a
      block in it is gone, until no retained manifest is as old as the recovery that met it. Then it
      is moved aside, so that it can never be read as a part of this repository again.
    - A reader's pin keeps everything.
    - Each of the newest `retain` manifests keeps every pack that it names.
    - A pack above the newest manifest's floor was sealed after it.
    - A pack with live rows is in the next manifest.

    A pack that goes may be all that says that an older copy of a key, in a pack that stays, was
    superseded or removed. So before it goes that is said again in the journal, from where it gets
    into the next pack: a rebuild from packs and journals never brings such a copy back.

    What makes a pack go: `RepositoryState.condemned`. A generation that names one goes with it, but
    never the newest; and what it says about others is said again whatever that costs.
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
        rules: PruneRules,
    ) -> PruneResult:
        """Delete what nothing keeps. `writing`: packs that are being written. Journal files up to
        `journal_floor` are covered by the newest manifest, except those in `journal_keep`.

        Crash argument: manifests go first, and durably; a crash then leaves packs that nobody
        needs, which the next run deletes. What packs say about others is durable in the journal
        before they go. Raises DiskError; what was deleted by then was not needed.
        """
        if rules.dry_run:
            return self._plan(state, writing, rules)
        try:
            pin = self._disk.lock(PINS_FILE)
        except LockHeldError:
            return PruneResult(blocked=PINNED)
        try:
            return self._prune(state, writing, journal_floor, journal_keep, rules)
        finally:
            pin.release()

    def _plan(
        self, state: RepositoryState, writing: Collection[int], rules: PruneRules
    ) -> PruneResult:
        """What `_prune` would do now."""
        damaged = self._damaged(state) if rules.move_unreadable else []
        generations, blocked = self._generations(state, damaged)
        if blocked:
            return PruneResult(blocked=blocked)
        outdated, retained = self._split(state, generations, rules)
        held, released = self._unreadable(state, retained, damaged)
        gone = [] if held else self._chosen(state, writing, retained)
        size = sum(pack.file_bytes for pack in gone)
        moved = tuple(sorted({*damaged, *released}))
        return PruneResult(len(outdated), len(gone), 0, size, held, moved)

    def _prune(
        self,
        state: RepositoryState,
        writing: Collection[int],
        journal_floor: int,
        journal_keep: frozenset[int],
        rules: PruneRules,
    ) -> PruneResult:
        damaged = self._damaged(state) if rules.move_unreadable else []
        moved = self._move_aside(state, damaged)
        generations, blocked = self._generations(state, [])
        if blocked:
            return PruneResult(blocked=blocked, moved_aside=tuple(moved))
        outdated, retained = self._split(state, generations, rules)
        for generation in outdated:
            self._disk.remove(manifest_name(generation))
        if outdated:
            self._disk.sync_directory(MANIFESTS)
        self._packs_of = {one: self._packs_of[one] for one in retained}
        held, released = self._unreadable(state, retained, [])
        moved += self._move_aside(state, released)
        gone = [] if held else self._delete_packs(state, writing, retained)
        journals = self._journal.delete(journal_floor, journal_keep)
        size = sum(pack.file_bytes for pack in gone)
        return PruneResult(len(outdated), len(gone), journals, size, held, tuple(moved))

    def _generations(
        self, state: RepositoryState, without: Collection[str]
    ) -> tuple[list[int], str]:
        """Generations on disk, rising, whose packs are known now; or why they are not."""
        found = (parse_manifest(name) for name in self._disk.list(MANIFESTS))
        generations = sorted(
            one for one in found if one is not None and manifest_name(one) not in without
        )
        for generation in generations:
            if generation not in self._packs_of:
                try:
                    manifest, _ = read_manifest(self._disk, state.repository_id, generation)
                except SnapdError as error:
                    return (
                        [],
                        f"a manifest cannot be read: {told(manifest_name(generation), error)}",
                    )
                self.learn(generation, [pack.sequence for pack in manifest.packs])
        return generations, ""

    def _split(
        self, state: RepositoryState, generations: list[int], rules: PruneRules
    ) -> tuple[list[int], list[int]]:
        """Generations that go and that stay. The newest one always stays."""
        usual = self._retain
        keep = usual if rules.retain is None else max(1, min(rules.retain, usual))
        retained = [
            one
            for one in generations[-keep:]
            if one == generations[-1] or not state.condemned & self._packs_of[one]
        ]
        return [one for one in generations if one not in retained], retained

    def _unreadable(
        self, state: RepositoryState, retained: list[int], without: Collection[str]
    ) -> tuple[str, list[str]]:
        """Why packs are kept for the sake of those that cannot be read, and the names of such as
        nobody needs any more."""
        named = frozenset[int]().union(*(self._packs_of[one] for one in retained))
        found_lately = not retained or state.generation_recovered >= retained[0]
        released = []
        for name, sequence in state.unreadable_packs.items():
            if name in without:
                continue
            if found_lately or sequence in named:
                return f"{name} cannot be read: packs are kept that it may need", []
            released.append(name)
        return "", released

    def _damaged(self, state: RepositoryState) -> list[str]:
        """Names of manifests, packs and journal files that are damaged now. Not the manifest that
        recovery read or the last commit wrote: that one was seen whole, so it is the last of all to
        be moved, and the next commit puts another in its place."""
        found = []
        for name in self._disk.list(MANIFESTS):
            generation = parse_manifest(name)
            if generation not in {None, state.generation} and is_damaged(
                partial(read_manifest, self._disk, state.repository_id, generation)
            ):
                found.append(manifest_name(generation))
        for name in state.unreadable_packs:
            if is_damaged(partial(load_pack, self._disk, state.repository_id, name)):
                found.append(name)
        return found + self._journal.damaged_before()

    def _move_aside(self, state: RepositoryState, names: list[str]) -> list[str]:
        moved = move_aside(self._disk, names) if names else []
        for name in names:
            state.unreadable_packs.pop(name, None)
        return moved

    def _chosen(
        self, state: RepositoryState, writing: Collection[int], retained: list[int]
    ) -> list[PackInfo]:
        """Packs to delete. The caller holds the catalog's lock, or only wants to know."""
        needed = frozenset[int]().union(writing, *(self._packs_of[one] for one in retained))
        idle = [
            pack
            for pack in state.packs.values()
            if pack.sequence not in needed
            and (pack.sequence <= state.pack_floor or pack.sequence in state.condemned)
            and not bool(state.catalog.is_live(pack.rows).any())
        ]
        condemned = [pack for pack in idle if pack.sequence in state.condemned]
        others = [pack for pack in idle if pack.sequence not in state.condemned]
        return condemned + self._worth_deleting(state, others)

    def _delete_packs(
        self, state: RepositoryState, writing: Collection[int], retained: list[int]
    ) -> list[PackInfo]:
        with state.catalog.lock:
            gone = self._chosen(state, writing, retained)
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
                state.condemned.discard(pack.sequence)
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
        found = rows[np.isin(state.catalog.column("key_hash", rows), hashes)]
        # What is dead only because its own copy took over has the version of that copy: to say that
        # it ended would end the copy.
        copies = state.catalog.state_of(state.catalog.newest_copies(found))
        ended: I64 = found[(copies != RowState.LIVE) & (copies != RowState.EVICTED)]
        return ended

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
