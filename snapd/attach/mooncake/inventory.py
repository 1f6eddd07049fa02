"""`Inventory`: what is known of the blocks in Mooncake's segments of ours, by slot.

Mooncake has no slot table, so this is the numbering that the attach port asks for: a *slot* holds
one key, resident (with its place in one of our files and its checksum) or cold (on disk only). A
slot with its sequence names one version; sequences come from one counter and are never used twice.
Everything here is memory of this process; a new one builds it again by looking at the store.

All methods are vectorised, and each is one step under `lock`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from enum import Enum

import numpy as np

from snapd.attach.mooncake.changes import ChangeLog
from snapd.attach.mooncake.lost import LostBlocks
from snapd.attach.mooncake.places import NOWHERE, Kept, Places
from snapd.attach.mooncake.slots import SlotTable
from snapd.attach.port import I32, Registered, Scan
from snapd.blocks import BlockTable, KeyColumn
from snapd.blocks.keys import I64, U64, Bools
from snapd.blocks.table import F32, U32
from snapd.plans.heat import HALF_LIFE_SECONDS, PRESENCE
from snapd.wire.codes import ReturnCode


class ColdPolicy(Enum):
    """What becomes of a block on disk whose key the store does not list when it is attached."""

    LOST = "lost"
    """A change of incarnation lost it: it is put back."""
    KNOWN = "known"
    """It is put back if it waited for that in the session before, or was lost since: everything
    else left within that session."""
    GONE = "gone"
    """It left within the life that goes on, evicted as far as can be told: it is let go."""
    REMOVED = "removed"
    """As GONE, and somebody may have removed it: that is told, so that it is made durable."""


class Inventory(SlotTable):
    """Columns over `capacity` slots."""

    def __init__(self, capacity: int, *, clock: Callable[[], float] = time.time) -> None:
        """`clock` gives Unix time in seconds, for heat."""
        super().__init__(capacity, clock)
        self.lock = threading.RLock()
        """Hold it to make several calls one step. Taken after the residency's lock, never before.
        """
        self.changes = ChangeLog()
        """What the feed tells."""
        self.boot_id = b""
        """The session that this describes; see `begin`."""
        self.cold_policy = ColdPolicy.LOST
        """What `register_cold` does with keys that are not listed."""
        self.dropped_for_space = 0
        """Blocks of the store that there was no slot for, of the last `insert`."""
        self._lost = LostBlocks()
        self._is_registered = False
        self.was_registered = False
        """Whether any session has registered all that it may put back."""

    # --- sessions -------------------------------------------------------------------------------

    def begin(self, boot_id: bytes, policy: ColdPolicy) -> int:
        """A session begins; returns the remove-alls that it has to journal first, 0 or 1.

        Cold blocks are forgotten, because the registrar registers all of them in each session.
        Epochs begin at 0 again: a new incarnation has a base of its own.

        A session that ended before everything was registered passes on what it was to put back,
        and its doubts: nobody has seen what it did not get to.
        """
        with self.lock:
            if not self._is_registered and self.cold_policy is ColdPolicy.REMOVED:
                policy = ColdPolicy.REMOVED
            self.boot_id, self.cold_policy = boot_id, policy
            cold = np.flatnonzero(self._cold[: self._unused])
            self._lost.begin(
                self.describe(cold),
                self._file[cold],
                was_registered=self._is_registered,
                keeps_waiting=policy is ColdPolicy.KNOWN,
            )
            self._is_registered = False
            self._release(cold)
            self.epoch = self.changes.renumber()
            self._epoch[: self._unused] = self.epoch
            return self.epoch

    def registered(self) -> None:
        """Everything on disk that this session may put back was registered cold."""
        with self.lock:
            self._is_registered = self.was_registered = True

    def mark(self) -> int:
        """A moment: what becomes resident from now on has a later stamp."""
        with self.lock:
            return self._stamp

    # --- for the source -------------------------------------------------------------------------

    def scan(self) -> Scan:
        """Sequences and cold flags of all slots."""
        with self.lock:
            return Scan(self._sequence.copy(), self._cold.copy(), self.boot_id)

    def describe(self, slots: I64) -> BlockTable:
        """The blocks in these slots, in order, without the free ones. `offset` is the offset in
        the file of `places`, 0 for a cold block."""
        with self.lock:
            slots = slots[(slots >= 0) & (slots < self.capacity)]
            slots = slots[self._sequence[slots] != 0]
            resident = ~self._cold[slots]
            return BlockTable.for_keys(self._keys.take(slots), self._hash[slots]).with_columns(
                epoch=self._epoch[slots],
                sequence=self._sequence[slots],
                size=self._size[slots],
                stored_size=self._size[slots],
                checksum=self._checksum[slots],
                fingerprint=self._fingerprint[slots],
                group=self._group[slots],
                pin=self._pin[slots],
                parent=self._parent[slots],
                heat=self.heat(slots),
                slot=slots,
                slot_sequence=self._sequence[slots],
                offset=np.where(resident, self._offset[slots], np.uint64(0)),
            )

    def heat(self, slots: I64) -> F32:
        """Heat of the blocks in these slots, float32 [n]: Mooncake does not tell who reads what,
        so it is the heat that a block came with, decayed."""
        with self.lock:
            age = np.maximum(self._clock() - self._since[slots], 0.0)
            heat: F32 = (self._heat[slots] * np.exp2(-age / HALF_LIFE_SECONDS)).astype(np.float32)
            return heat

    def places(self, slots: I64 | U32, sequences: U64) -> Places:
        """Where these versions are; `NOWHERE` where the slot is cold or holds another version."""
        with self.lock:
            there = (self._sequence[slots] == sequences) & ~self._cold[slots] & (sequences != 0)
            return Places(
                np.where(there, self._file[slots], NOWHERE),
                np.where(there, self._offset[slots], np.uint64(0)),
                np.where(there, self._size[slots], np.uint64(0)),
            )

    def doubt(self, slots: I64 | U32, sequences: U64) -> None:
        """Bytes at these places are not what their checksum says: have them hashed again."""
        with self.lock:
            rows = slots.astype(np.int64)
            rows = rows[self._is(rows, sequences, cold=False)]
            self._hashed_at[rows] = 0

    # --- for the sink ---------------------------------------------------------------------------

    def register_cold(self, table: BlockTable) -> Registered:
        """Cold slots for these blocks: OBJECT_ALREADY_EXISTS where the key is known, or counts as
        gone (`cold_policy`); NO_AVAILABLE_HANDLE where there is no slot."""
        rows = len(table)
        codes: I32 = np.full(rows, ReturnCode.OBJECT_ALREADY_EXISTS, np.int32)
        slots, sequences = np.zeros(rows, np.uint32), np.zeros(rows, np.uint64)
        with self.lock:
            new = np.flatnonzero(self._find(table.keys, table.key_hash) < 0)
            if self.cold_policy is ColdPolicy.REMOVED:
                self._tell_removed(table.keys.take(new))
            new = new[self._may_come_back(table.take(new))]
            codes[new] = ReturnCode.NO_AVAILABLE_HANDLE
            given = self._claim(len(new))
            new = new[: len(given)]
            codes[new] = ReturnCode.OK
            part = table if len(new) == rows else table.take(new)
            self._write(given, part.keys, part.key_hash, part.size, part.checksum)
            held = self._lost.held_by(part)
            self._cold[given] = True
            self._file[given], self._offset[given] = held.file, held.offset
            self._fingerprint[given], self._group[given] = part.fingerprint, part.group
            self._pin[given], self._parent[given] = part.pin, part.parent
            self._heat[given] = part.heat
            slots[new], sequences[new] = given.astype(np.uint32), self._sequence[given]
            return Registered(codes, slots, sequences)

    def drop_cold(self, slots: U32 | I64, sequences: U64, *, removed: bool = False) -> int:
        """Forget cold blocks; pairs that are no longer true are passed over. With `removed`
        somebody may have removed them, which is told. How many were still cold."""
        with self.lock:
            rows = slots.astype(np.int64)
            rows = np.unique(rows[self._is(rows, sequences, cold=True)])
            if removed:
                self._tell_removed(self._keys.take(rows))
            self._release(rows)
            return len(rows)

    def drop_all_cold(self) -> int:
        """Forget every cold block because somebody may have removed it, and tell that, so that it
        stays removed; how many."""
        with self.lock:
            rows = np.flatnonzero(self._cold[: self._unused])
            return self.drop_cold(rows, self._sequence[rows], removed=True)

    def take_cold(self, slots: U32, sequences: U64) -> tuple[Bools, U64]:
        """Which of these are still cold and of that version, bool [n], and the sequences that they
        will have once they are resident, uint64 [n], 0 for the others."""
        with self.lock:
            rows = slots.astype(np.int64)
            mask = self._is(rows, sequences, cold=True)
            taken = rows[mask]
            new = taken[self._fresh[taken] == 0]
            self._fresh[new] = self._sequences(len(new))
            return mask, np.where(mask, self._fresh[rows], np.uint64(0))

    def held(self, slots: U32) -> Places:
        """Where the bytes of these cold blocks may still be from a life before, in files that the
        store does not have mounted any more; the checksum decides."""
        with self.lock:
            rows = slots.astype(np.int64)
            there = self._cold[rows] & (self._file[rows] != NOWHERE)
            return Places(
                np.where(there, self._file[rows], NOWHERE),
                np.where(there, self._offset[rows], np.uint64(0)),
                np.where(there, self._size[rows], np.uint64(0)),
            )

    def publish(self, slots: U32, cold_sequences: U64, fresh_sequences: U64, places: Places) -> I32:
        """Cold blocks are resident at these places, seen and verified there; int32 [n]: 0, or
        OBJECT_NOT_FOUND where the slot holds something else by now."""
        codes: I32 = np.full(len(slots), ReturnCode.OBJECT_NOT_FOUND, np.int32)
        with self.lock:
            rows = slots.astype(np.int64)
            # A look at the store may have been faster: then the block is resident already, under
            # the sequence that it was promised.
            codes[self._is(rows, fresh_sequences, cold=False)] = ReturnCode.OK
            at = np.flatnonzero(
                self._is(rows, cold_sequences, cold=True) & (self._fresh[rows] == fresh_sequences)
            )
            codes[at] = ReturnCode.OK
            self._settle(rows[at], fresh_sequences[at], places.take(at))
        return codes

    # --- files that come and go -------------------------------------------------------------------

    def lose(self, files: I64) -> I64:
        """The segments in these files are dead. Their resident blocks are not there any more, and
        are not gone either: where their bytes were is remembered for `held`. Returns the slots,
        int64, so that the residency forgets them."""
        with self.lock:
            resident = (self._sequence[: self._unused] != 0) & ~self._cold[: self._unused]
            rows = np.flatnonzero(resident & np.isin(self._file[: self._unused], files))
            if len(rows):
                self._lost.lose(self.describe(rows), self._file[rows])
                self._release(rows)
            return rows

    def drop_waiting(self, files: I64, listed: U64, *, removed: bool) -> int:
        """Before cold blocks are registered: what was lost in these files and is not among the
        `listed` key hashes left before its segment did. With `removed` that is told. How many."""
        with self.lock:
            left = self._lost.drop_unlisted(files, listed)
            if removed:
                self._tell_removed(left)
            return len(left)

    def doubt_waiting(self) -> None:
        """Before cold blocks are registered: somebody may have removed any of them. None is put
        back in this session, and that is told when they are to be registered."""
        with self.lock:
            self.cold_policy = ColdPolicy.REMOVED

    def forget_files(self, files: I64) -> None:
        """These files are deleted: nothing is held there any more."""
        with self.lock:
            cold = np.flatnonzero(self._cold[: self._unused])
            self._file[cold[np.isin(self._file[cold], files)]] = NOWHERE
            self._lost.forget_files(files)

    # --- for the look at the store ----------------------------------------------------------------

    def look_up(self, keys: KeyColumn, hashes: U64) -> I64:
        """The slot of each key, resident or cold, int64 [n], -1 where there is none."""
        with self.lock:
            return self._find(keys, hashes)

    def resident(self, mark: int | None = None) -> Kept:
        """The resident blocks, with a mark only those that were before it."""
        with self.lock:
            there = (self._sequence[: self._unused] != 0) & ~self._cold[: self._unused]
            if mark is not None:
                there &= self._stamped[: self._unused] <= np.uint64(mark)
            slots = np.flatnonzero(there)
            return Kept(
                slots,
                self._sequence[slots],
                Places(self._file[slots], self._offset[slots], self._size[slots]),
                self._checksum[slots],
                self._hashed_at[slots],
            )

    def is_new(self, slots: I64) -> Bools:
        """Of what `look_up` found: which keys are not resident, bool [n]."""
        with self.lock:
            return (slots < 0) | self._cold[slots]

    def held_in(self, files: I64) -> tuple[I64, U64]:
        """Slots and sequences of the cold blocks that `held` gives a place in these files."""
        with self.lock:
            cold = np.flatnonzero(self._cold[: self._unused])
            cold = cold[np.isin(self._file[cold], files)]
            return cold, self._sequence[cold]

    def keys_of(self, slots: I64) -> KeyColumn:
        """Keys of these slots; empty ones where a slot is free."""
        with self.lock:
            return self._keys.take(slots)

    def vanished(self, slots: I64, sequences: U64, *, removed: bool) -> int:
        """These versions are not listed any more; with `removed` somebody may have removed them,
        which is told. How many were still held."""
        with self.lock:
            rows = slots[self._is(slots, sequences, cold=False)]
            if removed:
                self._tell_removed(self._keys.take(rows))
            self._release(rows)
            return len(rows)

    def insert(
        self,
        keys: KeyColumn,
        hashes: U64,
        places: Places,
        checksums: U64,
        *,
        look: int,
        fingerprint: int = 0,
    ) -> int:
        """Blocks that the store lists and that were hashed in place; how many there was no slot
        for. Keys that were cold are resident now: as the version that was put back, if the bytes
        are the same; else something newer has come, and the older version's end is told."""
        with self.lock:
            slots = self._find(keys, hashes)
            known = slots >= 0
            resident = known.copy()
            resident[known] &= ~self._cold[slots[known]]
            cold = known & ~resident
            same = cold.copy()
            same[cold] = (self._size[slots[cold]] == places.size[cold]) & (
                self._checksum[slots[cold]] == checksums[cold]
            )
            self._put_back_by_others(slots[same], places.take(same), look)
            newer = cold & ~same
            self._tell_removed(keys.take(newer))
            self._release(slots[newer])
            at = np.flatnonzero(~known | newer)
            given = self._claim(len(at))
            self.dropped_for_space = len(at) - len(given)
            at = at[: len(given)]
            self._write(given, keys.take(at), hashes[at], places.size[at], checksums[at])
            self._file[given], self._offset[given] = places.file[at], places.offset[at]
            self._fingerprint[given] = fingerprint
            self._heat[given] = PRESENCE
            self._hashed_at[given] = look
            self._stamped[given] = self._next_stamp()
            return self.dropped_for_space

    def moved(self, slots: I64, sequences: U64, places: Places) -> None:
        """These versions are at other places now, with the same bytes (see `renew` otherwise)."""
        with self.lock:
            at = np.flatnonzero(self._is(slots, sequences, cold=False))
            self._file[slots[at]], self._offset[slots[at]] = places.file[at], places.offset[at]
            self._size[slots[at]] = places.size[at]

    def renew(
        self,
        slots: I64,
        sequences: U64,
        places: Places,
        checksums: U64,
        *,
        look: int,
        fingerprint: int = 0,
    ) -> int:
        """Hashed again. Where bytes, size or checksum differ from before, the slot holds a new
        version, with this fingerprint, under a new sequence, and the end of the one before is told;
        how many."""
        with self.lock:
            at = np.flatnonzero(self._is(slots, sequences, cold=False))
            rows = slots[at]
            self._hashed_at[rows] = look
            self._file[rows], self._offset[rows] = places.file[at], places.offset[at]
            other = (self._checksum[rows] != checksums[at]) | (self._size[rows] != places.size[at])
            rows, at = rows[other], at[other]
            self._size[rows], self._checksum[rows] = places.size[at], checksums[at]
            self._fingerprint[rows] = fingerprint
            fresh = self._sequences(len(rows))
            self._sequence[rows] = fresh
            self._heat[rows], self._since[rows] = PRESENCE, self._clock()
            self.changes.removed(self._keys.take(rows), fresh, self.epoch)
            return len(rows)

    def remove_all(self) -> int:
        """Somebody removed everything. What is listed all the same came after that, as far as can
        be told: it gets new sequences in a new epoch. Cold blocks are gone; how many."""
        with self.lock:
            cold = np.flatnonzero(self._cold[: self._unused])
            self._release(cold)
            self.epoch += 1
            rows = np.flatnonzero(self._sequence[: self._unused])
            self._sequence[rows] = self._sequences(len(rows))
            self._epoch[rows] = self.epoch
            self.changes.removed_all(self.epoch)
            return len(cold)

    def counts(self) -> tuple[int, int, int]:
        """Resident blocks, their bytes, and cold blocks."""
        with self.lock:
            there = self._sequence[: self._unused] != 0
            cold = self._cold[: self._unused]
            resident = there & ~cold
            size = int(self._size[: self._unused][resident].sum())
            return int(resident.sum()), size, int(cold.sum())

    # --- inside: the caller holds the lock --------------------------------------------------------

    def _may_come_back(self, table: BlockTable) -> Bools:
        """Which of these blocks, on disk and not listed, the policy lets be put back."""
        if self.cold_policy is ColdPolicy.KNOWN:
            return self._lost.may_come_back(table.keys, table.key_hash)
        return np.full(len(table), self.cold_policy is ColdPolicy.LOST)

    def _settle(self, rows: I64, sequences: U64, places: Places) -> None:
        """Cold blocks become resident."""
        self._lost.used(self._keys.take(rows), self._hash[rows])
        self._cold[rows] = False
        self._sequence[rows], self._fresh[rows] = sequences, 0
        self._file[rows], self._offset[rows] = places.file, places.offset
        self._stamped[rows] = self._next_stamp()

    def _put_back_by_others(self, rows: I64, places: Places, look: int) -> None:
        promised = self._fresh[rows]
        missing = promised == 0
        promised[missing] = self._sequences(int(missing.sum()))
        self._settle(rows, promised, places)
        self._hashed_at[rows] = look

    def _tell_removed(self, keys: KeyColumn) -> None:
        """The end of every version of these keys up to now."""
        self.changes.removed(keys, self._sequences(len(keys)), self.epoch)
