"""What an adopted segment holds: every slot judged, the key index repaired. Vectorised throughout.

A store that was killed leaves slots in any state. The audit decides which of them are served, and
drops the rest: a lost block costs a little, a wrong one is served silently.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from snapd.blocks import HashIndex
from snapd.blocks.keys import I64, U64, Bools, KeyColumn
from snapd.formats.segment import (
    SLOT_CHECKSUM_WORD,
    Geometry,
    Slots,
    SlotState,
    data_units,
    in_bounds,
    key_units,
    slot_words,
    valid_slots,
)
from snapd.segment.extents import overlapping

_TAG_SHIFT = np.uint64(32)


@dataclass(frozen=True, slots=True)
class SlotAudit:
    """Row numbers by verdict; every row that is not free is in exactly one of the first four."""

    kept: I64
    """Published, cold and removed slots that stand."""
    lingering: I64
    """Writing, and their writer may still write: their space is not to be touched."""
    corrupt: I64
    """Wrong checksum, out of bounds or overlapping: dropped and counted."""
    outdated: I64
    """Unfinished, of an older epoch or superseded: dropped."""
    from_the_future: I64
    """Among the kept: stamped for a remove-all that never happened; to be stamped back."""


def audit_slots(
    records: Slots,
    geometry: Geometry,
    epoch: int,
    held_writers: frozenset[int],
    keys_of: Callable[[Slots], KeyColumn],
) -> SlotAudit:
    """Judge all records. Those of a torn publish are set back to what they were, in place."""
    valid = valid_slots(records)
    _undo_torn_publish(records, valid)
    state = records["state"].copy()
    used = np.flatnonzero(valid & (slot_words(records)[:, 7] != 0) & (state != SlotState.FREE))
    fits = in_bounds(records[used], geometry)
    corrupt = [np.flatnonzero(~valid), used[~fits]]
    used = used[fits]

    state, epochs = state[used], records["epoch"][used].astype(np.int64)
    writing = state == SlotState.WRITING
    held = np.zeros(len(used), np.bool_)
    held[writing] = np.isin(
        records["writer"][used[writing]], np.fromiter(held_writers, np.uint32, len(held_writers))
    )
    outdated = [used[(writing & ~held) | (~writing & (epochs < epoch))]]
    lingering = used[held]
    kept = used[~writing & (epochs >= epoch)]

    apart = _lie_apart(records, kept, lingering)
    corrupt.append(kept[~apart])
    kept = kept[apart]
    newest = _is_newest(records, kept, keys_of)
    outdated.append(kept[~newest])
    kept = kept[newest]
    return SlotAudit(
        kept=kept,
        lingering=lingering,
        corrupt=np.concatenate(corrupt),
        outdated=np.concatenate(outdated),
        from_the_future=kept[records["epoch"][kept] > epoch],
    )


def _undo_torn_publish(records: Slots, valid: Bools) -> None:
    """A slot sealed as WRITING and valid but for its checksum word was about to be published."""
    bad = np.flatnonzero(~valid)
    bad = bad[records["state"][bad] == SlotState.WRITING]
    if not len(bad):
        return
    before = records[bad]
    slot_words(before)[:, SLOT_CHECKSUM_WORD] = 0
    torn = valid_slots(before)
    records[bad[torn]] = before[torn]
    valid[bad[torn]] = True


def _lie_apart(records: Slots, kept: I64, lingering: I64) -> Bools:
    """Which kept slots share neither data nor key heap with any other slot, bool [kept]."""
    rows = np.concatenate([kept, lingering])
    chosen = records[rows]
    keys_overlap = overlapping(
        chosen["key_offset"].astype(np.int64), key_units(chosen["key_length"])
    )
    holds = (chosen["state"] == SlotState.PUBLISHED) | (chosen["state"] == SlotState.WRITING)
    keys_overlap[holds] |= overlapping(
        chosen["extent"][holds].astype(np.int64), data_units(chosen["size"][holds])
    )
    result: Bools = ~keys_overlap[: len(kept)]
    return result


def _is_newest(records: Slots, rows: I64, keys_of: Callable[[Slots], KeyColumn]) -> Bools:
    """Which slots hold the newest version of their key, bool [n].

    Only a kill between two steps of replacing a block leaves two; equal hashes are rare enough to
    look at their keys.
    """
    hashes = records["key_hash"][rows]
    result: Bools = np.ones(len(rows), np.bool_)
    in_order = np.sort(hashes)
    twice = np.unique(in_order[1:][in_order[1:] == in_order[:-1]])
    if not len(twice):
        return result
    suspects = np.flatnonzero(np.isin(hashes, twice))
    sequences = records["sequence"][rows[suspects]]
    suspects = suspects[np.argsort(sequences)[::-1]]
    seen: set[bytes] = set()
    for at, key in zip(suspects.tolist(), keys_of(records[rows[suspects]]).to_list(), strict=True):
        result[at] = key not in seen
        seen.add(key)
    return result


def repair_index(index: HashIndex, key_hash: U64, served: Bools) -> int:
    """Make the index name every served slot exactly once and no other; returns what was wrong.

    `key_hash` uint64 [slots], `served` bool [slots].
    """
    numbers, positions = index.numbers()
    good = (numbers >= 0) & (numbers < len(served))
    at = np.where(good, numbers, 0)
    tags = index.entries.reshape(-1)[positions] >> _TAG_SHIFT
    good &= served[at] & (tags == key_hash[at] >> _TAG_SHIFT)
    good &= _first_of_each(at)
    if not good.all():
        index.clear_positions(positions[~good])
    index.recount(lambda kept: key_hash[kept])
    missing = served.copy()
    missing[numbers[good]] = False
    rows = np.flatnonzero(missing)
    index.insert(key_hash[rows], rows)
    return len(rows) + int((~good).sum())


def _first_of_each(numbers: I64) -> Bools:
    result: Bools = np.ones(len(numbers), np.bool_)
    counts = np.bincount(numbers)
    if len(counts) and int(counts.max()) > 1:
        result[:] = False
        result[np.unique(numbers, return_index=True)[1]] = True
    return result
