"""`Rooms`: how much may be put back into each store, so that nothing is evicted for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from snapd.attach.mooncake.layout import Layout
from snapd.attach.mooncake.master import MasterSegment
from snapd.attach.mooncake.putting import Putters
from snapd.blocks.keys import I64, U64
from snapd.plans.room import share_out

WATERMARK_RATIO_MAX = 0.9
"""Where Mooncake's master begins to evict unless it is told otherwise; it does not say where."""

_MARGIN_RATIO = 0.02
"""How far below the watermark of eviction a put back stops: others put as well."""


class Rooms:
    """Of the stores of one session, for one lane of the put back."""

    def __init__(self, layout: Layout, putters: Putters, watermark_ratio: float) -> None:
        """`watermark_ratio` is the share of memory in use at which Mooncake's master was told to
        evict; above `WATERMARK_RATIO_MAX` it is not believed, because evicting what readers use for
        what is put back would be the worse mistake."""
        self._layout = layout
        self._putters = putters
        self._full_ratio = min(watermark_ratio, WATERMARK_RATIO_MAX) - _MARGIN_RATIO
        self._granted: dict[int, int] = {}
        """Bytes of the fill under way by store, as the other lanes count them."""

    def share(self, sizes: U64, list_segments: Callable[[], Sequence[MasterSegment]]) -> I64:
        """Room for blocks of these sizes, which is theirs until `give_back`: the store that each
        is to be put into, int64 [n], -1 where there is no room."""
        # What another lane puts is either on its way or in what the master lists, never in between.
        with self._putters.turn:
            numbers, rooms = self._rooms(list_segments())
            share = share_out(sizes, rooms)
            store: I64 = np.array([*numbers, -1], np.int64)[share]
            self._granted = {
                number: int(sizes[store == number].sum()) for number in np.unique(store[store >= 0])
            }
            self._putters.reserve(self._granted)
        return store

    def give_back(self) -> None:
        """What was shared out last is put, or will not be. Idempotent."""
        self._putters.release(self._granted)
        self._granted = {}

    def _rooms(self, listed: Sequence[MasterSegment]) -> tuple[list[int], list[int]]:
        """Stores, the one with the most room first, and the bytes that may go into each: below the
        watermark in its own segments and in all of the master's, which evicts by their sum."""
        by_id = {one.segment_id: one for one in listed}
        left = self._free(listed) - self._putters.reserved()
        rooms: dict[int, int] = {}
        for number in {one.store for one in self._layout.live}:
            own = [
                by_id[one.segment.segment_id] for one in self._layout.live if one.store == number
            ]
            rooms[number] = max(0, self._free(own) - self._putters.reserved(number))
        numbers = sorted(rooms, key=lambda number: -rooms[number])
        granted = []
        for number in numbers:
            granted.append(max(0, min(rooms[number], left)))
            left -= granted[-1]
        return numbers, granted

    def _free(self, segments: Sequence[MasterSegment]) -> int:
        total = sum(one.size_bytes for one in segments)
        return int(total * self._full_ratio) - sum(one.used_bytes for one in segments)
