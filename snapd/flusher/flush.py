"""`Flush`: one look at the store, and everything new in it brought to disk.

The order of steps is what makes it safe, whenever it is killed:

1. Scan, and compare with what was settled before. What left leaves the live set, but only in a life
   of the store in which everything had been put back first.
2. What is new and whose bytes some pack has already needs no write: its old copy is live (again).
3. What there is no room for, or what is colder than all that would have to go for it, is left out.
   If the disk has other bytes of such a key, their end is journaled first: the key was replaced,
   and nothing on disk will say so.
4. The rest goes to a pack, hottest first: pin, verify and write, look again, leave out what moved.
   Nothing refers to the pack until it is sealed, so a death leaves a temporary file.
5. Seal. From then on the blocks are durable, manifest or not; only then are they settled.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from snapd.attach.port import PINNED_BYTES_MAX, Scan, Source
from snapd.attach.session import Session
from snapd.attach.traced import TracedHeat
from snapd.blocks import BlockTable
from snapd.blocks.keys import I64, U64, Bools
from snapd.blocks.table import U32
from snapd.config import event
from snapd.flusher.admission import WRITE, Admission
from snapd.plans import diff_scan, pages_hottest_first, windows
from snapd.plans.diff import same_bytes
from snapd.plans.residency import REJECTED
from snapd.repository import PackWriter, Removals, Repository, RowState

_DESCRIBE_SLOTS = 16_384
"""Slots described at a time: bounds the memory of a flush of very many small blocks."""

_LOOKS_MAX = 3
"""Complete looks after which slots that cannot be read are taken for empty."""

_SPEED_BYTES_MIN = 2**22
"""Bytes written before the disk's speed is believed: a single small write is all latency."""

_logger = logging.getLogger(__name__)


@dataclass
class FlushResult:
    """What one flush did."""

    written: int = 0
    written_bytes: int = 0
    matched: int = 0
    """New in the store, and their bytes on disk already."""
    evicted: int = 0
    moved: int = 0
    """Left before they were on disk."""
    unread: int = 0
    """Slots that were just changing, or are damaged: left for the next look."""
    rejected: int = 0
    """Bytes in memory that are not what their checksum says."""
    no_slot: int = 0
    """Blocks on disk, the coldest, that left the live set: the store has no slot for them."""
    revived: list[I64] = field(default_factory=list)
    """Catalog rows, int64, that are live again: durable once a manifest says so."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Blocks that were left out for the first time, by the labels of `admission.REASONS`."""
    complete: bool = True
    """False if the deadline cut it short."""


@dataclass
class Flush:
    """One flush of one session."""

    session: Session
    source: Source
    repository: Repository
    pace: Callable[[int], None]
    admission: Admission
    traced: TracedHeat
    """What clients look up, which decides what is written first."""
    deadline: Callable[[], float] = lambda: float("inf")
    """On the monotonic clock, asked before each piece: what is not written by then is left."""
    piece_bytes_max: int = PINNED_BYTES_MAX
    """Bytes that are written between two looks at the deadline."""
    looks: int = 0
    """Complete looks since everything is served."""
    settled: Callable[[], None] = lambda: None
    """Called after each sealed pack: what it holds is settled."""
    result: FlushResult = field(default_factory=FlushResult)
    _writer: PackWriter | None = None
    _pending: list[tuple[U32, U64]] = field(default_factory=list)
    """Slots and sequences of what the open pack was given, in order."""
    _scan: Scan = field(default_factory=Scan.empty)
    _append_seconds: float = 0.0
    _append_bytes: int = 0
    """How long writing took, and how much it was: so fast is the disk."""

    def run(self) -> FlushResult:
        """Flush. Raises DiskError; then nothing of the open pack is on disk or settled."""
        served = self.session.served.is_set()
        self.admission.begin(self.session, self.source)
        new = self._compare()
        try:
            for at in range(0, len(new), _DESCRIBE_SLOTS):
                if not self._flush_slots(new[at : at + _DESCRIBE_SLOTS]):
                    self.result.complete = False
                    break
            self._seal()
        finally:
            if self._writer is not None:
                self._writer.abort()
        if served and self.result.complete:
            self.looks += 1
            # A slot that cannot be read now may hold what would then seem to be gone; but one that
            # never can must not keep evictions from being seen for good.
            if self.result.unread == 0 or self.looks >= _LOOKS_MAX:
                self._finish_settling()
        return self.result

    def _compare(self) -> I64:
        """Let go what left; return the slots with something new, hottest first."""
        residency, catalog = self.session.residency, self.repository.catalog
        with residency.lock:
            scan = self.source.scan()
            live = catalog.is_live(residency.row)
            change = diff_scan(scan.sequence, residency.sequence, residency.row, live)
            # Evicted into the SSD tier: the same version in the same slot, and on disk only.
            np.copyto(residency.cold, scan.cold, where=scan.sequence == residency.sequence)
            if self._counts(scan):
                rows = residency.row[change.gone]
                catalog.set_live(rows[rows >= 0], live=False)
                self.result.evicted = len(change.gone)
                residency.forget(change.gone)
        self._scan = scan
        ranks = self.traced.ranks_of_slots(self.source, change.new)
        return change.new[pages_hottest_first(ranks, scan.sequence[change.new])]

    def _counts(self, scan: Scan) -> bool:
        """Whether what this scan lacks has really left: it was there in this same life of the
        store, after everything that an earlier life lost had been put back."""
        session = self.session
        return session.settled.is_set() and scan.boot_id == session.boot_id

    def _flush_slots(self, slots: I64) -> bool:
        """Write what is new in these slots; False when the deadline has come."""
        table = self.source.describe(slots)
        # What moved since the scan is left for the next one, like what is just being written.
        table = table.take(table.slot_sequence == self._scan.sequence[table.slot])
        self.result.unread += len(slots) - len(table)
        table = self.traced.warmed(self._identify(table))
        table = table.take(self._unmatched(table))
        order = np.arange(len(table), dtype=np.int64)
        # A pack is sealed between two pieces, so a piece is no longer than a pack.
        bytes_max = min(self.piece_bytes_max, self.admission.pack_bytes_max)
        for piece in windows(order, table.size, bytes_max=bytes_max, blocks_max=_DESCRIBE_SLOTS):
            part = table if len(piece) == len(table) else table.take(piece)
            if not self._in_time(part):
                return False
            part = self._admitted(part, writes=True)
            if len(part):
                self.pace(int(part.size.sum()))
                self._write(part)
        return True

    def _in_time(self, part: BlockTable) -> bool:
        """Whether this piece will be written by the deadline, if the disk is no slower than it has
        been."""
        share = int(part.size.sum()) / max(self._append_bytes, _SPEED_BYTES_MIN)
        return time.monotonic() + share * self._append_seconds < self.deadline()

    def _admitted(self, table: BlockTable, *, writes: bool) -> BlockTable:
        """The blocks that come in; the others are noted as left out."""
        verdict = self.admission.judge(table, writes=writes)
        out = np.flatnonzero(verdict != WRITE)
        if not len(out):
            return table
        left = table.take(out)
        self._end_older_versions(left)
        self._settle(left, np.arange(len(left)), verdict[out])
        for label, blocks in self.admission.left(left, verdict[out]).items():
            self.result.left_out[label] = self.result.left_out.get(label, 0) + blocks
        return table.take(np.flatnonzero(verdict == WRITE))

    def _end_older_versions(self, table: BlockTable) -> None:
        """Journal that what the disk has of these keys is over, where it is not the same bytes: a
        new version on disk would have said so, and there is going to be none."""
        catalog = self.repository.catalog
        with catalog.lock:  # or compaction could move a block between two of these looks
            found = catalog.find(table.keys, table.key_hash)
            at = np.flatnonzero(found >= 0)
            rows = found[at]
            state = catalog.state_of(rows)
            alive = (state == RowState.LIVE) | (state == RowState.EVICTED)
            over = Removals.of_blocks(catalog.take(rows[alive & ~self._same(table, at, rows)]))
        if len(over):
            self.repository.journal(over)

    def _same(self, table: BlockTable, at: I64, rows: I64) -> Bools:
        """Whether these catalog rows hold the bytes of the blocks at these positions."""
        catalog = self.repository.catalog
        return same_bytes(
            table.size[at],
            table.checksum[at],
            catalog.column("size", rows),
            catalog.column("checksum", rows),
        )

    def _identify(self, table: BlockTable) -> BlockTable:
        """The same blocks with the repository's names of their incarnation and epoch."""
        return table.with_columns(
            incarnation=np.full(len(table), self.session.ordinal),
            epoch=table.epoch.astype(np.int64) + self.session.epoch_base,
        )

    def _unmatched(self, table: BlockTable) -> I64:
        """Rows of `table` that must be written; settle the others, whose bytes are on disk.

        A match lets the old copy of the key be live again, unless the key was removed since: then
        the block must be written under its own sequence, or the removal would take it along.
        """
        catalog = self.repository.catalog
        found = catalog.find(table.keys, table.key_hash)
        at = np.flatnonzero(found >= 0)
        at = at[self._same(table, at, found[at])]
        may = self._may_live(table, at, found[at])
        left, at = at[~may], at[may]
        rows = found[at]
        was_live = catalog.is_live(rows)
        live = catalog.set_live(rows, live=True)
        self._note_revived(rows[live & ~was_live])
        self._settle(table, at[live], rows[live])
        self.result.matched += int(live.sum())
        rest = np.ones(len(table), np.bool_)
        rest[at[live]] = False
        rest[left] = False
        # A cold block without bytes on disk cannot be loaded. The store drops it with `cold_ready`,
        # since this daemon has not registered it.
        orphans = np.flatnonzero(rest & self._scan.cold[table.slot])
        self._settle(table, orphans, np.full(len(orphans), REJECTED))
        rest[orphans] = False
        return np.flatnonzero(rest)

    def _note_revived(self, rows: I64) -> None:
        """These are live again: as yet only to this process, if a manifest says otherwise."""
        self.result.revived.append(rows)
        if len(rows) and self.session.open_offload is not None:
            with self.session.residency.lock:
                self.session.revived.append(rows)

    def _may_live(self, table: BlockTable, at: I64, rows: I64) -> Bools:
        """Which of these matches may be live: those that are, those of cold blocks (which have no
        other copy), and evicted ones that are hot enough to come back."""
        evicted = self.repository.catalog.state_of(rows) == RowState.EVICTED
        evicted &= ~self._scan.cold[table.slot[at]]
        result: Bools = np.ones(len(at), np.bool_)
        back = np.flatnonzero(evicted)
        if len(back):
            kept = self._admitted(table.take(at[back]), writes=False)
            result[back] = np.isin(table.slot[at[back]], kept.slot)
        return result

    def _write(self, table: BlockTable) -> None:
        """Append one batch to the open pack.

        The look again comes after the write: what still has its slot and sequence then was not
        touched while it was read. Without a pin (the store is dead) that look is the only defence.
        """
        if self._writer is None:
            self._writer = self.repository.begin_pack()
        first = self._writer.appended
        started = time.monotonic()
        with self.source.pinned(table):
            good = self._writer.append(table, self.source.buffers(table))
            still = self.source.still(table)
        self._append_seconds += time.monotonic() - started
        self._append_bytes += int(table.size.sum())
        self._writer.drop(first + np.flatnonzero(good & ~still))
        self.result.moved += int((~still).sum())
        bad = np.flatnonzero(~good & still)
        if len(bad):
            self._reject(table.take(bad))
        self._pending.append((table.slot, table.slot_sequence))
        if self._writer.full or self._writer.bytes_written >= self.admission.pack_bytes_max:
            self._seal()

    def _reject(self, table: BlockTable) -> None:
        """Never written as good, and not looked at again; the store drops what it finds bad."""
        self.result.rejected += len(table)
        self._settle(table, np.arange(len(table)), np.full(len(table), REJECTED))
        self.source.report_corrupt(table)
        event(
            _logger,
            logging.WARNING,
            "blocks in memory do not have their checksum",
            blocks=len(table),
        )

    def _seal(self) -> None:
        """Make the open pack durable and settle what it holds."""
        if self._writer is None:
            return
        writer, pending = self._writer, self._pending
        self._writer, self._pending = None, []
        try:
            rows = writer.seal()
        finally:
            writer.abort()
        if not len(rows):
            return
        slots = np.concatenate([part[0] for part in pending])
        sequences = np.concatenate([part[1] for part in pending])
        kept = rows >= 0
        with self.session.residency.lock:
            self.session.residency.settle(slots[kept], sequences[kept], rows[kept], cold=False)
        self.settled()
        self.result.written += int(kept.sum())
        self.result.written_bytes += writer.bytes_written

    def _settle(self, table: BlockTable, at: I64, rows: I64) -> None:
        """Note what the slots of `table` at these positions hold."""
        cold = self._scan.cold[table.slot[at]]
        residency = self.session.residency
        with residency.lock:
            for flag in (False, True):
                part = at[cold == flag]
                residency.settle(
                    table.slot[part], table.slot_sequence[part], rows[cold == flag], cold=flag
                )

    def _finish_settling(self) -> None:
        """Every slot has been matched once. Keys that the store knew when they were to be
        registered, and that no slot holds now, have been replaced or evicted since."""
        session = self.session
        if session.settled.is_set():
            return
        with session.residency.lock:
            refused = np.concatenate([np.empty(0, np.int64), *session.refused])
            self.repository.catalog.set_live(session.residency.not_held(refused), live=False)
            session.refused.clear()
            self._leave_out()
            session.settled.set()

    def _leave_out(self) -> None:
        """The number of slots is a budget: what the store had no slot for leaves the live set.

        Nobody can read it, and to the store its key is one that it does not know: what happens to
        that key is not told to the disk with the certainty that a slot gives. A later life with
        more slots must not bring back what by then its owner takes for gone. The caller holds the
        residency's lock.
        """
        session, catalog = self.session, self.repository.catalog
        rows = np.concatenate([np.empty(0, np.int64), *session.no_slot])
        rows = session.residency.not_held(rows)
        rows = rows[catalog.is_live(rows)]
        session.no_slot.clear()
        if not len(rows):
            return
        catalog.set_live(rows, live=False)
        self.result.no_slot = len(rows)
        event(
            _logger,
            logging.WARNING,
            "the store has too few slots for all blocks on disk; the coldest are given up: "
            "set segment_blocks_max higher to keep them",
            blocks=len(rows),
        )
