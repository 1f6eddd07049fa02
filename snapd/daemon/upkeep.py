"""`Upkeep`: what an operator has done to the repository while the daemon runs. Prune and purge."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np

from snapd.attach.port import Source
from snapd.attach.session import Link, Session
from snapd.blocks import KeyColumn
from snapd.config import event
from snapd.errors import RefusedError
from snapd.repository import Purge, Repository
from snapd.repository.purge import Rewrite
from snapd.warmup.reconcile import RemovalBarrier

_DESCRIBE_SLOTS = 65_536
_LOOKS_MAX = 3
_SETTLE_SECONDS = 5.0
"""How long is waited for a store that was just attached."""
_POLL_SECONDS = 0.05
_logger = logging.getLogger(__name__)


class Upkeep:
    """One piece of work at a time; a second one is refused, not queued."""

    def __init__(
        self, repository: Repository, link: Link, barrier: RemovalBarrier, rewrite: Rewrite
    ) -> None:
        """`rewrite` compacts packs, with the daemon's own knowledge of who holds which row."""
        self._repository = repository
        self._link = link
        self._barrier = barrier
        self._rewrite = rewrite
        self._busy = threading.Lock()

    def prune(
        self, retain: int | None, *, move_unreadable: bool, dry_run: bool
    ) -> Mapping[str, Any]:
        """Delete what no retained generation needs. Raises RefusedError while the store has not
        been put back whole, because what is missing now may be needed then."""
        with self._one_at_a_time():
            self._settled()
            result = self._repository.prune(
                retain, move_unreadable=move_unreadable, dry_run=dry_run
            )
        if not dry_run:
            event(_logger, logging.INFO, "pruned on request", **asdict(result))
        return asdict(result)

    def purge(self, prefix: str) -> Mapping[str, Any]:
        """Remove the keys that begin with `prefix`, all with the empty one, from store and disk,
        and delete what holds their bytes.

        When this returns the removal is durable. What is put while it runs may go or stay. Raises
        RefusedError while the store is not settled, StoreUnavailableError, DiskError, CorruptError.
        """
        with self._one_at_a_time():
            session = self._settled()
            started = time.monotonic()
            purge = Purge(self._repository, prefix.encode(), self._rewrite)
            rows_end = self._repository.catalog.rows_end
            self._remove_from_store(session, purge, prefix.encode())
            # The store has told of every removal by now; what it told is durable after this.
            self._barrier.settle_removals(session)
            if prefix:  # what the disk has and no slot; else the new epoch has ended all of it
                purge.remove(rows_end)
            result = purge.erase()
        event(
            _logger,
            logging.WARNING,
            "purged on request",
            everything=not prefix,
            seconds=time.monotonic() - started,
            **asdict(result),
        )
        return asdict(result)

    # --- inside -----------------------------------------------------------------------------------

    @contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        if not self._busy.acquire(blocking=False):
            raise RefusedError("a prune or purge is at work already: wait for its end")
        try:
            yield
        finally:
            self._busy.release()

    def _settled(self) -> Session:
        deadline = time.monotonic() + _SETTLE_SECONDS
        while True:
            session = self._link.session
            if session is not None and not session.lost.is_set() and session.settled.is_set():
                return session
            if time.monotonic() >= deadline:
                raise RefusedError(
                    "the store is away or was not put back whole yet: try again when "
                    "`snapctl status` says that it is settled"
                )
            time.sleep(_POLL_SECONDS)

    def _remove_from_store(self, session: Session, purge: Purge, prefix: bytes) -> None:
        if session.open_remover is None:
            raise RefusedError("this kind of store cannot be purged")
        with (
            closing(session.open_source()) as source,
            closing(session.open_remover()) as remover,
        ):
            # A look passes over slots that change under it: the next one finds them.
            for _ in range(_LOOKS_MAX):
                keys = _keys_with(source, prefix)
                purge.note(keys.hashes())
                if not prefix:
                    remover.remove_all()
                    return
                if not len(keys):
                    return
                remover.remove(keys)


def _keys_with(source: Source, prefix: bytes) -> KeyColumn:
    """Keys that the store has, resident or cold, and that begin so."""
    slots = np.flatnonzero(source.scan().sequence)
    found = [KeyColumn.empty()]
    for at in range(0, len(slots), _DESCRIBE_SLOTS):
        keys = source.describe(slots[at : at + _DESCRIBE_SLOTS]).keys
        found.append(keys.take(keys.starts_with(prefix)))
    return KeyColumn.concatenate(found)
