"""What an adopted segment holds: every slot judged. Vectorised throughout.

A store that was killed leaves slots in any state. The audit decides which of them are served, and
drops the rest: a lost block costs a little, a wrong one is served silently.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from snapd.blocks.keys import I64, U8, U64, Bools, KeyColumn
from snapd.formats.segment import (
    SLOT_CHECKSUM_WORD,
    SLOT_DTYPE,
    U32,
    Geometry,
    Slots,
    SlotState,
    data_units,
    in_bounds,
    key_units,
    slot_words,
    valid_slots,
)
from snapd.segment.extents import SortedExtents

_CHUNK_ROWS = 8192
"""Records looked at at once: 512 KiB, so that a table far larger than the caches is read once."""

_NONE: I64 = np.empty(0, np.int64)


@dataclass(slots=True)
class SlotAudit:
    """The verdict. Row numbers are int64; columns are over all slots.

    Every slot that is not free is kept, lingering, corrupt or outdated.
    """

    records: Slots
    """A private copy of the table. Records of dropped slots are not cleared yet."""
    state: U8
    """State of each slot, FREE where it is dropped."""
    key_hash: U64
    pin: U8
    corrupt: I64
    """Wrong checksum, out of bounds, overlapping or with a damaged key: dropped and counted."""
    outdated: I64
    """Unfinished, of an older epoch or superseded: dropped."""
    lingering: I64
    """WRITING, and their writer may still write: their space is not to be touched."""
    from_the_future: I64
    """Kept, but stamped for a remove-all that never happened: to be stamped back."""
    unfinished: int
    """Slots that were found in state WRITING, dropped or not."""
    removed: int
    """Slots that were found in state REMOVED and are believed, of any epoch."""
    data: SortedExtents
    """What the data area holds, in units."""
    keys: SortedExtents
    """What the key heap holds, in units."""

    @property
    def served(self) -> Bools:
        """Which slots the key index has to name."""
        result: Bools = (self.state == SlotState.PUBLISHED) | (self.state == SlotState.COLD)
        return result


@dataclass(slots=True)
class _Columns:
    """The fields that verdicts need, dense, and what a look at each record alone says."""

    state: U8
    key_hash: U64
    pin: U8
    epoch: U32
    data_start: U32
    data_length: U32
    key_start: U32
    key_length: U32
    sound: Bools
    """Has its checksum, and all it names lies within the segment."""


def empty_audit(slot_count: int) -> SlotAudit:
    """The verdict on a new segment: nothing there."""
    return SlotAudit(
        records=np.zeros(slot_count, SLOT_DTYPE),
        state=np.zeros(slot_count, np.uint8),
        key_hash=np.empty(0, np.uint64),
        pin=np.zeros(slot_count, np.uint8),
        corrupt=_NONE,
        outdated=_NONE,
        lingering=_NONE,
        from_the_future=_NONE,
        unfinished=0,
        removed=0,
        data=SortedExtents(_NONE, _NONE),
        keys=SortedExtents(_NONE, _NONE),
    )


def audit_slots(
    shared: Slots,
    geometry: Geometry,
    epoch: int,
    held_writers: frozenset[int],
    keys_of: Callable[[Slots], KeyColumn],
) -> SlotAudit:
    """Judge every slot of the shared table, which nobody writes meanwhile."""
    records, columns = _read(shared, geometry)
    state = columns.state
    corrupt = np.flatnonzero(~columns.sound)
    state[corrupt] = SlotState.FREE

    writing = np.flatnonzero(state == SlotState.WRITING)
    held = np.isin(records["writer"][writing], np.array(sorted(held_writers), np.uint32))
    lingering = writing[held]
    dead = (state != SlotState.FREE) & (state != SlotState.WRITING) & (columns.epoch < epoch)
    outdated = [writing[~held], np.flatnonzero(dead)]
    removed = int((state == SlotState.REMOVED).sum())
    state[np.concatenate(outdated)] = SlotState.FREE

    data, keys = _extents(columns)
    overlapping = _overlapping(columns) if data.overlap or keys.overlap else _NONE
    removed -= int((state[overlapping] == SlotState.REMOVED).sum())
    state[overlapping] = SlotState.FREE
    superseded, ambiguous = _superseded(records, columns, keys_of)
    removed -= int((state[ambiguous] == SlotState.REMOVED).sum())
    dropped = np.concatenate([superseded, ambiguous])
    state[dropped] = SlotState.FREE
    if len(overlapping) or len(dropped):
        data, keys = _extents(columns)
    return SlotAudit(
        records=records,
        state=state,
        key_hash=columns.key_hash,
        pin=columns.pin,
        corrupt=np.concatenate([corrupt, overlapping, ambiguous]),
        outdated=np.concatenate([*outdated, superseded]),
        lingering=lingering,
        from_the_future=np.flatnonzero(
            (state != SlotState.FREE) & (state != SlotState.WRITING) & (columns.epoch > epoch)
        ),
        unfinished=len(writing),
        removed=removed,
        data=data,
        keys=keys,
    )


def _read(shared: Slots, geometry: Geometry) -> tuple[Slots, _Columns]:
    """A private copy of the table, the columns of it, and each record's own verdict."""
    count = len(shared)
    records = np.empty(count, SLOT_DTYPE)
    columns = _Columns(
        state=np.empty(count, np.uint8),
        key_hash=np.empty(count, np.uint64),
        pin=np.empty(count, np.uint8),
        epoch=np.empty(count, np.uint32),
        data_start=np.empty(count, np.uint32),
        data_length=np.empty(count, np.uint32),
        key_start=np.empty(count, np.uint32),
        key_length=np.empty(count, np.uint32),
        sound=np.empty(count, np.bool_),
    )
    for first in range(0, count, _CHUNK_ROWS):
        rows = slice(first, first + _CHUNK_ROWS)
        part = records[rows]
        part[:] = shared[rows]
        valid = valid_slots(part)
        if not valid.all():
            _undo_torn_publish(part, valid)
        # A record whose seal is zero is free, whatever its other fields say.
        state = part["state"]
        columns.state[rows] = state
        columns.sound[rows] = valid & (in_bounds(part, geometry) | (state == SlotState.FREE))
        columns.key_hash[rows] = part["key_hash"]
        columns.pin[rows] = part["pin"]
        columns.epoch[rows] = part["epoch"]
        columns.data_start[rows] = part["extent"]
        columns.data_length[rows] = data_units(part["size"])
        columns.key_start[rows] = part["key_offset"]
        columns.key_length[rows] = key_units(part["key_length"])
    return records, columns


def _undo_torn_publish(records: Slots, valid: Bools) -> None:
    """A slot sealed as WRITING and valid but for its checksum word was about to be published."""
    bad = np.flatnonzero(~valid)
    bad = bad[records["state"][bad] == SlotState.WRITING]
    before = records[bad]
    slot_words(before)[:, SLOT_CHECKSUM_WORD] = 0
    torn = valid_slots(before)
    records[bad[torn]] = before[torn]
    valid[bad[torn]] = True


def _extents(columns: _Columns) -> tuple[SortedExtents, SortedExtents]:
    """What the slots hold of the data area and of the key heap."""
    state = columns.state
    named = state != SlotState.FREE
    holds = (state == SlotState.PUBLISHED) | (state == SlotState.WRITING)
    data = SortedExtents(columns.data_start[holds], columns.data_length[holds])
    return data, SortedExtents(columns.key_start[named], columns.key_length[named])


def _overlapping(columns: _Columns) -> I64:
    """Slots that share data or key heap with another one; none of them can be believed.

    One that is still being written keeps its space nevertheless: its writer is real.
    """
    state = columns.state
    named = np.flatnonzero(state != SlotState.FREE)
    holds = np.flatnonzero((state == SlotState.PUBLISHED) | (state == SlotState.WRITING))
    rows: I64 = np.union1d(
        holds[SortedExtents.overlapping(columns.data_start[holds], columns.data_length[holds])],
        named[SortedExtents.overlapping(columns.key_start[named], columns.key_length[named])],
    )
    believed: I64 = rows[state[rows] != SlotState.WRITING]
    return believed


def _superseded(
    records: Slots, columns: _Columns, keys_of: Callable[[Slots], KeyColumn]
) -> tuple[I64, I64]:
    """Slots that hold a version older than another slot's of the same key; and those of which one
    cannot tell, because a key of that hash is damaged: the older one may be served as the newer.

    A removal stays beside a newer block, until a daemon has it: that block may be evicted before
    it is on disk, where the version that was removed still is. Beside that only a kill between two
    steps of replacing a block leaves two; equal hashes are rare enough to look at their keys one by
    one.
    """
    state = columns.state
    rows = np.flatnonzero((state != SlotState.FREE) & (state != SlotState.WRITING))
    in_order = np.sort(columns.key_hash[rows])
    twice = np.unique(in_order[1:][in_order[1:] == in_order[:-1]])
    if not len(twice):
        return _NONE, _NONE
    suspects = rows[np.isin(columns.key_hash[rows], twice)]
    suspects = suspects[np.argsort(records["sequence"][suspects])[::-1]]
    keys, hashes = keys_of(records[suspects]), columns.key_hash[suspects]
    unclear = np.isin(hashes, hashes[keys.hashes() != hashes])
    removal = state[suspects] == SlotState.REMOVED
    seen: set[bytes] = set()
    seen_removed: set[bytes] = set()
    older: list[int] = []
    columns_of = (suspects.tolist(), keys.to_list(), unclear.tolist(), removal.tolist())
    for row, key, skip, removed in zip(*columns_of, strict=True):
        if key in (seen_removed if removed else seen) and not skip:
            older.append(row)
        seen.add(key)
        if removed:
            seen_removed.add(key)
    return np.array(older, np.int64), suspects[unclear]
