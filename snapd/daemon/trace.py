"""`TraceReceiver`: the daemon's end of the trace channel.

Whoever may connect may send anything, as fast as he likes. Nothing here waits for him, nothing
grows with what he sends, and all of it together takes a tenth of one processor at most: beyond that
the socket is not read, its queue of a few datagrams is full, and senders drop what they have.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import socket
import stat
import struct
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from snapd.attach.traced import TracedHeat
from snapd.config import event
from snapd.errors import ProtocolError
from snapd.plans import TokenBucket
from snapd.plans.pageheat import Touches
from snapd.wire.trace import DATAGRAM_BYTES_MAX, decode_lookup

CPU_SHARE_MAX = 0.1
"""Of one processor."""
_CPU_BURST_SECONDS = 0.25
_WAIT_SECONDS = 0.25
"""How late the end of the daemon may be noticed."""
_PAUSE_SECONDS = 0.02
"""Between two looks at the socket. Whoever sends is at work for a request: woken by each datagram,
this thread would take his processor at that very moment. The kernel queues ten datagrams by default
(net.unix.max_dgram_qlen), so 500 a second get through."""
_READ_MAX = 64
_FOLD_SECONDS = 1.0
_FOLD_PAGES = 65_536
"""Pages of look-ups that are kept before they are folded in."""
_CREDENTIALS = struct.Struct("@iII")
_logger = logging.getLogger(__name__)


class TraceObserver(Protocol):
    """Who counts; see `snapd.metrics.Metrics`."""

    def traced(self, accepted: int, malformed: int, refused: int) -> None:
        """Datagrams by what became of them."""

    def traced_pages(self, hits: int, misses: int, known: int) -> None:
        """Pages that were looked up, and of how many heat is known now."""


@dataclass
class _Batch:
    """What was read and has not been folded in."""

    parts: list[Touches]
    since: float
    pages: int = 0
    hits: int = 0


class TraceReceiver:
    """A thread's work: read look-ups, fold them into `TracedHeat` once a second."""

    def __init__(
        self,
        path: str,
        traced: TracedHeat,
        observer: TraceObserver,
        ended: threading.Event,
        *,
        group_shared: bool = False,
    ) -> None:
        """With `group_shared` processes of our group may send, by the mode of the socket."""
        self._path = path
        self._traced = traced
        self._observer = observer
        self._ended = ended
        self._group_shared = group_shared
        self._batch = _Batch([], 0.0)
        self._accepted = self._malformed = self._refused = 0
        self._cpu = TokenBucket.full(CPU_SHARE_MAX, _CPU_BURST_SECONDS, time.monotonic())
        self._socket: socket.socket | None = None
        self.problem = ""
        """Why nothing is received; empty if it is."""

    def open(self) -> None:
        """Bind the socket, in place of what a daemon that is gone left there. Where that cannot be
        done it is said once: everything works without traces. Call it before threads start, because
        the mode of a new socket is the umask's."""
        try:
            self._socket = _bind(self._path, group_shared=self._group_shared)
        except OSError as error:
            self.problem = f"cannot receive traces at {self._path}: {error.strerror or error}"
            event(_logger, logging.WARNING, "cannot receive traces", socket=self._path, error=error)

    def run(self) -> None:
        """Until the daemon ends."""
        if self._socket is None:
            return
        _give_way()
        with self._socket as listener:
            there = select.poll()
            there.register(listener, select.POLLIN)
            while not self._ended.is_set():
                began = time.thread_time()
                if not self._read_all(listener):
                    there.poll(_WAIT_SECONDS * 1000)
                self._fold_in_turn()
                self._rest(time.thread_time() - began)
                self._ended.wait(_PAUSE_SECONDS)
        with contextlib.suppress(OSError):
            os.unlink(self._path)

    def document(self) -> Mapping[str, Any]:
        """For the status."""
        return {
            "listening": self._socket is not None,
            "problem": self.problem,
            "lookups": self._accepted,
            "malformed": self._malformed,
            "refused": self._refused,
            "pages_known": self._traced.pages,
            "half_life_seconds": self._traced.half_life_seconds,
        }

    # --- inside -------------------------------------------------------------------------------

    def _read_all(self, listener: socket.socket) -> bool:
        """What is in the queue, up to a bound; whether anything was."""
        for datagrams in range(_READ_MAX):
            if not self._read(listener):
                return datagrams > 0
        return True

    def _read(self, listener: socket.socket) -> bool:
        """One datagram; whether there was one."""
        try:
            # No room for descriptors: the kernel closes those that somebody passes.
            raw, ancillary, flags, _ = listener.recvmsg(
                DATAGRAM_BYTES_MAX, socket.CMSG_SPACE(_CREDENTIALS.size)
            )
        except BlockingIOError:
            return False
        accepted = malformed = refused = 0
        if not self._serves(ancillary):
            refused = 1
        elif flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or not self._take(raw):
            malformed = 1
        else:
            accepted = 1
        self._accepted += accepted
        self._malformed += malformed
        self._refused += refused
        self._observer.traced(accepted, malformed, refused)
        return True

    def _take(self, raw: bytes) -> bool:
        """Keep a look-up to be folded in; False if it is none."""
        try:
            lookup = decode_lookup(raw)
        except ProtocolError:
            return False
        now = time.monotonic()
        if not self._batch.parts:
            self._batch.since = now
        self._batch.parts.append(Touches.of_chain(lookup.pages, lookup.parent, lookup.depth, now))
        self._batch.pages += len(lookup.pages)
        self._batch.hits += lookup.hits
        return True

    def _serves(self, ancillary: list[tuple[int, int, bytes]]) -> bool:
        """Whether the kernel says that the sender is root or our own user; in a shared group the
        mode of the socket decides, and who may send is who could connect."""
        if self._group_shared:
            return True
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
                _, user, _ = _CREDENTIALS.unpack(data[: _CREDENTIALS.size])
                return user in (0, os.geteuid())
        return False

    def _fold_in_turn(self) -> None:
        batch = self._batch
        if not batch.parts:
            return
        if batch.pages < _FOLD_PAGES and time.monotonic() - batch.since < _FOLD_SECONDS:
            return
        self._batch = _Batch([], 0.0)
        self._traced.fold(Touches.concatenate(batch.parts))
        self._observer.traced_pages(batch.hits, batch.pages - batch.hits, self._traced.pages)

    def _rest(self, used_seconds: float) -> None:
        """Sleep for as long as this thread has used more than its share."""
        self._cpu, owed_seconds = self._cpu.take(used_seconds, time.monotonic())
        if owed_seconds > 0:
            self._ended.wait(owed_seconds)


def _give_way() -> None:
    """Have this thread never take the processor from one that runs, only its turn (sched(7),
    SCHED_BATCH). Where that is not allowed it is a little less polite."""
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def _bind(path: str, *, group_shared: bool) -> socket.socket:
    """A datagram socket at `path`, mode 0600, or 0660 with `group_shared`. Raises OSError; what is
    there and is no socket that nobody reads stays there."""
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe,
        contextlib.suppress(ConnectionRefusedError, FileNotFoundError),
    ):
        probe.connect(path)
        raise FileExistsError(errno.EEXIST, "another daemon receives there")
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise FileExistsError(errno.EEXIST, "it is no socket")
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        listener.settimeout(0.0)
        before = os.umask(0o117 if group_shared else 0o177)
        try:
            listener.bind(path)
        finally:
            os.umask(before)
    except BaseException:
        listener.close()
        raise
    return listener
