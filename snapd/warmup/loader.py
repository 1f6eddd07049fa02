"""`Loader`: brings in the cold blocks that readers wait for, ahead of everything else."""

from __future__ import annotations

import logging
import threading
from contextlib import closing
from typing import Self

import numpy as np

from snapd.attach.backoff import Backoff
from snapd.attach.port import PINNED_BYTES_MAX, Sink, Source
from snapd.attach.session import Link, Session
from snapd.blocks.keys import I64, U64
from snapd.blocks.table import U32
from snapd.errors import SnapdError, StoreUnavailableError
from snapd.plans import windows
from snapd.plans.diff import same_bytes
from snapd.repository import Repository
from snapd.warmup.load import LoadObserver, LoadResult, load_cold

_WAIT_MS = 500
_BATCH_BLOCKS_MAX = 1024
_logger = logging.getLogger(__name__)


class Demand:
    """Says to the background that a reader waits, so that it lets the disk go."""

    def __init__(self) -> None:
        self._idle = threading.Event()
        self._idle.set()

    def __enter__(self) -> Self:
        """A reader waits."""
        self._idle.clear()
        return self

    def __exit__(self, *_: object) -> None:
        """Nobody waits any more."""
        self._idle.set()

    def wait_until_idle(self, timeout_seconds: float) -> None:
        """Let readers go first; the time bounds how long the background can be starved."""
        self._idle.wait(timeout_seconds)


class Loader:
    """A thread's work: long poll, read, publish."""

    def __init__(
        self,
        repository: Repository,
        link: Link,
        demand: Demand,
        observer: LoadObserver,
        stopping: threading.Event,
    ) -> None:
        self._repository = repository
        self._link = link
        self._demand = demand
        self._observer = observer
        self._stopping = stopping
        self._is_away = False
        self.backoff = Backoff(_logger, "load cold blocks for readers")

    def run(self) -> None:
        """Serve session after session until the daemon stops."""
        while not self._stopping.is_set():
            session = self._link.wait(0.5)
            if session is None:
                continue
            try:
                self._serve(session)
            except SnapdError as error:
                self._is_away = isinstance(error, StoreUnavailableError)
                self._stopping.wait(self.backoff.failed(error))

    def _serve(self, session: Session) -> None:
        with closing(session.open_sink()) as sink, closing(session.open_source()) as source:
            while not self._stopping.is_set() and not session.lost.is_set():
                slots, sequences = sink.wanted(_WAIT_MS)
                if self._is_away:  # it answers: no reader need come first to show it
                    self._is_away = False
                    self.backoff.succeeded()
                if len(slots):
                    with self._demand:
                        self._load(session, sink, source, slots, sequences)

    def _load(
        self, session: Session, sink: Sink, source: Source, slots: U32, sequences: U64
    ) -> None:
        """Load one answer of the long poll, in batches of bounded size."""
        rows = self._rows(session, source, slots, sequences)
        unknown = np.flatnonzero(rows < 0)
        if len(unknown):
            # Nothing on disk has these bytes: an answer "not there" now beats one at the deadline.
            sink.drop_cold(slots[unknown], sequences[unknown])
        known = np.flatnonzero(rows >= 0)
        size = self._repository.catalog.column("size", rows[known])
        for piece in windows(known, size, bytes_max=PINNED_BYTES_MAX, blocks_max=_BATCH_BLOCKS_MAX):
            wanted = (slots[piece], sequences[piece], rows[piece])
            self._count(load_cold(session, sink, self._repository, wanted, demand=True))

    def _rows(self, session: Session, source: Source, slots: U32, sequences: U64) -> I64:
        """The catalog rows in these cold slots, -1 where the catalog has no such bytes."""
        with session.residency.lock:
            rows = session.residency.rows_of(slots, sequences)
        unknown = np.flatnonzero(rows < 0)
        if len(unknown):
            rows[unknown] = self._look_up(source, slots[unknown], sequences[unknown])
        return rows

    def _look_up(self, source: Source, slots: U32, sequences: U64) -> I64:
        """By key: for blocks that an earlier daemon registered, before the flusher saw them."""
        catalog = self._repository.catalog
        table = source.describe(slots.astype(np.int64))
        found = catalog.find(table.keys, table.key_hash)
        good = found >= 0
        at = found[good]
        good[good] = catalog.is_live(at) & same_bytes(
            catalog.column("size", at),
            catalog.column("checksum", at),
            table.size[good],
            table.checksum[good],
        )
        rows = np.full(len(slots), -1, np.int64)
        position = {slot: place for place, slot in enumerate(slots.tolist())}
        for row in np.flatnonzero(good).tolist():
            place = position[int(table.slot[row])]
            if int(sequences[place]) == int(table.slot_sequence[row]):
                rows[place] = found[row]
        return rows

    def _count(self, result: LoadResult) -> None:
        for name, blocks, bytes_moved in result.counts():
            self._observer.demand_loaded(name, blocks, bytes_moved)
        self._observer.quarantined("pack", result.rejected)
        if result.error is None:
            self.backoff.succeeded()
        else:
            self._stopping.wait(self.backoff.failed(result.error))
