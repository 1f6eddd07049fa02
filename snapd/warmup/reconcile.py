"""`Registrar`: after an attach, make everything that is live on disk known to the store again."""

from __future__ import annotations

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np

from snapd.attach.port import I32, Sink, Source
from snapd.attach.session import Session
from snapd.blocks import BlockTable
from snapd.blocks.keys import I64
from snapd.config import event
from snapd.plans import hottest_first
from snapd.repository import Repository
from snapd.wire.codes import ReturnCode

_CHUNK_ROWS = 32_768
_logger = logging.getLogger(__name__)


class RemovalBarrier(Protocol):
    """What the registrar asks of the events worker."""

    def settle_removals(self, session: Session) -> None:
        """Return when every removal that the store had carried out before this call is durable.

        Raises StoreUnavailableError when the session is lost meanwhile.
        """


class Registrar:
    """Registers cold what the catalog has live and the store lacks, then says so.

    Crash argument: nothing is written to disk here, and nothing leaves the catalog, so a death at
    any point means that the next daemon does it again. A removal that comes meanwhile is safe: the
    chunk and its bookkeeping are one step under the residency's lock, so a removal that is learned
    of later finds the entry (`EventsWorker` drops it), and one that was learned of before finds the
    row dead. The barrier before the end makes sure that no removal from before the last
    registration is still on its way.
    """

    def __init__(self, repository: Repository, barrier: RemovalBarrier) -> None:
        self._repository = repository
        self._barrier = barrier
        self.registered = 0
        """Rows registered or found in the store, of the reconciliation that runs or ran last."""
        self.total = 0
        self.refused_for_space = 0
        """Rows, the coldest, that the store had no slot for: on disk, and not served. They leave
        the live set once the session is settled."""

    def reconcile(self, session: Session, source: Source, sink: Sink) -> None:
        """Register what is missing. Returns when everything is served.

        Raises StoreUnavailableError when the store is lost meanwhile; start again then.
        """
        started = time.monotonic()
        rows = self._missing(session, source)
        self.registered, self.total, self.refused_for_space = 0, len(rows), 0
        self._register_all(session, sink, rows)
        self._barrier.settle_removals(session)
        with session.residency.lock:
            drop_dead(session, sink, self._repository)
            sink.cold_ready()
            session.served.set()
        event(
            _logger,
            logging.INFO,
            "serving every block of the snapshot",
            registered=len(rows),
            without_slot=self.refused_for_space,
            seconds=time.monotonic() - started,
        )

    def _missing(self, session: Session, source: Source) -> I64:
        """Live rows that no slot is known to have in memory, hottest first: if slots run out, the
        coldest are left.

        What the last life of the store lost is forgotten here and not let go: it did not leave.
        Cold blocks count as missing, because a store serves only those that were registered in its
        present life by its present daemon.
        """
        catalog, residency = self._repository.catalog, session.residency
        with residency.lock:
            scan = source.scan()
            moved = residency.sequence != scan.sequence
            residency.forget(np.flatnonzero(moved | residency.cold | scan.cold))
            missing = residency.not_held(catalog.live_rows())
        heat = catalog.column("heat", missing)
        return missing[hottest_first(heat, catalog.column("sequence", missing))]

    def _register_all(self, session: Session, sink: Sink, rows: I64) -> None:
        """Chunk after chunk; the next one is put together while the store works on this one."""
        take = self._repository.catalog.take
        chunks = [rows[at : at + _CHUNK_ROWS] for at in range(0, len(rows), _CHUNK_ROWS)]
        with ThreadPoolExecutor(1, "registrar") as ahead:
            following = ahead.submit(take, chunks[0]) if chunks else None
            for number, chunk in enumerate(chunks, start=1):
                assert following is not None
                table = following.result()
                if number < len(chunks):
                    following = ahead.submit(take, chunks[number])
                self._register(session, sink, chunk, table)

    def _register(self, session: Session, sink: Sink, rows: I64, table: BlockTable) -> None:
        catalog = self._repository.catalog
        with session.residency.lock:
            alive = catalog.is_live(rows)
            if not alive.all():
                # Compaction may have copied some to another row since they were listed.
                rows = np.where(alive, rows, catalog.newest_copies(rows))
                alive = catalog.is_live(rows)
                rows, table = rows[alive], table.take(alive)
            codes = register_rows(session, sink, rows, table)
            session.refused.append(rows[codes == ReturnCode.OBJECT_ALREADY_EXISTS])
            session.no_slot.append(rows[codes == ReturnCode.NO_AVAILABLE_HANDLE])
        self.registered += len(rows)
        self.refused_for_space += int((codes == ReturnCode.NO_AVAILABLE_HANDLE).sum())


def register_rows(session: Session, sink: Sink, rows: I64, table: BlockTable) -> I32:
    """Register catalog rows cold and note what was taken; the store's codes, int32 [n]. `table`
    holds the blocks of `rows`.

    The caller holds the residency's lock, so that answer and bookkeeping are one step.
    """
    answer = sink.register_cold(table)
    given = answer.codes == ReturnCode.OK
    session.residency.settle(answer.slots[given], answer.sequences[given], rows[given], cold=True)
    return answer.codes


def drop_dead(session: Session, sink: Sink, repository: Repository) -> None:
    """Take back cold registrations whose rows have died. The caller holds the residency's lock."""
    residency, catalog = session.residency, repository.catalog
    slots = residency.cold_slots()
    dead = slots[~catalog.is_live(residency.row[slots])]
    if len(dead):
        residency.row[dead] = catalog.newest_copies(residency.row[dead])
        dead = dead[~catalog.is_live(residency.row[dead])]
    if len(dead):
        sink.drop_cold(dead.astype(np.uint32), residency.sequence[dead])
        residency.forget(dead)
