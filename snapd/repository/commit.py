"""`Committer`: makes snapshots, and lets go what no snapshot needs any more."""

from __future__ import annotations

import threading
from collections.abc import Callable

from snapd.disk import Disk
from snapd.errors import DiskError
from snapd.repository.intake import Intake
from snapd.repository.journal import Journal
from snapd.repository.manifests import make_manifest, write_manifest
from snapd.repository.prune import Pruner, PruneResult, PruneRules
from snapd.repository.state import RepositoryState
from snapd.repository.summary import ManifestSummary

PENDING_REMOVALS_MAX = 65_536
"""Removals that wait in the journal for the next pack. Beyond that a commit seals a pack with
nothing else in it. Below, it does not: a pack for each flush with a removal would be thousands a
day, each read at every recovery, where the journal costs one read for all."""
JOURNAL_BYTES_MAX = 64 * 2**20
"""Bytes in the journal beyond which a commit seals such a pack as well: a removal that comes alone
takes two pages of the journal, and every recovery reads them."""


class Committer:
    """Commits and prunes one state, one at a time."""

    def __init__(
        self,
        disk: Disk,
        state: RepositoryState,
        journal: Journal,
        intake: Intake,
        *,
        journal_keep: frozenset[int],
        retain: int,
        now: Callable[[], float],
    ) -> None:
        """`journal_keep`: journal files that are never deleted. `now`: seconds since 1970."""
        self._disk = disk
        self._state = state
        self._journal = journal
        self._intake = intake
        self._journal_keep = journal_keep
        self._now = now
        self._pruner = Pruner(disk, journal, retain)
        self._lock = threading.Lock()

    @property
    def is_due(self) -> bool:
        """Whether the journal has grown so long that a commit should not wait for its interval."""
        return (
            self._intake.removals_pending > PENDING_REMOVALS_MAX
            or self._journal.bytes_pending > JOURNAL_BYTES_MAX
        )

    def commit(self, *, prune: bool, retain: int | None, write_debt_bytes: int) -> ManifestSummary:
        """See `Repository.commit`."""
        with self._lock:
            self._intake.settle()
            if self.is_due:
                self._intake.begin_pack().seal()
            state, catalog = self._state, self._state.catalog
            with catalog.lock:
                generation = state.next_generation()
                manifest = make_manifest(
                    state,
                    pack_floor=min([state.pack_last + 1, *self._intake.writing()]) - 1,
                    journal_floor=self._intake.journal_sealed,
                    now_ns=int(self._now() * 1e9),
                    write_debt_bytes=write_debt_bytes,
                )
                live = catalog.live_rows()
            file_bytes = write_manifest(self._disk, state.repository_id, generation, manifest)
            with catalog.lock:
                state.generation, state.committed_ns = generation, manifest.committed_ns
                state.manifest_bytes[generation] = file_bytes
                state.pack_floor = manifest.pack_floor
                catalog.set_committed(live)
                del live
            self._pruner.learn(generation, [pack.sequence for pack in manifest.packs])
            pruned = PruneResult(blocked="a source is not settled")
            if prune:
                pruned = self._prune(manifest.journal_floor, PruneRules(retain))
            return ManifestSummary(
                generation,
                manifest.committed_ns / 1e9,
                manifest.blocks,
                manifest.bytes,
                len(manifest.packs),
                manifest.epoch,
                file_bytes,
                pruned,
            )

    def prune(self, rules: PruneRules) -> PruneResult:
        """See `Repository.prune`."""
        with self._lock:
            return self._prune(0, rules)

    def named(self, retained: int) -> frozenset[int]:
        """Packs that the newest `retained` manifests name."""
        return self._pruner.named(retained)

    def _prune(self, journal_floor: int, rules: PruneRules) -> PruneResult:
        state = self._state
        try:
            pruned = self._pruner.prune(
                state, self._intake.writing(), journal_floor, self._journal_keep, rules
            )
        except DiskError as error:
            return PruneResult(blocked=str(error))
        if pruned.manifests:
            state.manifest_bytes = {
                one: size
                for one, size in state.manifest_bytes.items()
                if one in self._pruner.retained
            }
        state.catalog.shrink()
        return pruned
