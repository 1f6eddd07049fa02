"""Which blocks to give up: pure choices over the slot table's columns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from snapd.blocks.keys import I64, Bools
from snapd.formats.segment import SlotState

WINDOWS_MAX = 2048
"""Most places that are looked at for one large block."""

_AFTER_ALL_OTHERS = 1e15
"""More than any difference between two times."""

FLUSH_GRACE_SECONDS = 15.0
"""With an SSD tier, a block that is not on disk yet goes as if it had been used so much later: a
few flushes. Most blocks that would be lost are on disk by then. Longer, and blocks that no budget
lets onto the disk would push out everything that can be loaded again."""

F64 = npt.NDArray[np.float64]
U8 = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Candidates:
    """Columns over all slots, [slots] each: dense, for a look at a million in some milliseconds."""

    state: U8
    lease_until: F64
    """Seconds of the engine's clock; also the order: whoever was used last has the latest lease."""
    soft_until: F64
    """Until when a soft pin holds; in the past without one."""
    held: Bools
    """Hard-pinned, or being written to disk right now."""
    awaits_disk: Bools | None = None
    """Would stay readable if it were on disk, and is not. None: there is no SSD tier."""


def evictable(slots: Candidates, now: float, *, cold_too: bool) -> I64:
    """Slots that may be evicted: never leased, hard-pinned, being flushed or unfinished ones."""
    allowed = slots.state == SlotState.PUBLISHED
    if cold_too:
        allowed |= slots.state == SlotState.COLD
    allowed &= slots.lease_until <= now
    allowed &= ~slots.held
    return np.flatnonzero(allowed)


def ages(slots: Candidates, rows: I64, now: float) -> F64:
    """The lower, the sooner a slot goes: by its last use, soft pins after all others."""
    age: F64 = slots.lease_until[rows]
    if slots.awaits_disk is not None:
        age[slots.awaits_disk[rows]] += FLUSH_GRACE_SECONDS
    age[slots.soft_until[rows] > now] += _AFTER_ALL_OTHERS
    return age


def choose_victims(
    age: F64, gains_of: Callable[[I64], tuple[I64, ...]], needs: tuple[int, ...]
) -> I64:
    """The positions of the lowest ages whose gains together meet every need; all if those do not.

    `gains_of(positions)[k]` is what each frees of resource k, int64 [m]. It is asked only about
    the oldest: guessed from the needs if each freed one unit, then twice as many, and so on.
    """
    count = min(len(age), max(64, *needs))
    while True:
        oldest = np.arange(len(age))
        if count < len(age):
            oldest = np.argpartition(age, count)[:count]
        gains = gains_of(oldest)
        met = all(int(gain.sum()) >= need for gain, need in zip(gains, needs, strict=True))
        if met or count == len(age):
            break
        count = min(len(age), 2 * count)
    order = np.argsort(age[oldest], kind="stable")
    enough = 0
    for gain, need in zip(gains, needs, strict=True):
        if need > 0:
            enough = max(enough, int(np.searchsorted(np.cumsum(gain[order]), need)) + 1)
    victims: I64 = oldest[order[:enough]]
    return victims


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
