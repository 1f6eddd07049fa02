"""`Intake`: all that enters a repository between two commits. Packs, removals, incarnations."""

from __future__ import annotations

import secrets

import numpy as np

from snapd.blocks import BlockTable, Codec
from snapd.blocks.keys import I64
from snapd.disk import Disk
from snapd.formats.pack import REMOVALS_MAX, PackIndex
from snapd.formats.removals import Removals
from snapd.formats.sealed import ID_BYTES, PACK_MAGIC, FileHeader
from snapd.formats.tables import Incarnation
from snapd.repository.catalog import Catalog, RowState
from snapd.repository.files import SealedFile
from snapd.repository.journal import Journal
from snapd.repository.recovery import enter_pack
from snapd.repository.state import RepositoryState
from snapd.repository.writer import PackWriter

_REMOVALS_PER_CALL = REMOVALS_MAX // 16
"""Removals that are journaled at a time; a call with more seals packs in between. With the longest
keys twice as many still fit the index of one pack, which is why it is no more."""
RECENT_REMOVALS_MAX = 1 << 18
"""Removals remembered for packs that are being written, about 100 bytes each, beyond which these
are sealed early. A pack of a paced compaction may be open for minutes."""


class Intake:
    """Owner of the pack writers; brings the journal, the packs and the catalog together.

    A removal takes three steps: the journal, where it is durable at once; the next sealed pack,
    which makes the journal file superfluous; and the live set of the next manifest.
    """

    def __init__(
        self,
        disk: Disk,
        state: RepositoryState,
        journal: Journal,
        *,
        codec: Codec,
        pack_bytes_max: int,
    ) -> None:
        self._disk = disk
        self._state = state
        self._journal = journal
        self._codec = codec
        self._pack_bytes_max = pack_bytes_max
        self._writers: dict[PackWriter, int] = {}
        """Writers at work, and the last journal file that the index of their pack covers."""
        self._in_doubt: list[PackWriter] = []
        """Packs that failed and whose names could not be taken back."""
        self._recent: list[Removals] = []
        """Removals since the oldest of these writers began: its blocks may be older than they."""
        self._recent_rows = 0
        self.journal_sealed = 0
        """Journal files up to this one are covered by sealed packs."""

    @property
    def crowded(self) -> bool:
        """Whether very many removals are remembered because packs are being written."""
        return self._recent_rows > RECENT_REMOVALS_MAX

    @property
    def removals_pending(self) -> int:
        """Removals that are in no sealed pack yet."""
        return self._journal.pending

    def writing(self) -> list[int]:
        """Sequences of the packs that are being written, and of those that failed and may be on
        disk nevertheless. No manifest's floor is above them, so that recovery takes them in."""
        with self._state.catalog.lock:
            return [writer.header.sequence for writer in (*self._in_doubt, *self._writers)]

    def settle(self) -> None:
        """Try again to take back the names of packs that failed: as long as one may be there, it
        and all that comes after it have to be named by every manifest."""
        for writer in list(self._in_doubt):
            if writer.take_back():
                with self._state.catalog.lock:
                    self._in_doubt.remove(writer)

    @property
    def bytes_writing(self) -> int:
        """Bytes of the packs that are being written, so far."""
        with self._state.catalog.lock:
            return sum(writer.bytes_written for writer in self._writers)

    def begin_pack(self) -> PackWriter:
        """A writer for the next pack. Raises DiskError when pack numbers are used up."""
        state = self._state
        with state.catalog.lock:
            sequence = state.next_pack()
            header = FileHeader(
                PACK_MAGIC, state.repository_id, secrets.token_bytes(ID_BYTES), sequence
            )
            writer = PackWriter(
                self._disk, header, self, codec=self._codec, bytes_max=self._pack_bytes_max
            )
            self._writers[writer] = 0
            return writer

    def remove(self, removals: Removals | None, epoch: int | None) -> I64:
        """Make removals durable, then kill what they cover; returns the rows that were live.

        Raises DiskError: then a part may be done, and doing all of it again is right.
        """
        gone: list[I64] = [np.empty(0, np.int64)]
        if epoch is not None:
            self._journal.append(epoch=epoch)
            gone.append(self._state.catalog.remove_all(epoch))
        if removals is not None:
            for first in range(0, len(removals), _REMOVALS_PER_CALL):
                last = min(first + _REMOVALS_PER_CALL, len(removals))
                gone.append(self._remove(removals.take(np.arange(first, last))))
        return np.concatenate(gone)

    def incarnation(self, segment_id: bytes) -> Incarnation:
        """Give a new segment its ordinal and epoch base, durably. Raises DiskError."""
        state = self._state
        with state.catalog.lock:
            known = state.incarnations.get(segment_id)
            if known is not None:
                return known
            new = Incarnation(state.next_ordinal(), segment_id, state.epoch)
            self._journal.append(incarnations=[new])
            state.incarnations[segment_id] = new
            return new

    def close(self) -> None:
        """Give up all writers and close the journal; idempotent."""
        for writer in list(self._writers):
            writer.abort()
        self._journal.close()

    # --- PackOwner ----------------------------------------------------------------------------

    def pack_index(self, writer: PackWriter, blocks: BlockTable) -> PackIndex:
        """The index that a writer seals: its blocks, all that the journal has until now, and what
        has ended some of the blocks since the pack was begun. The latter may be in a pack already
        that has come and gone meanwhile, so this one has to say it of its own blocks."""
        state = self._state
        with state.catalog.lock:
            through, removals = self._journal.rotate()
            self._writers[writer] = through
            ended = blocks.take(_covered(blocks, self._recent))
            removals = Removals.concatenate([removals, Removals.of_blocks(ended)])
            # A store may have begun an epoch whose event is still on its way: its blocks tell.
            newest = int(blocks.epoch.max()) if len(blocks) else 0
            used = set(np.unique(blocks.fingerprint).tolist())
            return PackIndex(
                blocks=blocks.with_columns(
                    pack=np.full(len(blocks), writer.header.sequence, np.uint32)
                ),
                removals=removals,
                epoch=max(state.epoch, newest),
                incarnations=tuple(sorted(state.incarnations.values())),
                fingerprints={
                    one: label for one, label in state.fingerprints.items() if one in used
                },
            )

    def adopt(
        self, writer: PackWriter, sealed: SealedFile, index: PackIndex
    ) -> tuple[I64, BlockTable]:
        """A sealed pack enters the catalog, under what was removed since it was begun."""
        state = self._state
        with state.catalog.lock:
            superseded = enter_pack(state, sealed, index, None)
            rows = state.packs[sealed.header.sequence].rows
            state.catalog.remove(Removals.concatenate([index.removals, *self._recent]))
            through = self._writers[writer]
            self._journal.sealed(through)
            self.journal_sealed = max(self.journal_sealed, through)
            if len(superseded) and len(self._writers) > 1:
                # Another pack that is being written may hold a copy of what this one superseded.
                self._remember(Removals.of_blocks(superseded))
            # What a pack that was begun later superseded already, only that pack says so far.
            own = np.arange(rows.start, rows.stop)
            late = own[state.catalog.state_of(own) == RowState.SUPERSEDED]
            superseded = BlockTable.concatenate([superseded, state.catalog.take(late)])
        return own, superseded

    def superseded(self, blocks: BlockTable) -> None:
        """The pack itself says what it supersedes. The journal says it again until the next pack is
        sealed, so that losing one index to a bad medium cannot bring an old version back."""
        if len(blocks):
            self._journal.append_or_carry(Removals.of_blocks(blocks))

    def ended(self, writer: PackWriter, *, in_doubt: bool = False) -> None:
        """A writer is done."""
        with self._state.catalog.lock:
            if in_doubt:
                self._in_doubt.append(writer)
            self._writers.pop(writer, None)
            self._trim_recent()

    # --- inside -------------------------------------------------------------------------------

    def _remove(self, removals: Removals) -> I64:
        if self._journal.pending > _REMOVALS_PER_CALL:
            self.begin_pack().seal()
        self._journal.append(removals)
        catalog = self._state.catalog
        with catalog.lock:
            # A pack that is being written may hold what this removes, and be sealed later.
            self._remember(removals)
            gone = catalog.remove(removals)
            self._trim_recent()
            return gone

    def _trim_recent(self) -> None:
        """Forget removals that every pack from now on will know of."""
        if not self._writers:
            self._recent.clear()
            self._recent_rows = 0

    def _remember(self, removals: Removals) -> None:
        self._recent.append(removals)
        self._recent_rows += len(removals)


def _covered(blocks: BlockTable, recent: list[Removals]) -> I64:
    """Which of the blocks some of these removals cover, int64."""
    if not recent or not len(blocks):
        return np.empty(0, np.int64)
    removals = Removals.concatenate(recent)
    rows = np.flatnonzero(np.isin(blocks.key_hash, removals.key_hash))
    # A catalog of just these decides as the real one will: on full keys and versions.
    trial = Catalog()
    trial.add(blocks.take(rows))
    trial.remove(removals)
    covered: I64 = rows[trial.state_of(np.arange(len(rows))) == RowState.REMOVED]
    return covered
