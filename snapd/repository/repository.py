"""`Repository`: a directory of packs and manifests, for one writer and any number of readers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from types import TracebackType

from typing_extensions import Buffer

from snapd.blocks import Codec
from snapd.blocks.keys import I64, Bools
from snapd.disk import Disk, DiskLock
from snapd.errors import RefusedError
from snapd.formats.manifest import Manifest
from snapd.formats.removals import Removals
from snapd.formats.tables import FINGERPRINTS_MAX, Incarnation
from snapd.repository.access import BlockAccess
from snapd.repository.catalog import Catalog
from snapd.repository.commit import Committer
from snapd.repository.compaction import (
    Adopting,
    Compaction,
    CompactionResult,
    never,
    nobody,
    unpaced,
)
from snapd.repository.history import generations, show
from snapd.repository.intake import Intake
from snapd.repository.journal import Journal
from snapd.repository.layout import move_aside, prepare, read_identity, refuse_newer
from snapd.repository.names import LOCK_FILE, MANIFESTS
from snapd.repository.pins import pin
from snapd.repository.prune import PruneResult, PruneRules
from snapd.repository.reader import PackFiles
from snapd.repository.recovery import Recovery, recover_state
from snapd.repository.space import (
    SpaceBook,
    SpaceColumns,
    SpaceUse,
    journal_bytes,
    leftover_bytes,
)
from snapd.repository.state import PackInfo, RepositoryState
from snapd.repository.summary import Generation, ManifestSummary
from snapd.repository.verify import Progress, Sample, Verification, Verifier
from snapd.repository.writer import PackWriter

PACK_BYTES_MAX = 256 * 2**20


class Repository:
    """A repository. Use `open`, then `recover` once, then the rest; `close` at the end.

    Safe to use from several threads; each `PackWriter` belongs to one. Everything that changes the
    disk raises RefusedError when it was opened for reading.
    """

    def __init__(
        self,
        disk: Disk,
        lock: DiskLock,
        repository_id: bytes,
        *,
        read_only: bool,
        retain: int,
        codec: Codec,
        pack_bytes_max: int,
        ballast_bytes: int,
        now: Callable[[], float],
    ) -> None:
        """For `open`."""
        self.disk = disk
        self.repository_id = repository_id
        self.read_only = read_only
        self.retain = retain
        self._lock = lock
        self._codec = codec
        self._pack_bytes_max = pack_bytes_max
        self._ballast_bytes = ballast_bytes
        self._now = now
        self._state = RepositoryState(repository_id)
        self._journal = Journal(disk, repository_id, 0)
        self._intake = self._new_intake()
        self._committer = self._new_committer(frozenset())
        self._files = PackFiles(disk)
        self._access = BlockAccess(disk, self._files, self._state)
        self._space = SpaceBook(disk, ballast_bytes)
        self._leftover_bytes = 0
        self._compact_lock = threading.Lock()
        self._moved_aside: list[str] = []
        self._corrupt: list[str] = []
        self._recovered = False

    # --- life ---------------------------------------------------------------------------------

    @classmethod
    def open(
        cls,
        disk: Disk,
        *,
        read_only: bool = False,
        retain: int = 3,
        codec: Codec = Codec.RAW,
        pack_bytes_max: int = PACK_BYTES_MAX,
        ballast_bytes: int = 0,
        now: Callable[[], float] = time.time,
    ) -> Repository:
        """Take the writer's lock and make sure that there is a repository; or, to read, pin what
        is there against pruning. `ballast_bytes` are kept for removals on a disk that others fill;
        see `snapd.repository.ballast`.

        Raises LockHeldError, NewerFormatError, NothingThereError (to read, and nothing is there),
        or DiskError.
        """
        if read_only:
            read_identity(disk)  # before a file for the pin is made where no repository is
        lock = pin(disk) if read_only else disk.lock(LOCK_FILE)
        try:
            moved: list[str] = []
            leftover = 0
            if read_only:
                repository_id = read_identity(disk)
            else:
                leftover = leftover_bytes(disk)
                repository_id, moved = prepare(disk)
        except BaseException:
            lock.release()
            raise
        repository = cls(
            disk,
            lock,
            repository_id,
            read_only=read_only,
            retain=retain,
            codec=codec,
            pack_bytes_max=pack_bytes_max,
            ballast_bytes=ballast_bytes,
            now=now,
        )
        repository._moved_aside = moved
        repository._leftover_bytes = leftover
        return repository

    def recover(self) -> Recovery:
        """Find out what is there: see `recover_state`. Fills `catalog`.

        If nothing at all can be used and there are damaged files, these are moved aside (never
        deleted) and the repository starts empty. Raises DiskError, also for a journal file.
        """
        return self._recover(use_manifests=True)

    def rebuild(self) -> Recovery:
        """Recover from packs and journals alone, as if there were no manifests; `commit` then makes
        a generation of it. Damaged manifests are moved aside, since an operator asked for it: they
        block pruning no longer. Newer ones are left.

        For a repository that nobody writes to. Raises RefusedError or DiskError.
        """
        if self.read_only:
            raise RefusedError("the repository is open for reading")
        self._recover(use_manifests=True)
        damaged = [name for name in self._corrupt if name.startswith(f"{MANIFESTS}/")]
        if damaged:
            self._moved_aside += move_aside(self.disk, damaged)
        known = self._state
        recovery = self._recover(use_manifests=False)
        # Which blocks are live is for the packs to say; but what a manifest knows of the order of
        # versions stays known, since the packs that said it may have gone for good reasons.
        self._state.learn_incarnations(tuple(known.incarnations.values()))
        self._state.learn_fingerprints(known.fingerprints)
        # A number that a damaged manifest had is not given to another snapshot.
        self._state.generation_last = max(self._state.generation_last, known.generation_last)
        self._state.generations_taken |= known.generations_taken
        self.catalog.remove_all(known.epoch)
        if recovery.unreadable_packs:
            self._state.keep_dead(known)
        recovery.epoch = self.epoch
        recovery.blocks, recovery.bytes = self.catalog.live_totals()
        recovery.moved_aside = list(self._moved_aside)
        return recovery

    def close(self) -> None:
        """Give up open writers, close files, release the lock; idempotent."""
        self._intake.close()
        self._files.close()
        self._lock.release()

    def __enter__(self) -> Repository:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # --- what is known ------------------------------------------------------------------------

    @property
    def catalog(self) -> Catalog:
        """Every block version in every pack."""
        return self._state.catalog

    @property
    def epoch(self) -> int:
        """How many remove-alls there have been."""
        return self._state.epoch

    @property
    def generation(self) -> int:
        """Newest generation; 0 if there is none."""
        return self._state.generation

    @property
    def committed_at(self) -> float:
        """Seconds since 1970-01-01 UTC of the newest generation's commit; 0 without one."""
        return self._state.committed_ns / 1e9

    @property
    def bytes_used(self) -> int:
        """Bytes of all readable packs and of the manifests that this object knows."""
        with self.catalog.lock:
            packs = sum(pack.file_bytes for pack in self._state.packs.values())
            return packs + sum(self._state.manifest_bytes.values())

    @property
    def fingerprints(self) -> dict[int, str]:
        """Labels by id; a copy."""
        with self.catalog.lock:
            return dict(self._state.fingerprints)

    def fingerprint(self, label: str) -> int:
        """The id of a label, 1 to 65535; 0 for the empty label. Every pack that uses an id carries
        its label. Raises RefusedError when the table is full."""
        if not label:
            return 0
        with self.catalog.lock:
            known = self._state.fingerprints
            if label not in known.values() and len(known) >= FINGERPRINTS_MAX - 1:
                raise RefusedError("the table of fingerprints is full")
            return self._state.fingerprint(label)

    def incarnation(self, segment_id: bytes) -> Incarnation:
        """The ordinal and the epoch base of a segment (16 bytes). A new one is durable before this
        returns, so that versions keep their order whatever happens next. Raises DiskError."""
        known = self._state.incarnations.get(segment_id)
        if known is not None:
            return known
        self._check_writable()
        return self._intake.incarnation(segment_id)

    # --- writing ------------------------------------------------------------------------------

    def begin_pack(self) -> PackWriter:
        """A writer for the next pack. Raises DiskError when pack numbers are used up."""
        self._check_writable()
        return self._intake.begin_pack()

    def journal(self, removals: Removals | None = None, *, epoch: int | None = None) -> I64:
        """Remove keys, or with `epoch` everything of earlier epochs: durable before this returns.
        Returns the catalog rows that were live until now. Raises DiskError: then nothing is
        removed here, although a restart may find that it was."""
        self._check_writable()
        return self._intake.remove(removals, epoch)

    def commit(
        self, *, prune: bool = True, retain: int | None = None, write_debt_bytes: int = 0
    ) -> ManifestSummary:
        """Make a snapshot of what is live: one manifest, read back; then prune, unless `prune` is
        off because a source has not been put back yet. `retain` generations stay, if that is fewer
        than usual; `write_debt_bytes` is what the daily write budget owes, for the next process.

        Raises DiskError or CorruptError: the generation before is untouched then and nothing is
        pruned. A failure to prune is no failure of the snapshot; `ManifestSummary.pruned` says it.

        Crash argument: a crash before the manifest's rename leaves the generation before and the
        packs after it, which is the same state; after it, this one. Deleting comes last.
        """
        self._check_writable()
        summary = self._committer.commit(
            prune=prune, retain=retain, write_debt_bytes=write_debt_bytes
        )
        self._journal.restore_ballast()
        return summary

    def compact(
        self,
        packs: Collection[int],
        *,
        pace: Callable[[int], None] = unpaced,
        adopting: Adopting = nobody,
        stop: Callable[[], bool] = never,
    ) -> CompactionResult:
        """Copy the live blocks of these packs, by sequence, into new packs, verified: see
        `snapd.repository.compaction`. Commits then let the emptied packs go, when the last retained
        generation that names them goes.

        `pace` is called with the bytes that are to be read and written next and may wait,
        `adopting` lets whoever keeps row numbers go over to the new ones, `stop` is asked every few
        MiB. Raises DiskError or CorruptError: then some blocks may have moved, and none is lost.
        """
        self._check_writable()
        with self._compact_lock:
            compaction = Compaction(
                self._state,
                self._access,
                self.begin_pack,
                pack_bytes_max=self._pack_bytes_max,
                pace=pace,
                adopting=adopting,
                stop=stop,
            )
            return compaction.run(packs)

    def prune(
        self,
        retain: int | None = None,
        *,
        move_unreadable: bool = False,
        dry_run: bool = False,
    ) -> PruneResult:
        """Delete what no retained generation needs, without making a new one; `retain` (1 or more)
        generations stay, if that is fewer than usual. Not while a source has not been put back.

        `move_unreadable` moves damaged files aside first. `dry_run` only says what would be done,
        and needs no more than a repository that is open for reading.
        """
        if not dry_run:
            self._check_writable()
        return self._committer.prune(PruneRules(retain, move_unreadable, dry_run))

    def packs(self) -> list[PackInfo]:
        """Readable packs, by rising sequence; a copy."""
        with self.catalog.lock:
            return list(self._state.packs.values())

    def writing(self) -> list[int]:
        """Sequences of the packs that are being written."""
        return self._intake.writing()

    def condemn(self, packs: Collection[int]) -> None:
        """Have these packs, by sequence, go with the next commit: they are not named any more, and
        generations that name them go as well. Nothing live may be left in them by then; a pack that
        still has live blocks stays until it has none."""
        self._check_writable()
        with self.catalog.lock:
            self._state.condemned |= set(packs) & set(self._state.packs)

    @property
    def commit_is_due(self) -> bool:
        """Whether the journal has grown so long that a commit should not wait for its interval."""
        return self._committer.is_due

    def space_use(self) -> SpaceUse:
        """Bytes of all files. Raises DiskError if a directory cannot be listed."""
        return self._space.use(self._state, self._intake.bytes_writing)

    def space_columns(self, retained: int) -> SpaceColumns:
        """Packs and live rows, for `snapd.plans.space`, if the newest `retained` of the manifests
        that are there now keep what they name."""
        return self._space.columns(self._state, self._committer.named(retained))

    # --- reading ------------------------------------------------------------------------------

    def read(self, rows: I64, buffers: Sequence[Buffer]) -> Bools:
        """Read the blocks in these catalog rows, from where they are by now; bool [n], which are
        whole and have their checksums. See `read_blocks` for the buffers. Raises DiskError."""
        return self._access.read(rows, buffers)[0]

    def read_newest(self, rows: I64, buffers: Sequence[Buffer]) -> tuple[Bools, I64]:
        """As `read`; also the rows of the copies that were read, int64 [n]. Raises DiskError."""
        return self._access.read(rows, buffers)

    def reject(self, rows: I64) -> int:
        """Take rows whose bytes are bad out of the live set for good, and keep a copy of what is on
        disk for a look, as far as the quarantine has room. Returns the copies made."""
        self._check_writable()
        return self._access.reject(rows)

    def generations(self) -> list[Generation]:
        """Every manifest on disk, oldest first. Raises DiskError if they cannot be listed."""
        return generations(self.disk, self.repository_id)

    def show(self, generation: int) -> Manifest:
        """One manifest. Raises NothingThereError, CorruptError, NewerFormatError or DiskError."""
        return show(self.disk, self.repository_id, generation)

    def verify(
        self,
        generation: int | None = None,
        *,
        all_blocks: bool = False,
        sample: Sample | None = None,
        progress: Progress | None = None,
    ) -> Verification:
        """Read every byte that matters and check it; changes nothing. See `Verifier`."""
        verifier = Verifier(self.disk, self.repository_id, self._files)
        return verifier.run(generation, all_blocks=all_blocks, sample=sample, progress=progress)

    # --- inside -------------------------------------------------------------------------------

    def _recover(self, *, use_manifests: bool) -> Recovery:
        found = recover_state(self.disk, self.repository_id, use_manifests=use_manifests)
        recovery = found.recovery
        if found.newer and not self.read_only:
            raise refuse_newer(found.newer[0])
        if recovery.source == "empty" and found.corrupt and not self.read_only:
            self._moved_aside += move_aside(self.disk, found.corrupt)
        recovery.moved_aside = list(self._moved_aside)
        recovery.write_debt_bytes += self._leftover_bytes + journal_bytes(self.disk)
        self._state = found.state
        self._access = BlockAccess(self.disk, self._files, self._state)
        self._corrupt = found.corrupt
        self._intake.close()
        self._journal = Journal(
            self.disk,
            self.repository_id,
            found.journal.sequence_last,
            found.journal.taken,
            ballast_bytes=self._ballast_bytes,
        )
        if not self.read_only:
            self._journal.renew(found.journal)
        self._intake = self._new_intake()
        self._committer = self._new_committer(found.journal.keep)
        self._recovered = True
        return recovery

    def _new_intake(self) -> Intake:
        return Intake(
            self.disk,
            self._state,
            self._journal,
            codec=self._codec,
            pack_bytes_max=self._pack_bytes_max,
        )

    def _new_committer(self, journal_keep: frozenset[int]) -> Committer:
        return Committer(
            self.disk,
            self._state,
            self._journal,
            self._intake,
            journal_keep=journal_keep,
            retain=self.retain,
            now=self._now,
        )

    def _check_writable(self) -> None:
        if self.read_only:
            raise RefusedError("the repository is open for reading")
        if not self._recovered:
            raise RefusedError("recover the repository before writing to it")
