"""`MooncakeStore`: one life of our segments in Mooncake, as the daemon's workers need it."""

from __future__ import annotations

import time
from collections.abc import Callable

from snapd.attach.mooncake.attachment import Attachment
from snapd.attach.mooncake.counters import Counters
from snapd.attach.mooncake.feed import MooncakeFeed
from snapd.attach.mooncake.host import MooncakeHost
from snapd.attach.mooncake.sink import MooncakeSink
from snapd.attach.mooncake.source import MooncakeSource
from snapd.attach.port import AttachedStore, Feed, Remover, Sink, Source
from snapd.errors import StoreUnavailableError
from snapd.plans.residency import Residency
from snapd.wire.messages import StatsReply


class MooncakeStore:
    """An `AttachedStore`; what it is made of belongs to its host."""

    serves_cold = False
    version = "mooncake"

    def __init__(self, host: MooncakeHost, attachment: Attachment) -> None:
        self._host = host
        self._attachment = attachment
        self._started = time.monotonic()
        self._counters: Counters | None = None

    @property
    def segment_id(self) -> bytes:
        """The segments of this session, in this life of the master, as this process knows them."""
        return self._attachment.boot_id

    @property
    def boot_id(self) -> bytes:
        """The same."""
        return self._attachment.boot_id

    @property
    def epoch(self) -> int:
        """Remove-alls of this session so far."""
        return self._host.inventory.epoch

    @property
    def open_remover(self) -> Callable[[], Remover] | None:
        """None: keys are removed by Mooncake's own clients."""
        return None

    @property
    def open_offload(self) -> None:
        """None: Mooncake has an SSD tier of its own."""
        return None

    def begin(self, residency: Residency | None) -> Residency:
        """Forget what died, and look. Raises as `Looker.look`."""
        self._host.begin(self._attachment)
        return self._host.residency

    def source(self) -> Source:
        """A source."""
        return MooncakeSource(self._attachment, self._host.looker)

    def sink(self) -> Sink:
        """A sink."""
        self._attachment.check_current()
        return MooncakeSink(
            self._attachment,
            self._host.putters,
            self._host.looker,
            watermark_ratio=self._host.settings.eviction_high_watermark_ratio,
        )

    def feed(self) -> Feed:
        """A feed."""
        self._attachment.check_current()
        return MooncakeFeed(self._attachment, self._host.looker, self._host.write_records)

    def stats(self) -> StatsReply:
        """Counters, and the look at whether this session still is: the segments are listed, their
        stores listen, the master's life goes on, and no further store waits to be attached.

        Raises StoreUnavailableError otherwise, ProtocolError.
        """
        host, layout = self._host, self._attachment.layout
        now = host.admin.counters()
        if not host.watched(now):
            raise StoreUnavailableError("Mooncake's master was started again: its keys are gone")
        host.looker.watch(now)
        listed = host.admin.segments()
        layout.check(listed)
        for number in {one.store for one in layout.live}:
            store = host.mounts.stores[number]
            if store.has_ended():
                raise StoreUnavailableError(f"the Mooncake store service at {store.url} ended")
        if (joined := host.mounts.joins()) is not None:
            raise StoreUnavailableError(f"attaching again: {joined.url} answers now")
        host.check_noted(listed)
        host.mounts.unmount_old(listed)
        before, self._counters = self._counters, now
        return self._stats(now, before or now)

    def leave(self, successor: AttachedStore) -> bool:
        """Everything that was lost is back: its old files are not needed."""
        self._host.whole()
        return True

    def close(self) -> None:
        """Nothing of its own to close."""

    def _stats(self, now: Counters, before: Counters) -> StatsReply:
        blocks, bytes_used, cold_blocks = self._host.inventory.counts()
        return StatsReply(
            blocks=blocks,
            cold_blocks=cold_blocks,
            bytes_used=bytes_used,
            bytes_capacity=sum(one.size_bytes for one in self._attachment.layout.segments),
            slots_used=blocks + cold_blocks,
            slots_capacity=self._host.inventory.capacity,
            hits=0,
            misses=0,
            puts=now.put_ends,
            evictions=now.evicted,
            removals=now.removes,
            corrupt=0,
            loads_waiting=0,
            writers_lingering=0,
            clients=0,
            daemon_attached=True,
            epoch=self._host.inventory.epoch,
            uptime_seconds=time.monotonic() - self._started,
            adopted_blocks=0,
            dropped_slots=0,
        )
