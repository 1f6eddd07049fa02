"""Reading blocks: locate, copy, and believe the copy only after three checks."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from snapd.blocks.keys import I64, U64, Bools
from snapd.client.link import StoreLink
from snapd.client.transfer import Destinations
from snapd.wire.codes import ReturnCode
from snapd.wire.messages import (
    Codes,
    GetStart,
    Located,
    ReportCorrupt,
    decode_column,
)

_ATTEMPTS = 2
"""A block that moved, or whose bytes were wrong, is looked up once more: its newer version, or its
copy on disk, may take its place."""


@dataclass(slots=True)
class ReadCounters:
    """Copies that were not believed, since the session began."""

    moved: int = 0
    corrupt: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, *, moved: int, corrupt: int) -> None:
        """Count; from any thread."""
        with self._lock:
            self.moved += moved
            self.corrupt += corrupt


@dataclass(frozen=True, slots=True)
class Delivery:
    """Where the blocks of one request go: row r of it is row `first_row + r` of `destinations`."""

    destinations: Destinations
    first_row: int
    counters: ReadCounters


@dataclass(frozen=True, slots=True)
class _Found:
    """m blocks of a `Located` reply that are to be copied: columns [m], and their rows."""

    rows: I64
    slots: I64
    sequences: U64
    offsets: U64
    sizes: U64
    checksums: U64

    def take(self, mask: Bools) -> _Found:
        return _Found(
            self.rows[mask],
            self.slots[mask],
            self.sequences[mask],
            self.offsets[mask],
            self.sizes[mask],
            self.checksums[mask],
        )

    def without(self, positions: list[int]) -> _Found:
        mask = np.ones(len(self.rows), np.bool_)
        mask[positions] = False
        return self.take(mask)


def read_blocks(link: StoreLink, keys: Sequence[bytes], delivery: Delivery) -> I64:
    """Bytes delivered or a negative code for each key, int64 [n].

    A copy counts only if its slot held that version before the copy and after it (nobody reused
    the space meanwhile) and the copy has the checksum of whoever put the block (nobody scribbled).
    Otherwise: LEASE_EXPIRED when it moved twice, INVALID_READ when it was corrupt twice.
    """
    result = np.empty(len(keys), np.int64)
    rows: I64 = np.arange(len(keys))
    for _ in range(_ATTEMPTS):
        wanted = keys if len(rows) == len(keys) else [keys[row] for row in rows.tolist()]
        found = _locate(link, wanted, rows, result)
        rows = _deliver(link, found, delivery, result)
        if len(rows) == 0:
            break
    return result


def _locate(link: StoreLink, keys: Sequence[bytes], rows: I64, result: I64) -> _Found:
    """Blocks that the store found; the codes of the others are put into `result`."""
    wait_seconds = link.options.get_wait_seconds
    request = GetStart(link.encode(keys), round(1000 * wait_seconds))
    located = link.call(request, Located, wait_seconds)
    count = len(keys)
    codes = decode_column(located.codes, np.int32, count)
    found = _Found(
        rows,
        decode_column(located.slots, np.uint32, count).astype(np.int64),
        decode_column(located.sequences, np.uint64, count),
        decode_column(located.offsets, np.uint64, count),
        decode_column(located.sizes, np.uint64, count),
        decode_column(located.checksums, np.uint64, count),
    )
    result[rows] = codes
    return found if not codes.any() else found.take(codes == ReturnCode.OK)


def _deliver(link: StoreLink, found: _Found, delivery: Delivery, result: I64) -> I64:
    """Copy and check; sets `result` of every row, returns the rows to try again."""
    targets = delivery.destinations
    wanted = [delivery.first_row + row for row in found.rows.tolist()]
    sizes = found.sizes.tolist()
    if refused := targets.refused(wanted, sizes):
        positions = list(refused)
        result[found.rows[positions]] = list(refused.values())
        return _deliver(link, found.without(positions), delivery, result)
    before = link.segment.holds(found.slots, found.sequences)
    addresses = link.segment.addresses(found.offsets, found.sizes)
    copies = targets.deliver(wanted, addresses, sizes)
    held = before & link.segment.holds(found.slots, found.sequences)
    right = copies == found.checksums
    good = held & right
    result[found.rows] = found.sizes
    if good.all():
        return np.empty(0, np.int64)
    result[found.rows[~held]] = ReturnCode.LEASE_EXPIRED
    corrupt = held & ~right
    result[found.rows[corrupt]] = ReturnCode.INVALID_READ
    delivery.counters.add(moved=int((~held).sum()), corrupt=int(corrupt.sum()))
    doubtful = corrupt | ~before
    if doubtful.any():
        _report(link, found.take(doubtful))
    failed: I64 = found.rows[~good]
    return failed


def _report(link: StoreLink, doubtful: _Found) -> None:
    """Tell the store, which checks for itself before it drops anything.

    Not only of wrong bytes: a slot that is not what the store has just said was replaced at this
    very moment, or somebody wrote into the table, and only the store can write it again.
    """
    slots = doubtful.slots.astype(np.uint32).tobytes()
    link.call(ReportCorrupt(slots, doubtful.sequences.tobytes()), Codes)
