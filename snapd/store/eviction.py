"""Which blocks to give up: pure choices over the slot table's columns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from snapd.blocks import Pin
from snapd.blocks.keys import I64, Bools
from snapd.formats.segment import SlotState

WINDOWS_MAX = 2048
"""Most places that are looked at for one large block."""

F64 = npt.NDArray[np.float64]
U8 = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Candidates:
    """Columns over all slots, [slots] each."""

    state: U8
    pin: U8
    lease_until: F64
    """Seconds of the engine's clock; also the order: whoever was used last has the latest lease."""
    soft_until: F64
    """Until when a soft pin holds."""
    flush_pinned: Bools
    """Being written to disk right now."""


def evictable(slots: Candidates, now: float, *, cold_too: bool) -> I64:
    """Slots that may be evicted, never leased, hard-pinned, being flushed or unfinished ones."""
    state = slots.state == SlotState.PUBLISHED
    if cold_too:
        state |= slots.state == SlotState.COLD
    allowed = state & (slots.lease_until <= now) & ~slots.flush_pinned
    rows = np.flatnonzero(allowed)
    soft_at_most: I64 = rows[slots.pin[rows] != Pin.HARD]
    return soft_at_most


def ages(slots: Candidates, rows: I64, now: float) -> F64:
    """The lower, the sooner a slot goes: by its last use, soft pins after all others."""
    soft = (slots.pin[rows] == Pin.SOFT) & (slots.soft_until[rows] > now)
    return slots.lease_until[rows] + np.where(soft, 1e15, 0.0)


def choose_victims(
    slots: Candidates, rows: I64, gains: tuple[I64, ...], needs: tuple[int, ...], now: float
) -> I64:
    """The least recently used of `rows` whose gains together meet every need, soft pins last.

    `gains[k]` is what each row frees of resource k, int64 [n]; all rows if even they do not do.
    """
    age = ages(slots, rows, now)
    count = max(64, len(rows) // 16)
    while count < len(rows):
        chosen = np.argpartition(age, count)[:count]
        if all(int(g[chosen].sum()) >= need for g, need in zip(gains, needs, strict=True)):
            break
        count *= 2
    else:
        chosen = np.arange(len(rows))
    chosen = chosen[np.argsort(age[chosen], kind="stable")]
    enough = 0
    for gain, need in zip(gains, needs, strict=True):
        reached = np.searchsorted(np.cumsum(gain[chosen]), need) + 1 if need > 0 else 0
        enough = max(enough, int(reached))
    return rows[chosen[:enough]]


def cheapest_window(
    starts: I64, lengths: I64, age: F64, capacity: int, need: int
) -> tuple[int, int] | None:
    """A run of `need` units to clear for one large block, as (start, end) in units, or None.

    Extents that may not be cleared have an infinite `age`; what lies between extents is free. Of
    the windows that begin at 0 or where an extent ends, the one with the oldest youngest block.
    """
    if need > capacity:
        return None
    order = np.argsort(starts, kind="stable")
    starts, ends, age = starts[order], (starts + lengths)[order], age[order]
    begins = np.concatenate([np.zeros(1, np.int64), ends])
    begins = begins[begins + need <= capacity]
    begins = begins[:: -(-len(begins) // WINDOWS_MAX) or 1]
    if not len(begins):
        return None
    first = np.searchsorted(ends, begins, side="right")
    last = np.searchsorted(starts, begins + need)  # exclusive: extents that begin inside
    pairs = np.stack([first, last], axis=1).reshape(-1)
    cost = np.maximum.reduceat(np.append(age, -np.inf), pairs)[::2]
    cost[first == last] = -np.inf
    best = int(np.argmin(cost))
    if cost[best] == np.inf:
        return None
    return int(begins[best]), int(begins[best] + need)
