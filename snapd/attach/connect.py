"""`BundledConnector`: finds the bundled store by its socket and opens its segment."""

from __future__ import annotations

import secrets
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field

from snapd import __version__
from snapd.attach.bundled import (
    BundledFeed,
    BundledOffload,
    BundledRemover,
    BundledSink,
    BundledSource,
)
from snapd.attach.labels import LabelIds
from snapd.attach.port import AttachedStore, Feed, Offload, Remover, Sink, Source
from snapd.errors import SnapdError, StoreUnavailableError
from snapd.plans.residency import Residency
from snapd.segment.view import SegmentView
from snapd.wire.connection import Connection
from snapd.wire.messages import (
    PROTOCOL_VERSION,
    Attach,
    Attached,
    Hello,
    HelloReply,
    Stats,
    StatsReply,
)

_ANSWER_SECONDS = 10.0


@dataclass(frozen=True, slots=True, eq=False)
class BundledStore:
    """One life of the bundled store, as its answers describe it."""

    view: SegmentView
    segment_id: bytes
    boot_id: bytes
    epoch: int
    """Remove-alls in the segment's life when this daemon attached."""
    version: str
    connect: Callable[[], tuple[Connection, int]]
    """A connection of its own that is attached to this very life, and its writer number. Raises
    StoreUnavailableError when the store is away or is another one by now."""
    control: Connection
    """For `stats`; of the thread that attached."""
    labels: LabelIds
    offloads: bool = False
    """Whether blocks on disk stay readable when they are evicted: the SSD tier."""
    _sinks: weakref.WeakSet[BundledSink] = field(default_factory=weakref.WeakSet)

    @property
    def serves_cold(self) -> bool:
        """Readers wait for a cold block, and it is loaded for them."""
        return True

    @property
    def open_remover(self) -> Callable[[], Remover]:
        """A remover. Raises as `connect` does."""
        return self._remover

    @property
    def open_offload(self) -> Callable[[], Offload] | None:
        """An `Offload`, where there is to be an SSD tier. Raises as `connect` does."""
        return self._offload if self.offloads else None

    def begin(self, residency: Residency | None) -> Residency:
        """The one before, or one of this slot table."""
        return residency if residency is not None else Residency(len(self.view.slots))

    def source(self) -> Source:
        """A source; without pins when the store does not answer."""
        try:
            connection, _ = self.connect()
        except SnapdError:
            return BundledSource(self.view, None, self.labels)
        return BundledSource(self.view, connection, self.labels)

    def sink(self) -> Sink:
        """A sink. Raises as `connect` does."""
        connection, writer = self.connect()
        sink = BundledSink(self.view, connection, writer, offloads=self.offloads)
        self._sinks.add(sink)
        return sink

    def leave(self, successor: AttachedStore) -> bool:
        """Unmap the segment, unless the successor has the same one or a sink may still write."""
        if isinstance(successor, BundledStore) and successor.view is self.view:
            return True
        if any(not sink.closed for sink in list(self._sinks)):
            return False
        self.view.close()
        return True

    def feed(self) -> Feed:
        """A feed. Raises as `connect` does."""
        connection, _ = self.connect()
        return BundledFeed(connection)

    def stats(self) -> StatsReply:
        """Counters and gauges. Raises StoreUnavailableError."""
        return self.control.call(Stats(), StatsReply, _ANSWER_SECONDS)

    def close(self) -> None:
        """Close the control connection."""
        self.control.close()

    def _remover(self) -> Remover:
        connection, _ = self.connect()
        return BundledRemover(connection)

    def _offload(self) -> Offload:
        connection, _ = self.connect()
        return BundledOffload(connection)


class BundledConnector:
    """Attaches to whichever store listens at `path`, as one daemon whatever the connections."""

    def __init__(self, path: str, labels: LabelIds, *, offloads: bool = False) -> None:
        """`labels` are those of the repository that blocks go to; `offloads`: blocks on disk are to
        stay readable when the store evicts them."""
        self.path = path
        self._labels = labels
        self._offloads = offloads
        self._daemon_id = secrets.token_bytes(16)

    def attach(self, previous: AttachedStore | None) -> BundledStore:
        """Connect and map. `previous` lends its mapping where the segment is still the same.

        Raises StoreUnavailableError when nobody answers, SnapdError when the store refuses (another
        daemon is attached) or its segment cannot be mapped.
        """
        connection, hello, epoch = self._connect()
        try:
            known = previous if isinstance(previous, BundledStore) else None
            if known is not None and known.segment_id == hello.segment_id:
                view = known.view
            else:
                view = SegmentView(hello.segment_path, hello.segment_id)
        except SnapdError:
            connection.close()
            raise

        def connect() -> tuple[Connection, int]:
            another, answer, _ = self._connect()
            if (answer.segment_id, answer.boot_id) != (hello.segment_id, hello.boot_id):
                another.close()
                raise StoreUnavailableError(f"the store at {self.path} was started again")
            return another, answer.writer

        return BundledStore(
            view=view,
            segment_id=hello.segment_id,
            boot_id=hello.boot_id,
            epoch=epoch,
            version=hello.version,
            connect=connect,
            control=connection,
            labels=self._labels,
            offloads=self._offloads,
        )

    def _connect(self) -> tuple[Connection, HelloReply, int]:
        connection = Connection(self.path, _ANSWER_SECONDS)
        try:
            request = Hello(PROTOCOL_VERSION, "daemon", f"snapd {__version__}")
            hello = connection.call(request, HelloReply, _ANSWER_SECONDS)
            attached = connection.call(Attach(self._daemon_id), Attached, _ANSWER_SECONDS)
        except SnapdError:
            connection.close()
            raise
        return connection, hello, attached.epoch
