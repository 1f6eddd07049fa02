"""`Budget`: how much room there is, on the disk and in the day. The clocks and locks around
`snapd.plans.space` and `snapd.plans.budget`."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from snapd.disk import DiskUsage
from snapd.errors import DiskError, SettingError
from snapd.plans.budget import DailyBudget
from snapd.plans.space import SpaceLimits
from snapd.repository import Repository
from snapd.repository.space import SpaceUse

PACKS_MIN = 32
"""A budget holds at least so many full packs: space comes back a pack at a time, so packs that are
large beside the budget could only be let go with all that is in them."""
_PACK_BYTES_MIN = 65_536
BUDGET_BYTES_MIN = 16 * 2**20
"""Smallest budget that can be set: below, packs would be mostly headers."""
_RESERVE_SHARE = 32
_RESERVE_BYTES_MAX = 64 * 2**20
"""For removals, which are never refused: one part in so many of the budget, up to so many bytes."""
_MANIFEST_BYTES_MIN = 65_536
_DISK_SHARE = 20
"""The reserve on the file system is at most one part in so many of it."""
_METADATA_SHARE = 32
"""One part in so many of a file system may be its own: then it is still all for the repository."""
_REFUSAL_SECONDS = 10.0
"""Time for which the usage at which the disk refused a write is taken for its limit; then it is
tried again, because nothing tells when a quota has grown."""

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""Errors that say: no more than this."""


def pack_bytes_within(pack_bytes_max: int, bytes_max: int) -> int:
    """Bytes at which packs are sealed under a budget of `bytes_max`."""
    return min(pack_bytes_max, max(_PACK_BYTES_MIN, bytes_max // PACKS_MIN))


@dataclass(frozen=True, slots=True)
class SpaceState:
    """One look."""

    limits: SpaceLimits
    """For what is written: the least of `own` and of what the disk has room for now. Beside the
    setting, never less than what is in use."""
    own: SpaceLimits
    """For what is given up: the setting, or without one the size of the file system. Nothing that
    others do changes it, so nothing that others do costs a block that is durable."""
    use: SpaceUse
    bound: str
    """What sets the limit: `budget` (the setting), `disk` (its size or its free space), or
    `refused` (the disk refused a write although it said that there was space, as quotas do)."""
    pack_bytes_max: int
    """Bytes at which a pack should be sealed."""

    @property
    def is_shared(self) -> bool:
        """Whether others leave less room than the repository could have: then new blocks are left
        out, and none makes way for another."""
        return self.limits.bytes_max < self.own.bytes_max


@dataclass(frozen=True, slots=True)
class Room:
    """What the flusher may write now."""

    space_bytes: int
    write_bytes: int | None
    """Of the daily write budget; None is no limit."""

    @property
    def bytes(self) -> int:
        """The smaller of the two."""
        if self.write_bytes is None:
            return self.space_bytes
        return min(self.space_bytes, self.write_bytes)


@dataclass(frozen=True, slots=True)
class _Refusal:
    """A write that the disk had no space for."""

    at: float
    used_bytes: int
    free_bytes: int
    """What the disk said was free all the same."""

    def is_over(self, now: float, free_bytes: int) -> bool:
        """Whether to try again: space has come back, or it is time to see."""
        returned = free_bytes - self.free_bytes > max(_MANIFEST_BYTES_MIN, self.used_bytes // 8)
        return returned or now - self.at > _REFUSAL_SECONDS


class Budget:
    """Used by the flusher, the compactor and the metrics at once."""

    def __init__(
        self,
        repository: Repository,
        *,
        bytes_max: int,
        bytes_per_day_max: int,
        disk_reserve_bytes: int,
        pack_bytes_max: int,
        bytes_written: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`bytes_written` is the disk's meter. `clock` is one that is not set back."""
        self._repository = repository
        self._bytes_max = bytes_max
        self._disk_reserve_bytes = disk_reserve_bytes
        self._pack_bytes_max = pack_bytes_max
        self._bytes_written = bytes_written
        self._clock = clock
        self._lock = threading.Lock()
        self._daily = DailyBudget.resume(bytes_per_day_max, 0, clock())
        self._charged = bytes_written()
        self._reserved = 0
        self._refused: _Refusal | None = None
        self._disk_bytes = 0
        """The most that the file system ever had for everybody together. Some (ZFS) count what
        others use as missing, and a disk does not get smaller by being used."""
        self.pressed = False
        """Set by the compactor while there is pressure: commits keep one generation."""

    # --- bytes a day --------------------------------------------------------------------------

    def resume(self, debt_bytes: int) -> None:
        """What an earlier process owes; before anything is written."""
        with self._lock:
            limit = self._daily.bytes_per_day_max
            self._daily = DailyBudget.resume(limit, debt_bytes, self._clock())

    def write_debt(self) -> int:
        """What the next process must know."""
        with self._lock:
            self._charge()
            return self._daily.debt(self._clock())

    def write_room(self) -> int | None:
        """Bytes that may be written now; None without a limit."""
        with self._lock:
            self._charge()
            return self._daily.available(self._clock())

    # --- space --------------------------------------------------------------------------------

    @staticmethod
    def check(bytes_max: int) -> None:
        """Raise SettingError for a budget that is too small to work."""
        if 0 < bytes_max < BUDGET_BYTES_MIN:
            raise SettingError(
                f"repository_bytes_max = {bytes_max}: at least {BUDGET_BYTES_MIN} are needed, "
                f"or 0 for no limit"
            )

    def configure(self, bytes_max: int, disk_reserve_bytes: int) -> None:
        """Another budget from the next look on; packs keep the size that they were given."""
        self._bytes_max, self._disk_reserve_bytes = bytes_max, disk_reserve_bytes

    @property
    def own_bound(self) -> str:
        """What blocks are dropped for, if any are: `budget`, or `disk` without one."""
        return "budget" if self._bytes_max else "disk"

    def look(self) -> SpaceState:
        """What is used, and how much may be. Raises DiskError."""
        use = self._repository.space_use()
        disk = self._repository.disk.usage()
        reserve = min(self._disk_reserve_bytes, disk.capacity_bytes // _DISK_SHARE)
        free = use.total + max(0, disk.free_bytes - reserve)
        with self._lock:
            own = self._own_bytes(disk, reserve)
            found = [own, ("disk", free)]
            if self._refused is not None:
                if self._refused.is_over(self._clock(), disk.free_bytes):
                    self._refused = None
                else:
                    found.append(("refused", max(use.total, self._refused.used_bytes)))
        bound, bytes_max = min(found, key=lambda one: one[1])
        limits = self._limits(bytes_max, use)
        return SpaceState(limits, self._limits(own[1], use), use, bound, limits.pack_bytes_max)

    def _own_bytes(self, disk: DiskUsage, reserve: int) -> tuple[str, int]:
        """What the repository may take where it has no neighbours, and what says so. The caller
        holds the lock."""
        if self._bytes_max:
            return self.own_bound, self._bytes_max
        self._disk_bytes = max(self._disk_bytes, disk.capacity_bytes - disk.reserved_bytes)
        return self.own_bound, self._disk_bytes - self._disk_bytes // _METADATA_SHARE - reserve

    def _limits(self, bytes_max: int, use: SpaceUse) -> SpaceLimits:
        pack_bytes_max = pack_bytes_within(self._pack_bytes_max, bytes_max)
        # A commit writes a manifest beside those that are there.
        reserve = min(bytes_max // _RESERVE_SHARE, _RESERVE_BYTES_MAX)
        reserve += max(_MANIFEST_BYTES_MIN, use.manifests)
        headroom = min(2 * pack_bytes_max, bytes_max // 8)
        return SpaceLimits(bytes_max, headroom, reserve, pack_bytes_max)

    def room(self) -> Room:
        """What the flusher may write now. Raises DiskError."""
        state = self.look()
        with self._lock:
            space = state.limits.flushes_up_to - state.use.total - self._reserved
        return Room(max(0, space), self.write_room())

    @contextmanager
    def reserving(self, amount: int) -> Iterator[None]:
        """Keep so much space for copies, whatever the flusher does meanwhile."""
        with self._lock:
            self._reserved += amount
        try:
            yield
        finally:
            with self._lock:
                self._reserved -= amount

    @property
    def is_refused(self) -> bool:
        """Whether the disk refused a write and has not been tried again since."""
        with self._lock:
            return self._refused is not None

    def refused(self, error: Exception) -> None:
        """A write failed; if the disk is full by its own word, believe it for a while."""
        if not isinstance(error, DiskError) or error.errno not in FULL:
            return
        try:
            used = self._repository.space_use().total
            free = self._repository.disk.usage().free_bytes
        except DiskError:
            return
        with self._lock:
            self._refused = _Refusal(self._clock(), used, free)

    # --- inside -------------------------------------------------------------------------------

    def _charge(self) -> None:
        """Take from the day what the meter has counted since. The caller holds the lock."""
        written = self._bytes_written()
        self._daily = self._daily.charge(written - self._charged, self._clock())
        self._charged = written
