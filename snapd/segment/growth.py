"""`DataGrowth`: puts memory behind the data area of a new segment, in the background.

`fallocate` of several GiB takes seconds, and a store has to serve within one. So the data area is
allocated front to back in chunks by a thread; the store hands out only what has memory behind it,
and a put that needs more waits for the thread. No page is ever touched without memory behind it,
so a full /dev/shm is an error here and never a SIGBUS in a client.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from snapd.errors import SegmentError
from snapd.formats.segment import DATA_UNIT_BYTES
from snapd.segment.owner import Segment

CHUNK_BYTES = 64 * 2**20

IDLE_SHARE = 3.0
"""Rest after each chunk, as a multiple of the time it took: a store that has just started shares
two cores with a daemon that recovers, and nobody needs the whole data area yet. Whoever waits for
memory ends the rest."""

_POPULATE_BYTES = 4 * 2**20


class DataGrowth:
    """Allocates what is missing. Killed in the middle, the next start goes on from there."""

    def __init__(self, segment: Segment, on_failure: Callable[[SegmentError], None]) -> None:
        """`on_failure` is called once, on the growing thread: the store cannot go on."""
        self._segment = segment
        self._on_failure = on_failure
        self._changed = threading.Condition()
        self._allocated = segment.data_allocated_bytes
        self._wanted = 0
        self._failure: SegmentError | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="segment-growth", daemon=True)

    @property
    def allocated_units(self) -> int:
        """Units of the data area that may be handed out."""
        return self._allocated // DATA_UNIT_BYTES

    def check(self) -> None:
        """Raises SegmentError if the memory ran out."""
        with self._changed:
            if self._failure is not None:
                raise self._failure

    def start(self) -> None:
        """Begin, unless everything is allocated already."""
        if self._allocated < self._segment.geometry.data_bytes:
            self._thread.start()

    def wait_for(self, units: int) -> None:
        """Block until `units` are allocated, or all there are. Raises SegmentError on failure."""
        wanted = min(units * DATA_UNIT_BYTES, self._segment.geometry.data_bytes)
        with self._changed:
            self._wanted = max(self._wanted, wanted)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._allocated >= wanted or self._failure is not None)
            if self._failure is not None:
                raise self._failure

    def stop(self) -> None:
        """Stop after the current chunk and wait for it."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        geometry = self._segment.geometry
        # Slots, index and keys first: all of them are touched when a daemon registers its blocks.
        for offset in range(0, geometry.data_offset, _POPULATE_BYTES):
            if self._stopping:
                return
            length = min(_POPULATE_BYTES, geometry.data_offset - offset)
            self._segment.mapping.populate(offset, length)
        while self._allocated < geometry.data_bytes and not self._stopping:
            count = min(CHUNK_BYTES, geometry.data_bytes - self._allocated)
            began = time.monotonic()
            try:
                os.posix_fallocate(
                    self._segment.descriptor, geometry.data_offset + self._allocated, count
                )
            except OSError as error:
                self._fail(error)
                return
            self._segment.note_allocated(self._allocated + count)
            with self._changed:
                self._allocated += count
                self._changed.notify_all()
                rest_seconds = IDLE_SHARE * (time.monotonic() - began)
                self._changed.wait_for(
                    lambda: self._stopping or self._wanted > self._allocated, rest_seconds
                )

    def _fail(self, error: OSError) -> None:
        failure = SegmentError(
            f"no memory for segment {self._segment.path} after {self._allocated} of "
            f"{self._segment.geometry.data_bytes} bytes: {error.strerror}; make room in "
            f"{os.path.dirname(self._segment.path)} or set MOONCAKE_GLOBAL_SEGMENT_SIZE lower"
        )
        with self._changed:
            self._failure = failure
            self._changed.notify_all()
        self._on_failure(failure)
