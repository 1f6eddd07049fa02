"""Reads: exist, get, query, and reports of corrupt blocks."""

from __future__ import annotations

import logging

import numpy as np
import xxhash

from snapd.blocks.keys import I64
from snapd.config import event
from snapd.formats.segment import DATA_UNIT_BYTES, SlotState
from snapd.store.batches import codes_reply, padded_keys, slots_and_sequences
from snapd.store.blocks import BlockStore
from snapd.store.daemon import DaemonSession
from snapd.store.keys import PaddedKeys
from snapd.wire.codes import ReturnCode
from snapd.wire.messages import Codes, Exist, Located, Query, ReportCorrupt

_LOG = logging.getLogger(__name__)

REHASH_BYTES_MAX = 256 * 2**20
"""Most bytes that one report makes the store hash; blocks beyond are dropped unseen."""


class Reads:
    """What clients ask without changing anything but leases and heat."""

    def __init__(self, blocks: BlockStore, daemon: DaemonSession) -> None:
        self._blocks = blocks
        self._daemon = daemon

    def exist(self, request: Exist, now: float) -> Codes:
        """1 for every key that is served, under a lease. Raises ProtocolError."""
        found = self._blocks.find(padded_keys(request.keys))
        served = self._daemon.serves(found)
        self._blocks.lease(found[served], now)
        return codes_reply(served.astype(np.int32))

    def query(self, request: Query) -> Located:
        """Sizes, without lease. Raises ProtocolError."""
        found = self._blocks.find(padded_keys(request.keys))
        return self._located(np.where(self._daemon.serves(found), found, -1), offsets=False)

    def cold_among(self, keys: PaddedKeys) -> I64:
        """Cold slots that a get of these keys has to wait for."""
        found = self._blocks.find(keys)
        served = found[self._daemon.serves(found)]
        return np.unique(served[self._blocks.book.state[served] == SlotState.COLD])

    def get(self, keys: PaddedKeys, now: float) -> Located:
        """Where the resident ones of these keys are, under leases; the others are misses."""
        blocks = self._blocks
        found = blocks.find(keys)
        resident = (found >= 0) & (
            blocks.book.state[np.where(found >= 0, found, 0)] == (SlotState.PUBLISHED)
        )
        rows = found[resident]
        blocks.lease(rows, now)
        blocks.warm(rows, now)
        blocks.counters.hits += len(rows)
        blocks.counters.misses += len(found) - len(rows)
        return self._located(np.where(resident, found, -1), offsets=True)

    def report_corrupt(self, request: ReportCorrupt) -> Codes:
        """Check the blocks' bytes and drop those that are not what was put.

        Codes: 0 dropped, OBJECT_ALREADY_EXISTS the block is good and stays, OBJECT_NOT_FOUND.
        """
        rows, sequences = slots_and_sequences(request.slots, request.sequences)
        blocks = self._blocks
        held = blocks.book.holds(rows, sequences)
        held &= blocks.book.state[np.where(held, rows, 0)] == SlotState.PUBLISHED
        codes = np.full(len(rows), ReturnCode.OBJECT_NOT_FOUND, np.int32)
        budget = REHASH_BYTES_MAX
        good: dict[int, bool] = {}
        for row in rows[held].tolist():
            if row not in good:
                budget -= int(blocks.book.records["size"][row])
                good[row] = budget >= 0 and self._is_good(row)
        stays = np.array([good[row] for row in rows[held].tolist()], np.bool_)
        codes[held] = np.where(stays, ReturnCode.OBJECT_ALREADY_EXISTS, ReturnCode.OK)
        self._heal(np.unique(rows[held][stays]))
        gone = np.unique(rows[held][~stays])
        if len(gone):
            named = blocks.segment.mapping.keys_of(blocks.book.records[gone]).to_list()
            blocks.drop_corrupt(gone, named, "data")
        return codes_reply(codes)

    def _is_good(self, row: int) -> bool:
        """Whether a block's bytes have its checksum."""
        blocks = self._blocks
        record = blocks.book.records[row]
        start = blocks.segment.geometry.data_offset + int(record["extent"]) * DATA_UNIT_BYTES
        data = blocks.segment.mapping.data[start : start + int(record["size"])]
        return xxhash.xxh3_64_intdigest(data) == int(record["checksum"])

    def _heal(self, rows: I64) -> None:
        """Slots of good blocks were reported: if they are damaged, write the table again."""
        healed = self._blocks.book.heal(rows)
        if healed:
            self._blocks.counters.corrupt += healed
            event(_LOG, logging.WARNING, "slots damaged and written again", slots=healed)

    def _located(self, rows: I64, *, offsets: bool) -> Located:
        """The answer for slots [n], -1 where there is none."""
        hit = rows >= 0
        records = self._blocks.book.records[np.where(hit, rows, 0)]
        starts = records["extent"].astype(np.uint64) * np.uint64(DATA_UNIT_BYTES) + np.uint64(
            self._blocks.segment.geometry.data_offset
        )
        zero = np.uint64(0)
        codes = np.where(hit, ReturnCode.OK, ReturnCode.OBJECT_NOT_FOUND).astype(np.int32)
        return Located(
            codes.tobytes(),
            np.where(hit, rows, 0).astype(np.uint32).tobytes(),
            np.where(hit, records["sequence"], zero).tobytes(),
            np.where(hit & offsets, starts, zero).tobytes(),
            np.where(hit, records["size"], zero).tobytes(),
            np.where(hit, records["checksum"], zero).tobytes(),
        )
