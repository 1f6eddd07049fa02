"""`Attachment`: what source, sink and feed of one session share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from snapd.attach.mooncake.inventory import Inventory
from snapd.attach.mooncake.layout import Layout
from snapd.attach.mooncake.master import MasterAdmin, MasterSegment
from snapd.attach.mooncake.memory import Memory
from snapd.errors import StoreUnavailableError


@dataclass(frozen=True, slots=True, eq=False)
class Attachment:
    """One life of our segments in Mooncake, until any of them or the master ends."""

    boot_id: bytes
    """Names the session, 16 bytes; also the incarnation of its blocks."""
    layout: Layout
    """The live segments of ours, their files and store services."""
    dead: Mapping[str, int]
    """Ids of segments of ours that died in this life of the master, and the numbers of their files.
    While the master lists one of them, keys in it seem to exist."""
    old_ids: frozenset[str]
    """Ids of all segments of ours from before: while one of them is listed, dead or not yet
    unmounted, what is put may go there."""
    died_alone: frozenset[int]
    """Numbers of the old files whose store died while the master lived on: nobody has written into
    them since, so bytes there that are not a block's are what came after it."""
    store_urls: tuple[str, ...]
    """Of all store services; `LiveSegment.store` is a position here."""
    admin_address: str
    inventory: Inventory
    memory: Memory

    def open_admin(self) -> MasterAdmin:
        """A connection to the master's admin for the calling thread."""
        return MasterAdmin(self.admin_address)

    def check_current(self) -> None:
        """Raise StoreUnavailableError when there is a newer session. Under the inventory's lock it
        stays true until the lock is given up."""
        if self.inventory.boot_id != self.boot_id:
            raise StoreUnavailableError("this session with Mooncake is over: attach again")

    def is_waiting(self, listed: Sequence[MasterSegment]) -> bool:
        """Whether puts could go nowhere: an old segment of ours is listed still, or one that has
        the addresses of a live one."""
        old = self.old_ids | self.dead.keys()
        return any(one.segment_id in old for one in listed) or self.layout.is_ambiguous(listed)
