"""`Layout`: which of the master's segments are ours and alive, and where in our files they lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from snapd.attach.mooncake.master import Locations, MasterSegment
from snapd.attach.mooncake.places import NOWHERE, Places
from snapd.errors import StoreUnavailableError


@dataclass(frozen=True, slots=True)
class LiveSegment:
    """One segment of ours. A file that was mounted in one piece may be several of them."""

    segment: MasterSegment
    file: int
    """Number of the file that it is in."""
    start: int
    """Offset in that file of the segment's first byte."""
    store: int
    """Which of the configured store services has it mounted."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The segments of one session; it never changes."""

    live: tuple[LiveSegment, ...]

    @property
    def segments(self) -> list[MasterSegment]:
        """For `MasterAdmin.locate`, whose positions `places` understands."""
        return [one.segment for one in self.live]

    @property
    def segment_ids(self) -> list[str]:
        """Ascending."""
        return sorted(one.segment.segment_id for one in self.live)

    @property
    def files(self) -> list[int]:
        """Numbers of the files, ascending."""
        return sorted({one.file for one in self.live})

    def places(self, locations: Locations) -> Places:
        """Where located keys are in our files; `NOWHERE` for what is in no segment of ours."""
        inside = locations.segment >= 0
        file = np.array([one.file for one in self.live] + [NOWHERE], np.int64)
        start = np.array([one.start for one in self.live] + [0], np.uint64)
        return Places(
            file[locations.segment],
            np.where(inside, start[locations.segment] + locations.offset, np.uint64(0)),
            np.where(inside, locations.size, np.uint64(0)),
        )

    def check(self, listed: Sequence[MasterSegment]) -> None:
        """Raise StoreUnavailableError unless the master lists every segment of ours as it was."""
        by_id = {one.segment_id: one for one in listed}
        for one in self.live:
            ours, now = one.segment, by_id.get(one.segment.segment_id)
            if now is None or not now.is_ok:
                raise StoreUnavailableError(
                    f"Mooncake's master does not list segment {ours.segment_id} at "
                    f"{ours.endpoint} as alive any more"
                )
            if (now.base_address, now.size_bytes, now.endpoint, now.client_id) != (
                ours.base_address,
                ours.size_bytes,
                ours.endpoint,
                ours.client_id,
            ):
                raise StoreUnavailableError(
                    f"segment {ours.segment_id} is mounted in another way than before"
                )

    def is_ambiguous(self, listed: Sequence[MasterSegment]) -> bool:
        """Whether a segment that is not ours, or not any more, has addresses of one of ours at the
        same endpoint. What the master says of an address then means nothing: it names a segment by
        endpoint and address alone. A dead segment does so until the master forgets it."""
        ours = {one.segment.segment_id for one in self.live}
        others = [one for one in listed if one.segment_id not in ours]
        return any(
            other.endpoint == one.segment.endpoint
            and other.base_address < one.segment.base_address + one.segment.size_bytes
            and one.segment.base_address < other.base_address + other.size_bytes
            for other in others
            for one in self.live
        )


def lay_out(
    segments: Sequence[MasterSegment], segment_ids: Sequence[str], file: int, store: int
) -> tuple[LiveSegment, ...]:
    """The segments that one file was mounted as; `segment_ids` are in the order of the mount's
    answer, which is that of the file.

    Addresses tell nothing: a store service maps each piece by itself, and mostly each below the one
    before. Raises StoreUnavailableError if one is not among `segments`.
    """
    by_id = {one.segment_id: one for one in segments}
    live: list[LiveSegment] = []
    start = 0
    for name in segment_ids:
        if name not in by_id:
            raise StoreUnavailableError(f"Mooncake's master does not list segment {name}")
        live.append(LiveSegment(by_id[name], file, start, store))
        start += by_id[name].size_bytes
    return tuple(live)
