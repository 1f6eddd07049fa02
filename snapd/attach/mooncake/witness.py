"""`Witness`: says of blocks that they are where the master says, with these bytes, in this life."""

from __future__ import annotations

from snapd.attach.mooncake.counters import Counters
from snapd.attach.mooncake.layout import Layout
from snapd.attach.mooncake.life import Activity, same_life
from snapd.attach.mooncake.master import MasterAdmin, MasterSegment
from snapd.attach.mooncake.memory import Memory
from snapd.attach.mooncake.places import Places
from snapd.blocks import KeyColumn
from snapd.blocks.keys import U64, Bools
from snapd.errors import StoreUnavailableError


class Witness:
    """Looks at the master and at memory, and takes no look's word for more than it is worth. For
    one thread at a time."""

    def __init__(self, admin: MasterAdmin, memory: Memory) -> None:
        self._admin = admin
        self._memory = memory
        self.newest: Counters | None = None
        """The counters that were seen last, in the life that is known."""

    def begin_life(self, counters: Counters) -> None:
        """These are of the master's life from now on."""
        self.newest = counters

    def counters(self) -> Counters:
        """Of the master. Raises StoreUnavailableError in a new life of it."""
        now = self._admin.counters()
        # Beside the newest: soon enough a new life has counted as much as the old one had long ago.
        if self.newest is not None and not same_life(self.newest, now):
            raise StoreUnavailableError("Mooncake's master was started again: its keys are gone")
        self.newest = now
        return now

    def segments(self, layout: Layout) -> list[MasterSegment]:
        """All of them. Raises StoreUnavailableError when one of ours is not listed as it was."""
        listed = self._admin.segments()
        layout.check(listed)
        return listed

    def hash(self, layout: Layout, keys: KeyColumn, places: Places) -> tuple[Bools, U64]:
        """Hash blocks in place; which of them were there before and after it, bool [n], and the
        checksums, uint64 [n]. Raises StoreUnavailableError when the session is over.

        `places` was the look before. Between the two a key could leave and come back to the same
        place, with another key's bytes there meanwhile. Where the counters say that anything could
        leave, it is all done again: it would have to happen twice, and leave the same bytes each
        time.
        """
        before = self.counters()
        checksums, good = self._memory.hashes(places)
        good &= self._is_still(layout, keys, places)
        after = self.counters()
        if Activity(before, after).may_have_moved:
            again, there = self._memory.hashes(places)
            good &= there & (again == checksums) & self._is_still(layout, keys, places)
            self.counters()
        if layout.is_ambiguous(self.segments(layout)):
            good[:] = False
        return good, checksums

    def _is_still(self, layout: Layout, keys: KeyColumn, places: Places) -> Bools:
        return places.is_same(layout.places(self._admin.locate(keys, layout.segments)))
