"""`Store`: one store service of this host; `Life`: the master's, as the records tell it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from snapd.attach.backoff import Backoff
from snapd.attach.mooncake.addresses import Addresses
from snapd.attach.mooncake.counters import Counters
from snapd.attach.mooncake.files import SegmentFile
from snapd.attach.mooncake.layout import LiveSegment
from snapd.attach.mooncake.record import SegmentRecord
from snapd.attach.mooncake.service import StoreService
from snapd.attach.mooncake.watch import ProcessWatch


@dataclass(frozen=True, slots=True)
class Life:
    """What the records of all files say of the master's life."""

    life_id: bytes
    since: Counters
    """When it was first seen."""
    counters: Counters
    """What all durable knowledge accounts for."""
    is_whole: bool
    """Whether everything that lives before it lost was put back."""


@dataclass
class Store:
    """One store service and what it has mounted of ours."""

    number: int
    url: str
    service: StoreService
    watch: ProcessWatch
    addresses: Addresses
    backoff: Backoff
    live: tuple[LiveSegment, ...] = ()
    """Empty while it has nothing of ours."""
    spare: SegmentFile | None = None
    """A file that it refused to mount: it may be asked again with it."""
    to_unmount: set[str] = field(default_factory=set)
    """Segments of an earlier life that it may still have mounted."""
    refusals: int = 0
    """Mounts that it refused, one after the other."""
    wait_seconds: float = 0.0
    """How long it makes no sense to try, beyond what `backoff` says. Each try ends the session of
    the other stores."""
    not_before: float = 0.0
    """When to try again to mount, on the monotonic clock."""

    @property
    def segment_ids(self) -> list[str]:
        """What it has mounted, in the order of the file."""
        return [one.segment.segment_id for one in self.live]

    def inherit(self, record: SegmentRecord) -> None:
        """Segments of the daemon before that are dead, or of an earlier life: it may have them
        still."""
        self.to_unmount |= set(record.segment_ids)
        columns = (record.segment_ids, record.base_addresses, record.sizes)
        for name, base, size in zip(*columns, strict=True):
            self.addresses.recorded(name, base, size)

    def has_ended(self) -> bool:
        """Whether its process is gone, even if another one listens there now."""
        ended = self.watch.has_ended()
        if ended:
            self.addresses.clear()
        return ended


def record_of(url: str, live: Sequence[LiveSegment], life: Life) -> SegmentRecord:
    """What a file says of itself that the store at this URL has mounted as these segments; as none
    before it is mounted."""
    return SegmentRecord(
        store_url=url,
        segment_ids=tuple(one.segment.segment_id for one in live),
        base_addresses=tuple(one.segment.base_address for one in live),
        sizes=tuple(one.segment.size_bytes for one in live),
        client_id=live[0].segment.client_id if live else "",
        endpoint=live[0].segment.endpoint if live else "",
        life_id=life.life_id,
        counters=dict(life.counters.values),
        since=dict(life.since.values),
        is_whole=life.is_whole,
        mounted_at=time.time(),
    )
