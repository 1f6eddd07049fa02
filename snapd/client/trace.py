"""`Tracer`: tells the daemon which pages are looked up, without ever being in a request's way.

One datagram a lookup, sent without waiting. Where the daemon is away, or its queue is full, the
lookup is dropped and counted: what is lost is a little knowledge of what is worth keeping.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Sequence

import numpy as np

from snapd.blocks.keys import U64
from snapd.config import event
from snapd.wire.trace import DATAGRAM_BYTES_MAX, DEPTH_MAX, PAGES_MAX, Lookup, encode_lookup

_REOPEN_SECONDS = 1.0
"""A daemon that is away is looked for at most so often."""

_LOG_SECONDS = 60.0
_PARTS_MAX = 16
"""Datagrams that one lookup may take; the pages behind them are left out."""

_logger = logging.getLogger(__name__)


class Tracer:
    """The sending end of the trace channel; for any number of threads.

    After `fork` the child opens a socket of its own.
    """

    def __init__(self, path: str) -> None:
        """`path` is the daemon's socket (`snapd.wire.trace.trace_socket`); it need not be there."""
        self._path = path
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._process = os.getpid()
        self._open_at = 0.0
        self._log_at = 0.0
        self._is_closed = False
        self.sent = 0
        """Datagrams given to the kernel. About: threads that count at once may miss one."""
        self.dropped = 0
        """Datagrams that were not, because nobody listens, the queue is full, or the arguments
        make no lookup."""

    def lookup(
        self, pages: Sequence[int] | U64, *, parent: int = 0, depth: int = 0, hits: int
    ) -> None:
        """Somebody looked up these pages of a chain, of which the first `hits` were there.

        `pages` are ids (`snapd.blocks.page_id`) in the order of the chain, `parent` is the id of
        the page before them and `depth` the number of pages before them, each 0 where there is none
        or it is not known. Never blocks, never raises; takes a few microseconds.
        """
        try:
            chain = _ids(pages)
            parent, depth, hits = int(parent), int(depth), int(hits)
        except (TypeError, ValueError, OverflowError) as error:
            self._drop(f"no lookup: {error}")
            return
        count = len(chain)
        if not (0 <= parent < 2**64 and 0 <= depth <= DEPTH_MAX - count):
            self._drop(f"no lookup: parent {parent}, depth {depth}")
            return
        is_placed = bool(depth) or not parent
        for first in range(0, min(count, _PARTS_MAX * PAGES_MAX), PAGES_MAX):
            part = chain[first : first + PAGES_MAX]
            before = depth + first if is_placed else 0
            here = min(max(0, hits - first), len(part))
            self._send(encode_lookup(Lookup(part, parent, before, here)))
            parent = int(part[-1])

    def close(self) -> None:
        """Close the socket; what is looked up from now on is dropped. Idempotent."""
        with self._lock:
            self._is_closed = True
            self._shut()

    # --- inside -------------------------------------------------------------------------------

    def _send(self, datagram: bytes) -> None:
        if self._process != os.getpid():
            self._begin_in_child()
        to = self._socket
        if to is None:
            to = self._reopened()
        if to is None:
            self.dropped += 1
            return
        try:
            to.send(datagram)
        except BlockingIOError:
            self.dropped += 1  # the daemon has more to read than it can: nothing is wrong
        except OSError as error:
            self._lose(to, error)
        else:
            self.sent += 1

    def _begin_in_child(self) -> None:
        """The lock may have been held by a thread that was not forked along; the socket's other
        half stays with the parent."""
        self._lock = threading.Lock()
        self._process, self._open_at = os.getpid(), 0.0
        self._shut()

    def _reopened(self) -> socket.socket | None:
        """The socket, opened if it is time to try; None while the daemon is away, and for those who
        come while another thread opens it."""
        if not self._lock.acquire(blocking=False):
            return None
        try:
            now = time.monotonic()
            if self._is_closed or self._socket is not None or now < self._open_at:
                return self._socket
            self._open_at = now + _REOPEN_SECONDS
            opened = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            try:
                # Linux counts twice what a datagram takes: with room for a few of the longest, the
                # length of the receiver's queue is what bounds them.
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 * DATAGRAM_BYTES_MAX)
                opened.connect(self._path)
            except OSError as error:
                opened.close()
                self._complain(now, f"{error.strerror or error}")
                return None
            self._socket = opened
            return opened
        finally:
            self._lock.release()

    def _lose(self, lost: socket.socket, error: OSError) -> None:
        """The daemon that this socket led to is gone."""
        self.dropped += 1
        if not self._lock.acquire(blocking=False):
            return
        try:
            if self._socket is lost:
                self._shut()
            self._complain(time.monotonic(), f"{error.strerror or error}")
        finally:
            self._lock.release()

    def _shut(self) -> None:
        """The caller holds the lock."""
        held, self._socket = self._socket, None
        if held is not None:
            with contextlib.suppress(OSError):
                held.close()

    def _drop(self, reason: str) -> None:
        self.dropped += 1
        if self._lock.acquire(blocking=False):
            try:
                self._complain(time.monotonic(), reason)
            finally:
                self._lock.release()

    def _complain(self, now: float, reason: str) -> None:
        """Say why lookups are dropped, at most once a minute. The caller holds the lock."""
        if now < self._log_at:
            return
        self._log_at = now + _LOG_SECONDS
        event(
            _logger,
            logging.WARNING,
            "lookups are not traced: the daemon does not learn what is worth keeping",
            socket=self._path,
            dropped=self.dropped,
            error=reason,
        )


def _ids(pages: Sequence[int] | U64) -> U64:
    """As uint64 [n]. Raises TypeError, ValueError or OverflowError for what is none."""
    if isinstance(pages, np.ndarray):
        if pages.ndim != 1 or pages.dtype.kind not in "ui":
            raise TypeError(f"page ids of shape {pages.shape} and dtype {pages.dtype}")
        return pages.astype(np.uint64, copy=False)
    return np.fromiter(map(int, pages), np.uint64, count=len(pages))
