"""`Counters`: the counters of Mooncake's master that tell what was done to its keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

REMOVES = "master_remove_requests_total"
REGEX_REMOVES = "master_remove_by_regex_requests_total"
REMOVE_ALLS = "master_remove_all_requests_total"
CLEARS = "master_batch_replica_clear_items_total"
EVICTED = "master_evicted_key_count"
PUT_ENDS = ("master_put_end_requests_total", "master_batch_put_end_items_total")
PUT_END_FAILURES = ("master_put_end_failures_total", "master_batch_put_end_failed_items_total")
NEW_OBJECTS = "master_value_size_bytes_count"
NEW_OBJECTS_AT_FIRST = 1
"""It belongs to a histogram, which a master does not show before its first object, and which has
counted one more than there were when it does."""
PUT_STARTS = ("master_put_start_requests_total", "master_batch_put_start_items_total")
PUT_START_FAILURES = (
    "master_put_start_failures_total",
    "master_batch_put_start_failed_items_total",
)
REVOKES = ("master_put_revoke_requests_total", "master_batch_put_revoke_items_total")
FAILED_REMOVES = (
    "master_remove_failures_total",
    "master_remove_by_regex_failures_total",
    "master_remove_all_failures_total",
)
FAILED_CLEARS = "master_batch_replica_clear_failed_items_total"
MOVES = (
    "master_copy_end_requests_total",
    "master_move_end_requests_total",
    "master_promotion_completed_total",
)
MOUNTS = ("master_mount_segment_requests_total", "master_unmount_segment_requests_total")
REMOUNTS = "master_remount_segment_requests_total"
DISCARDS = "master_put_start_discard_cnt"
PINGS = "master_ping_requests_total"

REQUIRED = frozenset(
    {
        REMOVES,
        REGEX_REMOVES,
        REMOVE_ALLS,
        EVICTED,
        *PUT_STARTS,
        *PUT_START_FAILURES,
        *PUT_ENDS,
    }
)
"""Without these a removal could not be told from an eviction, nor a rewrite be noticed."""

COUNTERS = REQUIRED | {
    CLEARS,
    DISCARDS,
    FAILED_CLEARS,
    NEW_OBJECTS,
    PINGS,
    REMOUNTS,
    *PUT_END_FAILURES,
    *REVOKES,
    *FAILED_REMOVES,
    *MOVES,
    *MOUNTS,
}
"""All that are kept; one that a master does not have is 0."""


@dataclass(frozen=True, slots=True)
class Counters:
    """One look at them. Each starts at 0 with a life of the master and never falls in it."""

    values: Mapping[str, int]

    @classmethod
    def at_birth(cls) -> Self:
        """What every life of a master begins with."""
        return cls({NEW_OBJECTS: NEW_OBJECTS_AT_FIRST})

    def total(self, *names: str) -> int:
        """The sum of these counters."""
        return sum(self.values.get(name, 0) for name in names)

    @property
    def removes(self) -> int:
        """Keys that were asked to be removed by name."""
        return self.total(REMOVES)

    @property
    def regex_removes(self) -> int:
        """Removals by pattern."""
        return self.total(REGEX_REMOVES)

    @property
    def remove_alls(self) -> int:
        """Removals of everything."""
        return self.total(REMOVE_ALLS)

    @property
    def clears(self) -> int:
        """Keys whose replicas were asked to be cleared."""
        return self.total(CLEARS)

    @property
    def failed_removes(self) -> int:
        """Removals of any kind that did not happen."""
        return self.total(*FAILED_REMOVES)

    @property
    def evicted(self) -> int:
        """Keys that were evicted."""
        return self.total(EVICTED)

    @property
    def put_ends(self) -> int:
        """Puts and upserts that ended well."""
        return self.total(*PUT_ENDS) - self.total(*PUT_END_FAILURES)

    @property
    def new_objects(self) -> int:
        """Objects that were made; a rewrite in place makes none."""
        return self.total(NEW_OBJECTS)

    @property
    def rewrites(self) -> int:
        """Objects that were rewritten in place: starts that succeeded and made nothing new. Too
        high while a start is being carried out."""
        return self.total(*PUT_STARTS) - self.total(*PUT_START_FAILURES) - self.new_objects

    @property
    def revokes(self) -> int:
        """Puts and upserts that their client took back."""
        return self.total(*REVOKES)

    @property
    def discards(self) -> int:
        """Objects that let go of replicas without being removed."""
        return self.total(DISCARDS)

    @property
    def failed_clears(self) -> int:
        """Keys whose replicas were asked to be cleared and were not."""
        return self.total(FAILED_CLEARS)

    @property
    def moves(self) -> int:
        """Replicas that were copied or moved to another place."""
        return self.total(*MOVES)

    @property
    def remounts(self) -> int:
        """Clients that registered anew, as one does that the master took for dead."""
        return self.total(REMOUNTS)

    @property
    def mounts(self) -> int:
        """Segments that were asked to be mounted or unmounted."""
        return self.total(*MOUNTS)
