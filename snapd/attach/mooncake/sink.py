"""`MooncakeSink`: puts lost blocks back into Mooncake, and believes only what it sees there.

Mooncake has no cold blocks: what waits is known here alone, and comes back by a plain put. A put
answers 0 for a key that exists (nothing newer is written over), and for one that is listed in a
dead segment, where nothing is written at all. So nothing counts before the master lists the key in
a live segment of ours and the bytes there have the block's checksum.

A removal of a block that waits leaves no trace but the master's counters. So a put happens only
while they stand where the last look at the master left them, and what was put while they moved is
taken out again: it waits, and the next look decides whether it may come back.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from snapd.attach.mooncake.attachment import Attachment
from snapd.attach.mooncake.counters import Counters
from snapd.attach.mooncake.master import MasterSegment, is_askable
from snapd.attach.mooncake.places import NOWHERE, Places
from snapd.attach.mooncake.putting import Putter, Putters, StagingMemory, padded
from snapd.attach.mooncake.rooms import Rooms
from snapd.attach.port import I32, Fill, Registered
from snapd.blocks import BlockTable
from snapd.blocks.keys import I64, U64, Bools
from snapd.blocks.table import U32
from snapd.errors import SegmentError
from snapd.wire.codes import ReturnCode

STAGING_BYTES = 64 * 2**20
"""Of one lane; what a window of the warm-up needs at most, unless it is a single larger block."""

ATTEMPTS_MAX = 20
"""Puts of a block that the master does not list afterwards; then it is left on disk."""


class Looks(Protocol):
    """What the sink asks of the one who looks at the master."""

    def settled(self) -> Counters | None:
        """The counters of the last look whose consequences are drawn, from before its listing."""

    def watch(self, now: Counters) -> None:
        """These counters were seen: look soon if they say that something was removed."""


@dataclass
class _Reservation:
    """What is known of the n blocks of the fill under way."""

    table: BlockTable
    """In the order of `rows`."""
    rows: I64
    """Positions in the fill, int64 [m], ascending."""
    offsets: U64
    """In the staging memory, uint64 [m]."""
    store: I64
    """Position of the store that each goes to, int64 [m]."""
    held: Places
    """Where the bytes of a life before were."""


class MooncakeSink:
    """A `Sink`; for one thread, and one fill at a time."""

    def __init__(
        self, attachment: Attachment, putters: Putters, looks: Looks, *, watermark_ratio: float
    ) -> None:
        """`watermark_ratio` is that of `Rooms`. Nothing is connected to yet."""
        self._attachment = attachment
        self._inventory = attachment.inventory
        self._putters = putters
        self._looks = looks
        self._rooms = Rooms(attachment.layout, putters, watermark_ratio)
        self._admin = attachment.open_admin()
        self._staging: StagingMemory | None = None
        self._open: dict[int, Putter] = {}
        self._reservation: _Reservation | None = None

    # --- the port -------------------------------------------------------------------------------

    def register_cold(self, table: BlockTable) -> Registered:
        """Slots of the inventory."""
        with self._inventory.lock:
            self._attachment.check_current()
            return self._inventory.register_cold(table)

    def cold_ready(self) -> None:
        """Nobody can ask for cold blocks here; what this session puts back is complete."""
        with self._inventory.lock:
            self._attachment.check_current()
            self._inventory.registered()

    def wanted(self, wait_ms: int) -> tuple[U32, U64]:
        """Nothing, after the wait: Mooncake does not say who waits for what."""
        time.sleep(wait_ms / 1000)
        return np.zeros(0, np.uint32), np.zeros(0, np.uint64)

    def reserve(self, slots: U32, sequences: U64, sizes: U64, *, demand: bool) -> Fill:
        """Staging memory for blocks that are to be put. Where a file of a life before has their
        bytes, they are in it already.

        REPLICA_IS_NOT_READY for all while dead segments of ours are listed.
        """
        self._give_back()
        listed = self._listed()
        codes: I32 = np.full(len(slots), ReturnCode.OBJECT_NOT_FOUND, np.int32)
        with self._inventory.lock:
            self._attachment.check_current()
            taken, fresh = self._inventory.take_cold(slots, sequences)
            table = self._inventory.describe(slots[taken].astype(np.int64))
            held = self._inventory.held(slots[taken])
        rows = np.flatnonzero(taken)
        if self._attachment.is_waiting(listed):
            codes[rows] = ReturnCode.REPLICA_IS_NOT_READY
            return _fill(slots, sequences, fresh, codes, {})
        codes[rows], store = self._admit(table, slots[taken], sequences[taken])
        good = codes[rows] == ReturnCode.OK
        reservation = _Reservation(
            table.take(good), rows[good], np.zeros(0, np.uint64), store[good], held.take(good)
        )
        return self._stage(reservation, _fill(slots, sequences, fresh, codes, {}))

    def publish(self, fill: Fill, codes: I32) -> I32:
        """Put what was loaded, and publish what is seen in our memory afterwards."""
        result = np.where(fill.codes == ReturnCode.OK, codes, fill.codes).astype(np.int32)
        reservation, self._reservation = self._reservation, None
        if reservation is None:
            return result
        try:
            self._drop(fill, codes, ReturnCode.OBJECT_NOT_FOUND, removed=True)
            self._drop(fill, codes, ReturnCode.INVALID_READ, removed=False)
            at = np.flatnonzero(codes[reservation.rows] == ReturnCode.OK)
            if len(at):
                with self._putters.turn:
                    result[reservation.rows[at]] = self._put(fill, reservation, at)
                    self._give_back()
        finally:
            self._give_back()
        self._punch(reservation, result)
        return result

    def drop_cold(self, slots: U32, sequences: U64) -> None:
        """Of the inventory."""
        self._inventory.drop_cold(slots, sequences)

    def close(self) -> None:
        """Close connections and give the memory back; idempotent."""
        self._give_back()
        for putter in self._open.values():
            putter.close()
            self._putters.closed()
        self._open.clear()
        if self._staging is not None:
            self._staging.close()
            self._staging = None
        self._admin.close()

    # --- before the bytes are read ----------------------------------------------------------------

    def _listed(self) -> list[MasterSegment]:
        """All segments; raises StoreUnavailableError when ours are not as they were."""
        listed = self._admin.segments()
        self._attachment.layout.check(listed)
        return listed

    def _admit(self, table: BlockTable, slots: U32, sequences: U64) -> tuple[I32, I64]:
        """The code of each block, int32 [n], and the store to put it into, int64 [n]."""
        codes: I32 = np.zeros(len(table), np.int32)
        for row, key in enumerate(table.keys.to_list()):
            if not is_askable(key) or table.size[row] == 0:
                # Nobody could ever see that it has arrived.
                codes[row] = ReturnCode.TRANSFER_FAIL
        located = self._admin.locate(table.keys, self._attachment.layout.segments)
        codes[located.found] = ReturnCode.OBJECT_ALREADY_EXISTS
        self._retake(table.take(located.found))
        # What is in our segments the next look takes in; what lives with others is theirs.
        others = located.found & (located.segment < 0)
        self._inventory.drop_cold(slots[others], sequences[others])
        codes[located.found & self._putters.doubted(table.keys)] = ReturnCode.REPLICA_IS_NOT_READY
        wanting = np.flatnonzero(codes == ReturnCode.OK)
        store = np.full(len(table), -1, np.int64)
        store[wanting] = self._rooms.share(table.size[wanting], self._listed)
        codes[wanting[store[wanting] < 0]] = ReturnCode.NO_AVAILABLE_HANDLE
        return codes, store

    def _stage(self, reservation: _Reservation, fill: Fill) -> Fill:
        """Give each block its piece of the staging memory, with what an old file has of it.

        Raises StoreUnavailableError, SegmentError.
        """
        sizes = reservation.table.size
        needed = int(padded(sizes).sum())
        if not needed:
            return fill
        staging = self._memory(needed)
        for number in np.unique(reservation.store).tolist():
            self._putter(number, staging)
        reservation.offsets, pieces = staging.pieces(sizes)
        self._reservation = reservation
        held, held_only = np.zeros(len(fill.codes), np.bool_), np.zeros(len(fill.codes), np.bool_)
        old = self._attachment.memory.views(reservation.held)
        for at, view in enumerate(old):
            if view is not None:
                pieces[at][: view.nbytes] = view
                held[reservation.rows[at]] = True
        alone = np.array(sorted(self._attachment.died_alone), np.int64)
        held_only[reservation.rows] = np.isin(reservation.held.file, alone)
        buffers = dict(zip(reservation.rows.tolist(), pieces, strict=True))
        staged = _fill(fill.cold_slots, fill.cold_sequences, fill.sequences, fill.codes, buffers)
        return replace(staged, held=held, held_only=held_only & held)

    def _memory(self, needed_bytes: int) -> StagingMemory:
        if self._staging is not None and self._staging.size_bytes < needed_bytes:
            for number in list(self._open):
                self._open.pop(number).close()
                self._putters.closed()
            self._staging.close()
            self._staging = None
        if self._staging is None:
            self._staging = StagingMemory(max(STAGING_BYTES, needed_bytes))
        return self._staging

    def _putter(self, number: int, staging: StagingMemory) -> Putter:
        """The connection for a store; a broken one is replaced."""
        putter = self._open.get(number)
        if putter is not None and putter.closed:
            del self._open[number]
            self._putters.closed()
            putter = None
        if putter is None:
            putter = self._putters.connect(self._attachment.store_urls[number], staging)
            self._open[number] = putter
        return putter

    # --- after they were read ---------------------------------------------------------------------

    def _put(self, fill: Fill, reservation: _Reservation, at: I64) -> I32:
        """Put these blocks of a reservation; what became of each, int32 [m].

        Killed anywhere in here, the next daemon finds the blocks listed, and hashes them.
        """
        waiting: I32 = np.full(len(at), ReturnCode.REPLICA_IS_NOT_READY, np.int32)
        before = self._admin.counters()
        if self._is_unsettled(before):
            return waiting
        codes = self._put_by_store(reservation, at)
        table = reservation.table.take(at)
        good, elsewhere, other, places = self._confirm(table)
        if _may_have_removed(before, self._counted()):
            self._take_out(table.take(good))
            return waiting
        listed = self._listed()
        if self._attachment.is_waiting(listed):
            return waiting
        result = self._judge(table, codes, good)
        rows = reservation.rows[at]
        # Others have put other bytes: the next look takes them in, and says what ended.
        result[other] = ReturnCode.OBJECT_NOT_FOUND
        result[elsewhere] = ReturnCode.OBJECT_NOT_FOUND
        self._inventory.drop_cold(
            fill.cold_slots[rows[elsewhere]], fill.cold_sequences[rows[elsewhere]]
        )
        kept = np.flatnonzero(good)
        result[kept] = self._settle(fill, rows[kept], places.take(kept))
        self._take_out(table.take(kept[result[kept] != ReturnCode.OK]))
        return result

    def _is_unsettled(self, now: Counters) -> bool:
        """Whether something was removed that no look has accounted for."""
        settled = self._looks.settled()
        if settled is not None and not _may_have_removed(settled, now):
            return False
        self._looks.watch(now)
        return True

    def _counted(self) -> Counters:
        now = self._admin.counters()
        self._looks.watch(now)
        return now

    def _put_by_store(self, reservation: _Reservation, at: I64) -> I32:
        codes: I32 = np.zeros(len(at), np.int32)
        assert self._staging is not None
        endpoints = {one.store: one.segment.endpoint for one in self._attachment.layout.live}
        for number in np.unique(reservation.store[at]).tolist():
            part = np.flatnonzero(reservation.store[at] == number)
            rows = at[part]
            putter = self._putter(number, self._staging)
            codes[part] = putter.put(
                reservation.table.keys.take(rows),
                reservation.offsets[rows],
                reservation.table.size[rows],
                endpoints[number],
            )
        return codes

    def _confirm(self, table: BlockTable) -> tuple[Bools, Bools, Bools, Places]:
        """Which blocks are in our memory with their checksum, which are listed with others only,
        and which are in our memory with other bytes, bool [n] each; and where they are."""
        layout = self._attachment.layout
        located = self._admin.locate(table.keys, layout.segments)
        places = layout.places(located)
        inside = places.file != NOWHERE
        checksums, there = self._attachment.memory.hashes(places)
        same = inside & there & (checksums == table.checksum) & (places.size == table.size)
        return same, located.found & ~inside, inside & ~same, places

    def _judge(self, table: BlockTable, codes: I32, good: Bools) -> I32:
        """Of blocks that were put: 0, or why not yet, or why not at all."""
        result: I32 = np.full(len(table), ReturnCode.REPLICA_IS_NOT_READY, np.int32)
        result[codes == ReturnCode.NO_AVAILABLE_HANDLE] = ReturnCode.NO_AVAILABLE_HANDLE
        failed = (codes != ReturnCode.OK) & (codes != ReturnCode.NO_AVAILABLE_HANDLE)
        missing = failed | ((codes == ReturnCode.OK) & ~good)
        result[missing & self._putters.failed_too_often(table, missing, ATTEMPTS_MAX)] = (
            ReturnCode.TRANSFER_FAIL
        )
        return result

    def _settle(self, fill: Fill, rows: I64, places: Places) -> I32:
        with self._inventory.lock:
            self._attachment.check_current()
            return self._inventory.publish(
                fill.cold_slots[rows], fill.cold_sequences[rows], fill.sequences[rows], places
            )

    # --- what should not be there -----------------------------------------------------------------

    def _take_out(self, table: BlockTable) -> None:
        """Remove blocks that we put and that may have been removed. One that a reader has a lease
        on stays in doubt until a later try: its memory must not go under the reader."""
        if len(table):
            store = self._attachment.layout.live[0].store
            codes = self._putter(store, self._memory(1)).remove(table.keys)
            gone = (codes == ReturnCode.OK) | (codes == ReturnCode.OBJECT_NOT_FOUND)
            self._putters.doubt(table.keys, gone)

    def _retake(self, table: BlockTable) -> None:
        """Try again with those in doubt, if they are still as we put them."""
        table = table.take(self._putters.doubted(table.keys))
        if len(table):
            with self._putters.turn:
                good, _, _, _ = self._confirm(table)
                self._putters.doubt(table.keys.take(~good), np.ones(int((~good).sum()), np.bool_))
                self._take_out(table.take(good))

    # --- the rest ---------------------------------------------------------------------------------

    def _drop(self, fill: Fill, codes: I32, code: ReturnCode, *, removed: bool) -> None:
        rows = np.flatnonzero((fill.codes == ReturnCode.OK) & (codes == code))
        self._inventory.drop_cold(fill.cold_slots[rows], fill.cold_sequences[rows], removed=removed)

    def _punch(self, reservation: _Reservation, result: I32) -> None:
        """Give back the memory in old files of blocks that are back. A file that is not dead yet
        (its segment is being unmounted) is left; what cannot be punched goes with its file."""
        done = result[reservation.rows] == ReturnCode.OK
        places = reservation.held.take(done)
        for number in set(places.file.tolist()) & set(self._attachment.dead.values()):
            file = self._attachment.memory.get(number)
            if file is not None:
                here = places.take(places.file == number)
                for start, end in _runs(here.offset, here.size):
                    with contextlib.suppress(SegmentError):
                        file.punch(start, end - start)

    def _give_back(self) -> None:
        """What was reserved is put, or will not be."""
        self._rooms.give_back()
        self._reservation = None


def _may_have_removed(before: Counters, now: Counters) -> bool:
    """Whether a block that waits may have been removed between these looks: any removal may have
    been of it, also one that found another version there, put meanwhile."""
    names = (
        *("removes", "regex_removes", "remove_alls", "clears"),
        *("failed_removes", "failed_clears"),
    )
    return any(getattr(before, name) != getattr(now, name) for name in names)


def _fill(
    slots: U32, sequences: U64, fresh: U64, codes: I32, buffers: dict[int, memoryview]
) -> Fill:
    """A fill whose blocks stay in their slots."""
    given = codes == ReturnCode.OK
    return Fill(
        slots,
        sequences,
        codes,
        np.where(given, slots, 0).astype(np.uint32),
        np.where(given, fresh, np.uint64(0)),
        [buffers.get(row, memoryview(b"")) for row in range(len(slots))],
    )


def _runs(offsets: U64, sizes: U64) -> list[tuple[int, int]]:
    """Ranges that cover these blocks, those that touch made one."""
    order = np.argsort(offsets)
    starts, ends = offsets[order], (offsets + sizes)[order]
    first = np.concatenate([[True], starts[1:] != ends[:-1]])
    last = np.concatenate([first[1:], [True]])
    return list(zip(starts[first].tolist(), ends[last].tolist(), strict=True))
