"""`Addresses`: where files were mapped in a store service, and which places must stay empty.

Mooncake names memory by the store and an address in it. A client that was told an address goes on
reading or writing there, whoever forgot it meanwhile; where another file has come to lie there it
reads the wrong bytes, or destroys right ones. So no file may be mapped where another one was, until
nobody can still mean that one. The kernel chooses: the highest gap that is large enough. So a gap
that an unmounted file left is taken again by the next file, unless that one does not fit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from snapd.attach.mooncake.files import PAGE_BYTES
from snapd.attach.mooncake.master import MasterSegment

_LARGER_BYTES_MAX = 16 << 20
"""How much larger a file may be made so that it does not fit into a gap."""


@dataclass(frozen=True, slots=True)
class _Range:
    base: int
    end: int
    free_at: float | None = None
    """When others may lie here; None while the file is still there, as far as we know."""

    def overlaps(self, base: int, end: int) -> bool:
        return self.base < end and base < self.end


class Addresses:
    """Of one store service; of one process of it, where `clear` is called when it ended."""

    def __init__(self, reuse_seconds: float, clock: Callable[[], float]) -> None:
        """A place is not used again for `reuse_seconds` after it was given up."""
        self._reuse_seconds = reuse_seconds
        self._clock = clock
        self._ranges: dict[str, _Range] = {}

    def mapped(self, segments: Sequence[MasterSegment]) -> None:
        """These are mapped."""
        for one in segments:
            self.recorded(one.segment_id, one.base_address, one.size_bytes)

    def recorded(self, segment_id: str, base_address: int, size_bytes: int) -> None:
        """This one was mapped when its record was written, and may still be."""
        self._ranges[segment_id] = _Range(base_address, base_address + size_bytes)

    def given_up(self, segment_ids: Sequence[str]) -> None:
        """These were unmapped just now."""
        free_at = self._clock() + self._reuse_seconds
        for name in segment_ids:
            if name in self._ranges:
                self._ranges[name] = replace(self._ranges[name], free_at=free_at)

    def may_be_given_up(self, segment_ids: Sequence[str]) -> None:
        """Nobody knows whether these are mapped. That it is said again proves nothing new."""
        ranges = self._ranges
        self.given_up([one for one in segment_ids if one in ranges and not ranges[one].free_at])

    def clear(self) -> None:
        """The process ended: its successor has addresses and ports of its own."""
        self._ranges.clear()

    def collides(self, segments: Sequence[MasterSegment]) -> bool:
        """Whether a new mount lies where another file was too short a time ago. What was thought to
        be mapped there is not, then: it counts as given up now."""
        self._forget_old()
        mounted = {one.segment_id for one in segments}
        found = [
            name
            for name, old in self._ranges.items()
            if name not in mounted
            and any(
                old.overlaps(one.base_address, one.base_address + one.size_bytes)
                for one in segments
            )
        ]
        self.may_be_given_up(found)
        return bool(found)

    def size_beside(self, size_bytes: int) -> int:
        """Size for a file of `size_bytes` or a little more that fits into no gap which must stay
        empty; 0 where only time helps."""
        for gap in self._gaps():
            # The gap goes on below, down to whatever is known to lie there.
            floor = max(
                (
                    one.end
                    for one in self._ranges.values()
                    if one.end <= gap.base and not one.free_at
                ),
                default=-1,
            )
            if gap.end - gap.base < size_bytes and floor == gap.base:
                continue
            needed = gap.end - floor + PAGE_BYTES
            if floor < 0 or needed > size_bytes + _LARGER_BYTES_MAX:
                return 0
            size_bytes = max(size_bytes, needed)
        return size_bytes

    def wait_seconds(self, size_bytes: int) -> float:
        """How long until a file of `size_bytes` may be mounted: until then it could come to lie
        where it must not."""
        if self.size_beside(size_bytes) == size_bytes:
            return 0.0
        return max((one.free_at or 0.0) - self._clock() for one in self._ranges.values())

    def _gaps(self) -> list[_Range]:
        """Places that must stay empty, those that touch made one; ascending."""
        self._forget_old()
        gaps: list[_Range] = []
        for one in sorted(self._ranges.values(), key=lambda one: one.base):
            if one.free_at is None:
                continue
            if gaps and gaps[-1].end >= one.base:
                gaps[-1] = _Range(gaps[-1].base, max(gaps[-1].end, one.end))
            else:
                gaps.append(_Range(one.base, one.end))
        return gaps

    def _forget_old(self) -> None:
        now = self._clock()
        self._ranges = {
            name: one
            for name, one in self._ranges.items()
            if one.free_at is None or one.free_at > now
        }
