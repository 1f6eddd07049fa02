"""Cold blocks: registered by the daemon, loaded on demand or in the background, published."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from snapd.blocks import Pin
from snapd.blocks.keys import I64, U64, Bools
from snapd.blocks.labels import label_numbers, short_numbers
from snapd.errors import ProtocolError
from snapd.formats.segment import DATA_UNIT_BYTES, SlotState, data_units
from snapd.store.batches import (
    I32,
    codes_reply,
    padded_keys,
    reserved_reply,
    rounds,
    slots_and_sequences,
)
from snapd.store.blocks import BlockStore
from snapd.store.book import new_records
from snapd.store.daemon import DaemonSession
from snapd.store.keys import PaddedKeys
from snapd.store.room import Room
from snapd.wire.codes import ReturnCode
from snapd.wire.messages import (
    Codes,
    DropCold,
    FillEnd,
    FillStart,
    MarkDurable,
    RegisterCold,
    Reserved,
    decode_column,
)


class Cold:
    """Everything the daemon asks about cold blocks. The engine has checked that it is attached."""

    def __init__(self, blocks: BlockStore, room: Room, daemon: DaemonSession) -> None:
        self._blocks = blocks
        self._room = room
        self._daemon = daemon
        self._filling = np.full(len(blocks.book), -1, np.int64)
        """For each cold slot that is being filled, the new slot; -1 otherwise, int64 [slots]."""
        self.on_fill_failed: Callable[[I64], None] = lambda _rows: None
        """Called with cold slots that stay cold because their load failed."""

    # --- registering --------------------------------------------------------------------------

    def register(self, request: RegisterCold, now: float) -> Reserved:
        """Take blocks that are on disk only. Raises ProtocolError."""
        keys = padded_keys(request.keys, decode_column(request.key_hashes, np.uint64))
        count = len(keys)
        if len(keys.keys) != count:
            raise ProtocolError("key hashes and keys differ in number")
        columns: dict[str, npt.NDArray[Any]] = {
            "size": decode_column(request.sizes, np.uint64, count),
            "checksum": decode_column(request.checksums, np.uint64, count),
            "fingerprint": short_numbers(label_numbers(keys.keys)),
            "group": decode_column(request.groups, np.uint32, count),
            "pin": np.minimum(decode_column(request.pins, np.uint8, count), max(Pin)),
        }
        heats = decode_column(request.heats, np.float32, count)
        codes = np.full(count, ReturnCode.INVALID_PARAMS, np.int32)
        slots, sequences = np.zeros(count, np.int64), np.zeros(count, np.uint64)
        for part in rounds(keys.hashes):
            chosen = {name: column[part] for name, column in columns.items()}
            some = keys if len(part) == count else keys.take(part)
            codes[part], slots[part], sequences[part] = self._register(
                some, chosen, heats[part], now
            )
        return reserved_reply(codes, slots, sequences, np.zeros(count, np.int64))

    def _register(
        self,
        keys: PaddedKeys,
        columns: dict[str, npt.NDArray[Any]],
        heats: npt.NDArray[np.float32],
        now: float,
    ) -> tuple[I32, I64, U64]:
        """Codes, slots and sequences for keys of which none occurs twice."""
        blocks, book = self._blocks, self._blocks.book
        found = blocks.find(keys)
        at = np.where(found >= 0, found, 0)
        resident = (found >= 0) & (book.state[at] == SlotState.PUBLISHED)
        cold = (found >= 0) & ~resident
        same = (found >= 0) & (book.records["size"][at] == columns["size"])
        same &= book.records["checksum"][at] == columns["checksum"]
        blocks.durable[found[same & resident]] = self._daemon.generation
        same &= cold
        blocks.drop(found[cold & ~same])  # another version of it: the daemon knows the right one
        removed = book.records["key_hash"][book.state == SlotState.REMOVED]
        codes = np.zeros(len(keys), np.int32)
        codes[resident | np.isin(keys.hashes, removed)] = ReturnCode.OBJECT_ALREADY_EXISTS
        codes[columns["size"] == 0] = ReturnCode.INVALID_PARAMS
        rows = np.flatnonzero((codes == ReturnCode.OK) & ~same)
        got = self._room.reserve(keys, rows, np.zeros(len(rows), np.uint64), now, evict=False)
        codes[rows[got.slots < 0]] = ReturnCode.NO_AVAILABLE_HANDLE
        won = got.slots >= 0
        rows, into = rows[won], got.slots[won]
        records = new_records(len(rows))
        for name, column in columns.items():
            records[name] = column[rows]
        records["sequence"] = blocks.segment.take_sequences(len(rows))
        records["key_hash"] = keys.hashes[rows]
        records["key_offset"] = got.key_offsets[won]
        records["key_length"] = keys.lengths[rows]
        records["epoch"] = blocks.segment.epoch
        records["state"] = SlotState.COLD
        blocks.heap.write(keys, rows, got.key_offsets[won])
        book.fill(into, records)
        blocks.index.insert(keys.hashes[rows], into)
        blocks.begin_cold(into, heats[rows])
        slots = np.where(same, found, 0)
        slots[rows] = into
        blocks.durable[slots[codes == ReturnCode.OK]] = self._daemon.generation
        return codes, slots, book.records["sequence"][slots]

    def mark_durable(self, request: MarkDurable) -> Codes:
        """Resident blocks are on disk: if the daemon offloads, they become cold when they are
        evicted. Codes: OBJECT_NOT_FOUND for other versions, for what is not resident any more, and
        for all where the daemon has not heard of the last remove-all. Raises ProtocolError."""
        rows, sequences = slots_and_sequences(request.slots, request.sequences)
        blocks, book = self._blocks, self._blocks.book
        held = book.holds(rows, sequences)
        held &= book.state[np.where(held, rows, 0)] == SlotState.PUBLISHED
        held &= request.epoch == blocks.segment.epoch
        blocks.durable[rows[held]] = self._daemon.generation
        return codes_reply(np.where(held, ReturnCode.OK, ReturnCode.OBJECT_NOT_FOUND))

    def drop(self, request: DropCold) -> Codes:
        """Forget cold blocks, and of resident ones that they are on disk. Raises ProtocolError."""
        rows, sequences = slots_and_sequences(request.slots, request.sequences)
        cold = self._is_cold(rows, sequences)
        self._blocks.durable[rows[self._blocks.book.holds(rows, sequences)]] = 0
        self._blocks.drop(np.unique(rows[cold]))
        return codes_reply(np.where(cold, ReturnCode.OK, ReturnCode.OBJECT_NOT_FOUND))

    # --- filling ------------------------------------------------------------------------------

    def fill_start(self, request: FillStart, writer: int, now: float) -> Reserved:
        """Reserve new slots for cold blocks. Raises ProtocolError.

        Codes: OBJECT_NOT_FOUND for what is not cold any more, OBJECT_ALREADY_EXISTS for what is
        being filled, NO_AVAILABLE_HANDLE for want of space.
        """
        rows, sequences = slots_and_sequences(request.slots, request.sequences)
        blocks, book = self._blocks, self._blocks.book
        cold = self._is_cold(rows, sequences)
        codes = np.where(cold, ReturnCode.OK, ReturnCode.OBJECT_NOT_FOUND).astype(np.int32)
        at = np.where(cold, rows, 0)
        first = np.zeros(len(rows), np.bool_)
        first[np.unique(rows, return_index=True)[1]] = True
        codes[cold & (~first | (self._filling[at] >= 0))] = ReturnCode.OBJECT_ALREADY_EXISTS
        wanted = np.flatnonzero(codes == ReturnCode.OK)
        if not request.demand:
            room = self._room_below_watermark(rows[wanted])
            codes[wanted[~room]] = ReturnCode.NO_AVAILABLE_HANDLE
            wanted = wanted[room]
        sources = book.records[rows[wanted]]
        keys = PaddedKeys(blocks.segment.mapping.keys_of(sources), sources["key_hash"].copy())
        # Held against the eviction that makes room for it.
        held = blocks.pin_owner[rows[wanted]].copy()
        blocks.pin_owner[rows[wanted]] = -1
        got = self._room.reserve(
            keys, np.arange(len(wanted)), sources["size"], now, evict=request.demand
        )
        blocks.pin_owner[rows[wanted]] = held
        won = got.slots >= 0
        codes[wanted[~won]] = ReturnCode.NO_AVAILABLE_HANDLE
        if request.demand:
            self.on_fill_failed(rows[wanted[~won]])
        wanted, into = wanted[won], got.slots[won]
        records = sources[won]
        records["sequence"] = blocks.segment.take_sequences(len(wanted))
        records["checksum"] = 0
        records["extent"] = got.extents[won]
        records["key_offset"] = got.key_offsets[won]
        records["writer"] = writer
        records["state"] = SlotState.WRITING
        blocks.heap.write(keys, np.flatnonzero(won), got.key_offsets[won])
        book.fill(into, records)
        self._filling[rows[wanted]] = into
        slots, offsets = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64)
        new_sequences = np.zeros(len(rows), np.uint64)
        slots[wanted], new_sequences[wanted] = into, records["sequence"]
        offsets[wanted] = blocks.segment.geometry.data_offset + got.extents[won] * DATA_UNIT_BYTES
        return reserved_reply(codes, slots, new_sequences, offsets)

    def _room_below_watermark(self, rows: I64) -> Bools:
        """Which of these cold blocks, in order, fit below the eviction watermark."""
        units = np.cumsum(data_units(self._blocks.book.records["size"][rows]))
        result: Bools = units <= self._room.units_below_watermark()
        return result

    def fill_end(self, request: FillEnd, writer: int, now: float) -> Codes:
        """Publish filled blocks over their cold slots. Raises ProtocolError."""
        cold_rows, cold_sequences = slots_and_sequences(request.cold_slots, request.cold_sequences)
        rows, sequences = slots_and_sequences(request.slots, request.sequences)
        given = decode_column(request.codes, np.int32, len(rows))
        if len(cold_rows) != len(rows):
            raise ProtocolError("cold slots and filled slots differ in number")
        book = self._blocks.book
        held = book.holds(rows, sequences)
        at = np.where(held, rows, 0)
        held &= (book.state[at] == SlotState.WRITING) & (book.records["writer"][at] == writer)
        first = np.zeros(len(rows), np.bool_)
        first[np.unique(rows, return_index=True)[1]] = True
        held &= first
        cold = held & self._is_cold(cold_rows, cold_sequences)
        cold &= self._filling[np.where(cold, cold_rows, 0)] == rows
        self._filling[cold_rows[cold]] = -1
        publish = cold & (given == ReturnCode.OK)
        codes = np.where(publish, ReturnCode.OK, ReturnCode.OBJECT_NOT_FOUND).astype(np.int32)
        codes[held & (given != ReturnCode.OK)] = ReturnCode.OK
        self._publish(cold_rows[publish], rows[publish], now)
        self._blocks.free(rows[held & ~publish])
        failed = cold & ~publish
        self.on_fill_failed(cold_rows[failed])
        self._blocks.drop(cold_rows[failed & (given == ReturnCode.INVALID_READ)])
        return codes_reply(codes)

    def _publish(self, cold_rows: I64, rows: I64, now: float) -> None:
        """The new slot first, the cold slot last: killed in between, the audit finds two versions
        of a key and keeps the newer one."""
        blocks, book = self._blocks, self._blocks.book
        blocks.book.publish(rows, book.records["checksum"][cold_rows])
        blocks.heat[rows] = blocks.heat[cold_rows]
        blocks.lease_until[rows] = blocks.lease_until[cold_rows]
        blocks.soft_seconds[rows] = blocks.soft_seconds[cold_rows]
        blocks.durable[rows] = blocks.durable[cold_rows]
        blocks.begin_pins(rows, now)
        blocks.soft_until[rows] = blocks.soft_until[cold_rows]  # its time goes on, or is over
        blocks.index.replace(book.records["key_hash"][rows], cold_rows, rows)
        blocks.free(cold_rows)
        blocks.counters.filled += len(rows)

    def forget_fills(self, writer: int) -> I64:
        """A connection of the daemon is gone: another one may fill these cold slots now."""
        filling = np.flatnonzero(self._filling >= 0)
        theirs: Bools = self._blocks.book.records["writer"][self._filling[filling]] == writer
        self._filling[filling[theirs]] = -1
        return filling[theirs]

    def left(self, rows: I64) -> None:
        """These cold slots are being freed."""
        self._filling[rows] = -1

    def _is_cold(self, rows: I64, sequences: U64) -> Bools:
        book = self._blocks.book
        held = book.holds(rows, sequences)
        cold: Bools = held & (book.state[np.where(held, rows, 0)] == SlotState.COLD)
        return cold
