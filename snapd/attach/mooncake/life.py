"""What two looks at the counters of Mooncake's master say: is it the same life, what happened?

Pure. What decides here rests on how the master counts (each seen by running it):

- A counter moves *before* its request takes effect, a failure after it. So counters that are read
  after a listing cover every change that the listing shows. A request that was counted just before
  a look may still take effect after the listing that followed: what explains a listing is the
  activity since the look before the *previous* listing, not since the one after it.
- An object is counted as new when its put starts, in the same request in which the start is
  counted. An upsert of the same size starts and makes nothing new: the object is rewritten in
  place, and is not listed from its start to its end. So starts that succeeded, less new objects,
  count the rewrites; between a request's start and its end the difference can be too high for a
  moment.
- An upsert of another size, a move and a put over one that was given up each let go of replicas
  (`discards`). Where the key had a block, that block is gone then, and not by eviction. A put or
  upsert that its client takes back is `revokes`, after it was one of these or a new object.
- A removal that fails (the key is not there, or under a lease) is counted as asked and as failed.
  `remove_all` without force leaves out what is under a lease, and does not say so.
- The death of a segment counts nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from snapd.attach.mooncake.counters import PINGS, PUT_ENDS, Counters


def same_life(before: Counters, now: Counters) -> bool:
    """Whether both looks, in this order, may be from one life of the master: no counter has fallen.

    A restart sets all to 0, and some of them can only rise by what we do ourselves (mounts), so it
    is found out in practice. Where it is not, the lives are taken for one, and keys that it lost
    for removed ones: blocks are lost then, but none that was removed comes back.
    """
    return all(value >= before.values.get(name, 0) for name, value in now.values.items()) and (
        before.values.keys() <= now.values.keys()
    )


@dataclass(frozen=True, slots=True)
class Activity:
    """What happened in one life of the master between two looks, `before` and `now`."""

    before: Counters
    now: Counters

    @property
    def is_quiet(self) -> bool:
        """Nothing that could change a key, a replica or a segment; readers do not count."""
        names = (self.before.values.keys() | self.now.values.keys()) - {PINGS}
        return not any(self._moved(name) for name in names)

    @property
    def may_have_removed(self) -> bool:
        """Keys that are gone may have been removed or replaced, and not only evicted."""
        return self._rose("removes", "regex_removes", "remove_alls", "clears") or (
            # What an upsert began to replace and then did not is gone as well, and shows from its
            # start. That puts are taken back (`revokes`) says no more: every put into a store that
            # has just died is, and its keys must not be taken for removed when it is dropped.
            self._rose("discards") or self.may_have_rewritten
        )

    @property
    def removed_all(self) -> bool:
        """Everything may have been removed; what is still there may have been put since."""
        return self._rose("remove_alls")

    @property
    def may_have_removed_unseen(self) -> bool:
        """Keys may have been removed that were not there to be missed: blocks that wait to be put
        back are in doubt."""
        return self._rose("regex_removes", "remove_alls", "failed_removes", "failed_clears")

    @property
    def may_have_rewritten(self) -> bool:
        """Objects may have other bytes in the same place."""
        return self.before.rewrites != self.now.rewrites

    @property
    def may_have_moved(self) -> bool:
        """Objects that are still there may be in another place."""
        return self.evicted or self.may_have_removed or self._rose("moves")

    @property
    def may_have_added(self) -> bool:
        """There may be objects, or bytes, that were not there before. Ends of puts that failed
        count as well: one that is not known to have failed yet could hide another one."""
        return self.before.total(*PUT_ENDS) != self.now.total(*PUT_ENDS)

    @property
    def evicted(self) -> bool:
        """Keys were evicted."""
        return self._rose("evicted")

    @property
    def remounted(self) -> bool:
        """A client registered anew; where it had a segment before, that is listed and empty."""
        return self._rose("remounts")

    @property
    def segments_changed(self) -> bool:
        """A segment was asked to be mounted or unmounted."""
        return self._rose("mounts")

    def _rose(self, *names: str) -> bool:
        return any(getattr(self.now, name) != getattr(self.before, name) for name in names)

    def _moved(self, name: str) -> bool:
        return self.before.values.get(name, 0) != self.now.values.get(name, 0)
