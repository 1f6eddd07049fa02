"""`LinkPool`: connections to the store, lent to one thread at a time, renewed when they break."""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import TypeVar

from snapd.client.link import REQUEST_SECONDS_MAX, LinkOptions, StoreLink
from snapd.client.mapped import MappedSegment
from snapd.client.names import REQUEST_BLOCK_BYTES_MAX
from snapd.config.logs import event
from snapd.errors import (
    CorruptError,
    NewerFormatError,
    ProtocolError,
    SegmentError,
    StoreUnavailableError,
)
from snapd.wire.connection import RequestFailedError, UnansweredError

Result = TypeVar("Result")

LINKS_MAX = 32
"""Most connections of one client; further threads wait for one."""

RECONNECT_SECONDS_MAX = 1.0
"""For so long after an outage began calls wait for the store; from then on they fail at once."""

_SUSPECT_SECONDS_MAX = 0.5
"""Deadline of a greeting after that time: a store that is back answers at once, and one that
accepts connections without serving them must not hold every call for the full deadline."""

_BACKOFF_SECONDS, _BACKOFF_SECONDS_MAX = 0.01, 0.16

_log = logging.getLogger(__name__)
_pools: weakref.WeakSet[LinkPool] = weakref.WeakSet()


class LinkPool:
    """Safe for use by many threads, and after `fork` in parent and child."""

    def __init__(self, options: LinkOptions, segment: MappedSegment | None = None) -> None:
        """`segment`: a use of a mapping to begin with, which `close` gives back."""
        self._options = options
        self._closed = False
        self._lock = threading.Lock()
        self._permits = threading.BoundedSemaphore(LINKS_MAX)
        self._idle: list[StoreLink] = []
        self._lent: set[StoreLink] = set()
        self._segment = segment
        self._away_since: float | None = None
        _pools.add(self)

    def with_options(self, options: LinkOptions) -> LinkPool:
        """Another pool, which begins with the mapping of this one: its page tables are filled."""
        with self._lock:
            segment = self._segment.acquire() if self._segment is not None else None
        return LinkPool(options, segment)

    @property
    def put_bytes_max(self) -> int:
        """Most bytes to reserve at once: a store refuses a writer more than half of what it has."""
        segment = self._segment
        share = REQUEST_BLOCK_BYTES_MAX if segment is None else segment.data_bytes // 4
        return min(REQUEST_BLOCK_BYTES_MAX, share)

    def run(self, operation: Callable[[StoreLink], Result], *, repeatable: bool = True) -> Result:
        """Run `operation` on a link; once more, from its start, if the link broke under it.

        So operations may be carried out twice. One that is not `repeatable` is run again only if
        its request had not been sent: the store may have carried it out. A request that reached
        its deadline is not repeated.

        Raises StoreUnavailableError when there is no store, RequestFailedError when it refuses,
        ProtocolError when it does not make sense.
        """
        if not self._permits.acquire(timeout=REQUEST_SECONDS_MAX):
            raise StoreUnavailableError(f"all {LINKS_MAX} connections of this client are busy")
        permits = self._permits  # a fork replaces them in the child
        try:
            try:
                return self._run_once(operation, self._borrow())
            except StoreUnavailableError as error:
                unsafe = isinstance(error, UnansweredError) and not repeatable
                if unsafe or isinstance(error.__cause__, TimeoutError):
                    raise
            return self._run_once(operation, self._connect())
        finally:
            permits.release()

    def close(self) -> None:
        """Close; a link that is lent closes when its operation ends."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            segment, self._segment = self._segment, None
        for link in idle:
            link.close()
        if segment is not None:
            segment.release()

    def _run_once(self, operation: Callable[[StoreLink], Result], link: StoreLink) -> Result:
        intact = False
        try:
            result = operation(link)
            intact = True
        except RequestFailedError:
            intact = True
            raise
        except (StoreUnavailableError, ProtocolError) as error:
            self._note_outage(error)
            raise
        finally:
            self._give_back(link, intact=intact)
        return result

    def _borrow(self) -> StoreLink:
        """An idle link or a new one. Raises what `_connect` raises."""
        with self._lock:
            if self._idle:
                link = self._idle.pop()
                self._lent.add(link)
                return link
        return self._connect()

    def _give_back(self, link: StoreLink, *, intact: bool) -> None:
        """Keep a link that is intact; else close it and, as their store is gone, all idle ones."""
        with self._lock:
            self._lent.discard(link)
            if intact and not self._closed:
                self._idle.append(link)
                return
            broken = [link]
            if not intact:
                broken += self._idle
                self._idle = []
        for old in broken:
            old.close()

    def _connect(self) -> StoreLink:
        """A new link, waiting for the store while its outage is young.

        Raises StoreUnavailableError, ProtocolError, RequestFailedError.
        """
        backoff_seconds = _BACKOFF_SECONDS
        while True:
            if self._closed:
                raise StoreUnavailableError("this client is closed")
            young = self._outage_seconds() < RECONNECT_SECONDS_MAX
            try:
                link = self._open(REQUEST_SECONDS_MAX if young else _SUSPECT_SECONDS_MAX)
                break
            except StoreUnavailableError as error:
                self._note_outage(error)
                if self._outage_seconds() + backoff_seconds >= RECONNECT_SECONDS_MAX:
                    raise
            time.sleep(backoff_seconds)
            backoff_seconds = min(2 * backoff_seconds, _BACKOFF_SECONDS_MAX)
        with self._lock:
            self._lent.add(link)
        self._note_answer()
        return link

    def _open(self, timeout_seconds: float) -> StoreLink:
        try:
            return StoreLink(self._options, self._lookup, timeout_seconds)
        except (SegmentError, CorruptError, NewerFormatError) as error:
            # A store that was just replaced can leave its predecessor's path behind for a moment.
            raise StoreUnavailableError(f"cannot map the store's segment: {error}") from error

    def _lookup(self, path: str, segment_id: bytes) -> MappedSegment:
        """A use of the mapping of this segment; made anew when the store has another one."""
        with self._lock:
            if self._closed:
                raise StoreUnavailableError("this client is closed")
            if self._segment is not None and self._segment.segment_id == segment_id:
                return self._segment.acquire()
            old, self._segment = self._segment, MappedSegment(path, segment_id)
            used = self._segment.acquire()
        if old is not None:
            old.release()
        return used

    def _outage_seconds(self) -> float:
        since = self._away_since
        return 0.0 if since is None else time.monotonic() - since

    def _note_outage(self, error: Exception) -> None:
        if self._away_since is None:
            self._away_since = time.monotonic()
            event(_log, logging.WARNING, "store is away", reason=error)

    def _note_answer(self) -> None:
        seconds = self._outage_seconds()
        if self._away_since is not None:
            self._away_since = None
            event(_log, logging.WARNING, "store is back", seconds=seconds)

    def forget(self) -> None:
        """Start anew in a child of `fork`: the links, and their locks, are the parent's."""
        links, segment = [*self._idle, *self._lent], self._segment
        self._lock = threading.Lock()
        self._permits = threading.BoundedSemaphore(LINKS_MAX)
        self._idle, self._lent, self._segment = [], set(), None
        mappings = {link.segment for link in links} | ({segment} if segment else set())
        for link in links:
            link.forget()
        for mapping in mappings:
            mapping.forget()


def _forget_in_child() -> None:
    for pool in list(_pools):
        pool.forget()


os.register_at_fork(after_in_child=_forget_in_child)
