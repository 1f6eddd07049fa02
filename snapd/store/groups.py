"""`GroupUse`: when any block of a group was used last."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from snapd.blocks.keys import I64

F64 = npt.NDArray[np.float64]
U32 = npt.NDArray[np.uint32]


class GroupUse:
    """A group is a number that callers give to blocks that are of use together only: K and V of a
    page, say. Who uses one of them keeps all of them, so the eviction order takes the latest use.

    Uses are kept in a table by the number's low bits, as large as the slot table: looking after a
    million blocks takes some milliseconds, and no use costs a search for the group's other blocks.
    Two groups that share a place keep each other a little longer than they should.
    """

    def __init__(self, slots: int) -> None:
        places = 1 << max(0, slots - 1).bit_length()
        self._until = np.full(places, -np.inf)
        self._mask = np.uint32(min(places - 1, 0xFFFFFFFF))
        self.any = False
        """Whether any block with a group was used so far."""

    def note(self, groups: U32, until: float) -> None:
        """Blocks of these groups, uint32 [n], were used: they count as used until `until`. 0 is no
        group."""
        places = groups[groups != 0] & self._mask
        if len(places):
            self.any = True
            self._until[places] = np.maximum(self._until[places], until)

    def latest(self, groups: U32, until: F64) -> F64:
        """Until when each block counts as used, float64 [n], from `groups` and its own `until`."""
        if not self.any:
            return until
        theirs = np.where(groups != 0, self._until[groups & self._mask], -np.inf)
        latest: F64 = np.maximum(until, theirs)
        return latest


def with_their_groups(victims: I64, age: F64, groups: U32) -> I64:
    """Positions to evict, and with them what is left of their groups: those of the last age, as
    blocks of a group have one age. `victims` are positions in `age` and `groups`, both [n]."""
    if not len(victims) or not groups[victims].any():
        return victims
    last = age[victims].max()
    rest = np.flatnonzero((age == last) & (groups != 0))
    rest = rest[np.isin(groups[rest], groups[victims[age[victims] == last]])]
    return np.concatenate([victims, np.setdiff1d(rest, victims)])
