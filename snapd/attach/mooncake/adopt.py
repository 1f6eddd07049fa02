"""What a daemon before this one left in shared memory: files that are mounted still, and others."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from snapd.attach.mooncake.counters import Counters
from snapd.attach.mooncake.files import SegmentFile, leftover_files, open_segment_file
from snapd.attach.mooncake.layout import lay_out
from snapd.attach.mooncake.life import same_life
from snapd.attach.mooncake.master import MasterSegment
from snapd.attach.mooncake.memory import Memory
from snapd.attach.mooncake.mounts import Mounts
from snapd.attach.mooncake.record import SegmentRecord
from snapd.attach.mooncake.stores import Life, Store
from snapd.attach.mooncake.watch import ProcessWatch
from snapd.config import event
from snapd.errors import SnapdError

UNKNOWN_FILE = -1
"""Number of a file of which no block is known."""
_logger = logging.getLogger(__name__)


@dataclass
class Adopted:
    """What is known from the records."""

    life: Life | None = None
    """Of the master that goes on, as far as the daemon before accounted for it; None if no record
    is of it."""
    is_newer_life: bool = False
    """Whether the master was started since a record was written: its life is known from birth."""
    adopted: int = 0
    """Files that are mounted still, and are ours again."""
    dead: dict[str, int] = field(default_factory=dict)
    """Segments that died in that life."""


def adopt(
    mounts: Mounts, memory: Memory, now: Counters, listed: Sequence[MasterSegment]
) -> Adopted:
    """Take over the files that are mounted in this life of the master; delete those that nothing
    can be read from any more. What another daemon has, or cannot be read, is left."""
    result = Adopted()
    by_url = {store.url: store for store in mounts.stores}
    for path in leftover_files(mounts.stem):
        try:
            file = open_segment_file(path)
        except SnapdError as error:
            event(
                _logger,
                logging.WARNING,
                "left a file in shared memory alone: delete it when no store has it mounted",
                file=path,
                error=error,
            )
            continue
        record = file.record
        if record is not None and record.store_url not in by_url:
            _leave_or_delete(file, record, listed)
        elif record is None or not _take_over(
            result,
            by_url[record.store_url],
            file,
            record,
            memory=memory,
            now=now,
            listed=listed,
        ):
            if record is not None and not record.segment_ids:
                _unmount_unrecorded(by_url[record.store_url], file, listed, mounts)
            file.unlink()
            file.close()
    return result


def _leave_or_delete(
    file: SegmentFile, record: SegmentRecord, listed: Sequence[MasterSegment]
) -> None:
    """A file of a store that `mooncake_stores` does not name any more. It is nobody's when the
    master lists none of its segments and nobody listens where the store was: a store that only
    hangs, or that the master forgot, has it mapped still."""
    ids = {one.segment_id for one in listed}
    watch = ProcessWatch(record.store_url)
    watch.begin()
    is_nobodys = ids.isdisjoint(record.segment_ids) and watch.has_ended()
    watch.close()
    if is_nobodys:
        file.unlink()
    event(
        _logger,
        logging.WARNING,
        "deleted a file in shared memory: its store is gone, and mooncake_stores does not name it"
        if is_nobodys
        else "left a file in shared memory alone: mooncake_stores does not name its store; stop "
        "that store, or name it",
        file=file.path,
        bytes=file.allocated_bytes(),
        store=record.store_url,
    )
    file.close()


def _take_over(
    result: Adopted,
    store: Store,
    file: SegmentFile,
    record: SegmentRecord,
    *,
    memory: Memory,
    now: Counters,
    listed: Sequence[MasterSegment],
) -> bool:
    """Whether this file is mounted in the life that goes on; its segments are its store's then."""
    life = Life(
        record.life_id,
        since=Counters(MappingProxyType(dict(record.since))),
        counters=Counters(MappingProxyType(dict(record.counters))),
        is_whole=record.is_whole,
    )
    if not same_life(life.counters, now):
        store.inherit(record)
        result.is_newer_life = True
        return False
    if result.life is None or _sum(life) < _sum(result.life):
        result.life = life  # the most cautious of the records
    by_id = {one.segment_id: one for one in listed}
    recorded = zip(record.segment_ids, record.base_addresses, record.sizes, strict=True)
    found = [
        by_id[name]
        for name, base, size in recorded
        if name in by_id
        and (by_id[name].base_address, by_id[name].size_bytes) == (base, size)
        and (by_id[name].endpoint, by_id[name].client_id) == (record.endpoint, record.client_id)
        and by_id[name].is_ok
    ]
    whole = len(found) == len(record.segment_ids) > 0 and sum(record.sizes) <= file.size_bytes
    if not whole or store.live or store.has_ended():
        store.inherit(record)
        result.dead |= dict.fromkeys(record.segment_ids, UNKNOWN_FILE)
        return False
    store.live = lay_out(found, record.segment_ids, memory.add(file), store.number)
    store.addresses.mapped(found)
    result.adopted += 1
    event(_logger, logging.INFO, "adopted a mounted segment", store=store.url, file=file.name)
    return True


def _sum(life: Life) -> int:
    return sum(life.counters.values.values())


def _unmount_unrecorded(
    store: Store, file: SegmentFile, listed: Sequence[MasterSegment], mounts: Mounts
) -> None:
    """The daemon before died while it had this file mounted, so nobody knows as which segments. A
    service unmounts nothing but what it has mounted from shared memory itself."""
    known = {name for one in mounts.stores for name in (*one.segment_ids, *one.to_unmount)}
    for one in listed:
        if one.segment_id in known or one.size_bytes != file.size_bytes:
            continue
        try:
            store.service.unmount([one.segment_id])
        except SnapdError:
            continue  # of another store, or not mounted any more
        event(
            _logger,
            logging.WARNING,
            "unmounted a segment whose mount was not finished",
            segment=one.segment_id,
        )
