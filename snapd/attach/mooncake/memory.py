"""`Memory`: our files in shared memory, by number, and the bytes of blocks in them."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import xxhash

from snapd.attach.mooncake.files import SegmentFile
from snapd.attach.mooncake.places import Places
from snapd.blocks.keys import U64, Bools


class Memory:
    """Files that are or were mounted. A number is never given twice, so a place names one file for
    good; a file that was put away stays mapped for as long as somebody looks at it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: dict[int, SegmentFile] = {}
        self._next = 0

    def add(self, file: SegmentFile) -> int:
        """Its number."""
        with self._lock:
            number, self._next = self._next, self._next + 1
            self._files[number] = file
            return number

    def get(self, number: int) -> SegmentFile | None:
        """The file; None when it was put away."""
        with self._lock:
            return self._files.get(number)

    def put_away(self, number: int) -> SegmentFile | None:
        """Take it out; what to do with it is the caller's to know."""
        with self._lock:
            return self._files.pop(number, None)

    def views(self, places: Places) -> list[memoryview | None]:
        """The bytes of each block where they lie; None where the place is in no file."""
        numbers = np.unique(places.file).tolist()
        with self._lock:
            # A view keeps the mapping, even of a file that is put away and closed right after.
            files = {one: self._files[one].data.data for one in numbers if one in self._files}
        views: list[memoryview | None] = []
        rows = zip(places.file.tolist(), places.offset.tolist(), places.size.tolist(), strict=True)
        for number, offset, size in rows:
            data = files.get(number)
            inside = data is not None and offset + size <= data.nbytes
            views.append(data[offset : offset + size] if data is not None and inside else None)
        return views

    def hashes(self, places: Places) -> tuple[U64, Bools]:
        """XXH3-64 of each block in place, uint64 [n], and which of them there was, bool [n]."""
        return hashes_of(self.views(places))


def hashes_of(views: Sequence[memoryview | None]) -> tuple[U64, Bools]:
    """XXH3-64 of these bytes, uint64 [n], 0 for None, and which are not None, bool [n]."""
    digest = xxhash.xxh3_64_intdigest
    sums = (0 if view is None else digest(view) for view in views)
    there = (view is not None for view in views)
    count = len(views)
    return np.fromiter(sums, np.uint64, count), np.fromiter(there, np.bool_, count)
