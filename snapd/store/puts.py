"""Puts: reserve, publish, revoke."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from snapd.blocks import Pin
from snapd.blocks.keys import I64, U64, Bools, KeyColumn
from snapd.blocks.labels import tagged_with
from snapd.formats.segment import DATA_UNIT_BYTES, SlotState, data_units
from snapd.store.batches import (
    I32,
    codes_reply,
    first_of_key,
    padded_keys,
    reserved_reply,
    rounds,
    slots_and_sequences,
)
from snapd.store.blocks import SOFT_PIN_SECONDS, BlockStore
from snapd.store.book import new_records
from snapd.store.daemon import DaemonSession
from snapd.store.keys import PaddedKeys
from snapd.store.labels import UNLABELLED, Label
from snapd.store.removals import Removals
from snapd.store.room import Room
from snapd.wire.codes import ReturnCode
from snapd.wire.messages import Codes, PutEnd, PutRevoke, PutStart, Reserved, decode_column

PIN_MAX = 2


@dataclass(frozen=True, slots=True)
class _Kept:
    """How n blocks are to be kept, columns [n]."""

    pin: npt.NDArray[np.uint8]
    soft_seconds: npt.NDArray[np.float32]
    """For how long a soft pin holds once the block is published."""
    group: npt.NDArray[np.uint32]
    moves: Bools
    """Which blocks would take a key from one group to another."""


class Puts:
    """Unpublished blocks are not in the index: two writers of one key may both reserve, and the
    first to publish wins, unless the second one upserts."""

    def __init__(
        self, blocks: BlockStore, room: Room, daemon: DaemonSession, removals: Removals
    ) -> None:
        self._blocks = blocks
        self._room = room
        self._daemon = daemon
        self._removals = removals

    def start(
        self, request: PutStart, writer: int, now: float, label: Label = UNLABELLED
    ) -> Reserved:
        """Reserve a slot and an extent for each block. INVALID_KEY for keys that are not of the
        writer's `label`. Raises ProtocolError."""
        blocks = self._blocks
        keys = padded_keys(request.keys)
        sizes = decode_column(request.sizes, np.uint64, len(keys))
        codes = np.zeros(len(keys), np.int32)
        if not request.upsert:
            found = blocks.find(keys)
            codes[self._daemon.serves(found) | ~first_of_key(keys)] = (
                ReturnCode.OBJECT_ALREADY_EXISTS
            )
        codes[~tagged_with(keys.keys, label.tag)] = ReturnCode.INVALID_KEY
        codes[sizes == 0] = ReturnCode.INVALID_PARAMS
        codes[sizes > blocks.segment.geometry.data_bytes] = ReturnCode.NO_AVAILABLE_HANDLE
        if not 0 <= request.pin <= PIN_MAX:
            codes[:] = ReturnCode.INVALID_PARAMS
        kept = self._kept(keys, request, now)
        codes[kept.moves] = ReturnCode.INVALID_PARAMS

        slots = np.zeros(len(keys), np.int64)
        offsets = np.zeros(len(keys), np.int64)
        sequences = np.zeros(len(keys), np.uint64)
        wanted = np.flatnonzero(codes == ReturnCode.OK)
        allowed = self._within_bounds(writer, data_units(sizes[wanted]))
        codes[wanted[~allowed]] = ReturnCode.NO_AVAILABLE_HANDLE
        wanted = wanted[allowed]
        got = self._room.reserve(keys, wanted, sizes[wanted], now, evict=True)
        codes[wanted[got.slots < 0]] = ReturnCode.NO_AVAILABLE_HANDLE
        won = got.slots >= 0
        rows, into = wanted[won], got.slots[won]
        records = new_records(len(rows))
        records["sequence"] = blocks.segment.take_sequences(len(rows))
        records["key_hash"] = keys.hashes[rows]
        records["size"] = sizes[rows]
        records["extent"] = got.extents[won]
        records["key_offset"] = got.key_offsets[won]
        records["key_length"] = keys.lengths[rows]
        records["epoch"] = blocks.segment.epoch
        records["group"] = kept.group[rows]
        records["fingerprint"] = label.short
        records["writer"] = writer
        records["state"] = SlotState.WRITING
        records["pin"] = kept.pin[rows]
        blocks.heap.write(keys, rows, got.key_offsets[won])
        blocks.book.fill(into, records)
        blocks.upsert[into] = request.upsert
        blocks.soft_seconds[into] = kept.soft_seconds[rows]
        slots[rows], sequences[rows] = into, records["sequence"]
        offsets[rows] = blocks.segment.geometry.data_offset + got.extents[won] * DATA_UNIT_BYTES
        return reserved_reply(codes, slots, sequences, offsets)

    def _kept(self, keys: PaddedKeys, request: PutStart, now: float) -> _Kept:
        """How the blocks of a request are to be kept. Raises ProtocolError.

        One that replaces another block keeps its hard pin and, where the request says so, its soft
        pin; and its group, which no block can leave for another while the key is there.
        """
        count, blocks = len(keys), self._blocks
        given = decode_column(request.groups, np.uint32, count) if request.groups else None
        group = np.zeros(count, np.uint32) if given is None else given
        pin = np.full(count, request.pin, np.uint8)
        seconds = np.full(count, _soft_seconds(request.soft_pin_ttl_ms), np.float32)
        moves = np.zeros(count, np.bool_)
        if request.upsert:
            found = blocks.find(keys)
            replaces = self._daemon.serves(found)
            old = found[replaces]
            theirs = blocks.book.records["group"][old]
            if given is None:
                group[replaces] = theirs
            else:
                moves[replaces] = theirs != given[replaces]
            left = np.maximum(blocks.soft_until[old] - now, 0) * request.keep_pin
            soft = np.flatnonzero(replaces)[left > 0]
            pin[soft] = np.maximum(pin[soft], Pin.SOFT)
            seconds[soft] = left[left > 0]
            pin[np.flatnonzero(replaces)[blocks.book.records["pin"][old] == Pin.HARD]] = Pin.HARD
        return _Kept(pin, seconds, group, moves)

    def _within_bounds(self, writer: int, units: I64) -> Bools:
        """Which of these reservations do not make the writer's unfinished space too much."""
        blocks = self._blocks
        may = partial(
            blocks.book.unfinished.may_reserve,
            writer,
            units,
            units_capacity=blocks.segment.geometry.data_units,
            slots_capacity=len(blocks.book),
        )
        allowed = may()
        if not allowed.all():
            blocks.reclaim()
            allowed = may()
        return allowed

    def end(self, request: PutEnd, writer: int, now: float) -> Codes:
        """Publish blocks. Raises ProtocolError."""
        rows, sequences = slots_and_sequences(request.slots, request.sequences)
        checksums = decode_column(request.checksums, np.uint64, len(rows))
        mine = self._unfinished(rows, sequences, writer)
        codes = np.full(len(rows), ReturnCode.OBJECT_NOT_FOUND, np.int32)
        at = np.flatnonzero(mine)
        for part in rounds(self._blocks.book.records["key_hash"][rows[at]]):
            # A slot named twice is finished after its first round.
            chosen = at[part]
            chosen = chosen[self._unfinished(rows[chosen], sequences[chosen], writer)]
            codes[chosen] = self._publish(rows[chosen], checksums[chosen], now)
        return codes_reply(codes)

    def not_durable(self, request: PutEnd, reply: Codes) -> Codes:
        """The reply in place of `reply` when what these blocks replaced may come back: an upsert
        says so. A put promised nothing of what was there before it."""
        rows, _ = slots_and_sequences(request.slots, request.sequences)
        codes = decode_column(reply.codes, np.int32, len(rows)).copy()
        published = np.flatnonzero(codes == ReturnCode.OK)
        codes[published[self._blocks.upsert[rows[published]]]] = ReturnCode.WRITE_FAIL
        return codes_reply(codes)

    def revoke(self, request: PutRevoke, writer: int) -> Codes:
        """Give reserved space back: its writer says that it will not write there again."""
        rows, sequences = slots_and_sequences(request.slots, request.sequences)
        mine = self._unfinished(rows, sequences, writer)
        self._blocks.free(np.unique(rows[mine]))
        return codes_reply(np.where(mine, ReturnCode.OK, ReturnCode.OBJECT_NOT_FOUND))

    def _unfinished(self, rows: I64, sequences: U64, writer: int) -> Bools:
        """Which rows are this writer's and still being written, bool [n]."""
        book = self._blocks.book
        held = book.holds(rows, sequences)
        at = np.where(held, rows, 0)
        mine: Bools = (
            held & (book.state[at] == SlotState.WRITING) & (book.records["writer"][at] == writer)
        )
        return mine

    def _publish(self, rows: I64, checksums: U64, now: float) -> I32:
        """Publish slots of different keys.

        The slot first, the replaced slot last: killed in between, the audit finds two versions of
        a key and keeps the newer. A slot whose key was damaged in the heap since it was reserved is
        given up: it would not replace the version that its key has.
        """
        blocks = self._blocks
        records = blocks.book.records[rows]
        keys = PaddedKeys(blocks.segment.mapping.keys_of(records), records["key_hash"].copy())
        intact = keys.keys.hashes() == keys.hashes
        blocks.counters.corrupt += int((~intact).sum())
        existing = blocks.find(keys)
        wins = intact & (~self._daemon.serves(existing) | blocks.upsert[rows])
        self._overtake(rows[wins], existing[wins])
        blocks.book.publish(rows[wins], checksums[wins])
        blocks.begin_leases(rows[wins], now)
        blocks.begin_pins(rows[wins], now)
        blocks.begin_heat(rows[wins], now)
        old = existing[wins]
        hashes, new = keys.hashes[wins], rows[wins]
        replaces = old >= 0
        if replaces.any():
            blocks.index.replace(hashes[replaces], old[replaces], new[replaces])
        blocks.index.insert(hashes[~replaces], new[~replaces])
        self._replace_on_disk(keys, np.flatnonzero(wins)[~replaces], rows)
        if replaces.any():
            names = keys.keys.take(np.flatnonzero(wins)[replaces])
            self._replace(old[replaces], new[replaces], names)
        blocks.free(rows[~wins])
        blocks.counters.puts += int(wins.sum())
        codes = np.where(wins, ReturnCode.OK, ReturnCode.OBJECT_ALREADY_EXISTS)
        return np.where(intact, codes, ReturnCode.WRITE_FAIL).astype(np.int32)

    def _replace_on_disk(self, keys: PaddedKeys, at: I64, rows: I64) -> None:
        """No slot had the keys at these rows, but the disk may have a version of each: it was
        evicted since the last snapshot, say. What an upsert puts in its place must stay dead in a
        power cut, so an upsert waits for the journal; a put says "the key was not there" and its
        bytes are the key's own, so it is only told, and only while nobody knows the disk.

        While no daemon takes removals, an upsert is answered at once, and what it may have replaced
        is noted in the segment: the new block may be evicted before a daemon comes.
        """
        upserts = self._blocks.upsert[rows[at]]
        told = at if self._removals.disk_is_unknown else at[upserts]
        if not len(told):
            return
        before = self._blocks.book.records["sequence"][rows[told]] - np.uint64(1)
        if self._daemon.listening:
            self._removals.remove_on_disk(keys, told, before)
            self._removals.superseded += int(upserts.sum())
        else:
            self._removals.keep(keys, told, before)

    def _replace(self, old: I64, new: I64, keys: KeyColumn) -> None:
        """Slots `new` hold newer versions of the keys of `old`.

        The same bytes again are no news to the disk: the copy that it has stays as good as it was.
        """
        records = self._blocks.book.records
        same = records["checksum"][old] == records["checksum"][new]
        same &= records["size"][old] == records["size"][new]
        self._removals.supersede(old[~same], keys.take(~same).to_list())
        self._blocks.free(old[same])

    def _overtake(self, rows: I64, existing: I64) -> None:
        """A block published now is newer than what it replaces and than every removal so far,
        even if its space was reserved before: it gets a new sequence where that does not hold."""
        blocks = self._blocks
        records = blocks.book.records
        sequences = records["sequence"][rows]
        late = sequences < np.where(existing >= 0, records["sequence"][existing], 0)
        late |= sequences < np.uint64(blocks.removed_below)
        late |= records["epoch"][rows] != blocks.segment.epoch
        if late.any():
            fresh = blocks.segment.take_sequences(int(late.sum()))
            blocks.book.identify(rows[late], fresh, blocks.segment.epoch)


def _soft_seconds(milliseconds: int) -> float:
    """How long a soft pin holds: the default without a number, at most a year."""
    return min(max(milliseconds, 0) / 1000, 31_536_000.0) or SOFT_PIN_SECONDS
