"""`Session`: one life of a store, attached; `Link`: the session that the workers use now.

A session is lost when the store's process ends or stops answering. What was mapped stays readable,
so the flusher goes on with a lost session until there is a new one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from snapd.attach.port import Feed, Offload, Remover, Sink, Source
from snapd.blocks.keys import I64
from snapd.plans.residency import Residency, follow


@dataclass(frozen=True, slots=True)
class Session:
    """What the workers need to know of one life of a store."""

    segment_id: bytes
    """The incarnation of its blocks, 16 bytes."""
    boot_id: bytes
    """This life of its process, 16 bytes."""
    ordinal: int
    """What the repository calls the incarnation."""
    epoch_base: int
    """Add to the store's epochs to get the repository's."""
    epoch: int
    """Remove-alls in the segment's life when this daemon attached."""
    residency: Residency
    """Shared with the session before where the segment is the same."""
    open_source: Callable[[], Source]
    """A source for the calling thread. Never raises: without an answer it only lacks pins."""
    open_sink: Callable[[], Sink]
    """A sink for the calling thread. Raises StoreUnavailableError and what the store refuses."""
    open_feed: Callable[[], Feed]
    """A feed for the calling thread. Raises as `open_sink` does."""
    open_remover: Callable[[], Remover] | None = None
    """A remover for the calling thread. Raises as `open_sink` does. None: this store has none."""
    open_offload: Callable[[], Offload] | None = None
    """An `Offload` for the calling thread. Raises as `open_sink` does. None: no SSD tier."""
    serves_cold: bool = True
    """Whether readers get cold blocks, too: else they are misses until they are put back."""
    refused: list[I64] = field(default_factory=list)
    """Catalog rows whose keys the store knew when they were to be registered cold. Those that no
    slot turns out to hold were replaced or evicted since. Guarded by the residency's lock."""
    revived: list[I64] = field(default_factory=list)
    """Catalog rows that became live again and may not be so in a manifest yet, so that they are not
    durable. Kept where there is an SSD tier; guarded by the same lock."""
    no_slot: list[I64] = field(default_factory=list)
    """Catalog rows, the coldest, that the store had no slot for. Guarded by the same lock."""
    lost: threading.Event = field(default_factory=threading.Event)
    """Set for good when the store does not answer any more."""
    drained: threading.Event = field(default_factory=threading.Event)
    """Set when all removals from before the attach are durable."""
    served: threading.Event = field(default_factory=threading.Event)
    """Set when everything that is live on disk is resident or registered cold."""
    settled: threading.Event = field(default_factory=threading.Event)
    """Set when every slot has been matched with the catalog after that. From then on what leaves
    the store leaves the live set; before, a block that is not there may only be not there yet."""

    warmed: threading.Event = field(default_factory=threading.Event)
    """Set when the background warm-up of this session ended: everything is back that fits."""

    def moved(self, old: I64, new: I64) -> None:
        """Compaction copied the blocks of these catalog rows: keep the new ones from now on. The
        caller holds the residency's lock."""
        self.residency.repoint(old, new)
        self.refused[:] = [follow(rows, old, new) for rows in self.refused]
        self.revived[:] = [follow(rows, old, new) for rows in self.revived]
        self.no_slot[:] = [follow(rows, old, new) for rows in self.no_slot]


class Link:
    """Holds the newest session."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._session: Session | None = None

    @property
    def session(self) -> Session | None:
        """The newest session, lost or not; None before the first."""
        return self._session

    @contextmanager
    def adopting(self) -> Iterator[Callable[[I64, I64], None]]:
        """Around the step in which compaction's copies take over in the catalog: no slot is seen
        with the row of a copy that is not the newest one. For `Repository.compact`."""
        while True:
            session = self._session
            if session is None:
                yield _nobody
                return
            with session.residency.lock:
                if self._session is session:
                    yield session.moved
                    return

    def publish(self, session: Session) -> None:
        """Replace the session."""
        with self._changed:
            self._session = session
            self._changed.notify_all()

    def wait(self, timeout_seconds: float) -> Session | None:
        """The newest session that is not lost; None if there is none within the time."""
        with self._changed:
            self._changed.wait_for(self._usable, timeout_seconds)
            return self._session if self._usable() else None

    def _usable(self) -> bool:
        return self._session is not None and not self._session.lost.is_set()


def _nobody(old: I64, new: I64) -> None:
    """No store was ever attached, so nobody keeps rows."""
