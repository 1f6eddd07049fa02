"""The daemon's side of a putter: staging memory, requests, and the child where there is no other.

The daemon never loads Mooncake's native client, because a native crash would end it. It asks the
putter inside the store service where that listens (`snapd mooncake-store`), else a child of its own
(`python -m snapd.putter`), which is started when blocks are to be put and ended after that.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import mmap
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from urllib.parse import urlsplit

import numpy as np

from snapd import __version__
from snapd.attach.backoff import Backoff
from snapd.attach.port import I32
from snapd.blocks import BlockTable, KeyColumn
from snapd.blocks.keys import I64, U8, U64, Bools
from snapd.config import Settings, event
from snapd.disk.port import DISK_ALIGNMENT
from snapd.errors import SegmentError, SnapdError, StoreUnavailableError
from snapd.plans import windows
from snapd.wire.connection import Connection
from snapd.wire.messages import BATCH_KEYS_MAX, Codes, decode_column, encode_keys
from snapd.wire.puts import (
    PUT_PROTOCOL_VERSION,
    PutBlocks,
    PutHello,
    PutReady,
    RemoveBlocks,
    child_socket,
    decode_put_reply,
    put_socket,
)

PUT_SECONDS_MAX = 60.0
"""Deadline of one request: 64 MiB over a slow network, or a master that is about to be missed."""

_CONNECT_SECONDS_MAX = 2.0
_CHILD_START_SECONDS_MAX = 20.0
_CHILD_END_SECONDS_MAX = 3.0
_CHILD_IDLE_SECONDS = 2.0
_MESSAGE_KEY_BYTES_MAX = 8 * 2**20
_logger = logging.getLogger(__name__)


class StagingMemory:
    """Anonymous shared memory for blocks on their way into a store.

    It has no name, so nothing is left of it after a crash, and it is sealed, so that a putter may
    touch it without fear. A page takes memory only once it was written.
    """

    def __init__(self, size_bytes: int) -> None:
        """Raises SegmentError when there is not enough memory or address space."""
        self.size_bytes = size_bytes
        flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
        try:
            self.descriptor = os.memfd_create("snapd-staging", flags)
            try:
                os.ftruncate(self.descriptor, size_bytes)
                seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
                fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, seals)
                self._memory = mmap.mmap(self.descriptor, size_bytes)
            except BaseException:
                os.close(self.descriptor)
                raise
        except (OSError, ValueError, OverflowError) as error:
            raise SegmentError(f"cannot get {size_bytes} bytes to stage blocks: {error}") from error
        self.bytes: U8 = np.frombuffer(self._memory, np.uint8)

    def pieces(self, sizes: U64) -> tuple[U64, list[memoryview]]:
        """Room for blocks of these sizes, each aligned and padded to `DISK_ALIGNMENT`, one after
        another from the start: offsets uint64 [n], and writable views. They must fit."""
        ends = np.cumsum(padded(sizes))
        offsets: U64 = ends - padded(sizes)
        view = memoryview(self._memory)
        pairs = zip(offsets.tolist(), ends.tolist(), strict=True)
        return offsets, [view[a:b] for a, b in pairs]

    def close(self) -> None:
        """Give the memory back once no view of it is left. Idempotent."""
        self.bytes = np.empty(0, np.uint8)
        with contextlib.suppress(BufferError):
            self._memory.close()
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def padded(sizes: U64) -> U64:
    """Sizes rounded up to `DISK_ALIGNMENT`, uint64 [n]."""
    unit = np.uint64(DISK_ALIGNMENT)
    result: U64 = (sizes + unit - np.uint64(1)) // unit * unit
    return result


class Putter:
    """A connection to a putter, which maps the staging memory. For one thread."""

    def __init__(self, path: str, staging: StagingMemory) -> None:
        """Connect. Raises StoreUnavailableError when nobody answers, SnapdError when refused."""
        self._connection = Connection(
            path, _CONNECT_SECONDS_MAX, peer="putter", decode=decode_put_reply
        )
        try:
            hello = PutHello(PUT_PROTOCOL_VERSION, f"snapd {__version__}", staging.size_bytes)
            ready = self._connection.call(
                hello, PutReady, PUT_SECONDS_MAX, descriptors=[staging.descriptor]
            )
        except SnapdError:
            self._connection.close()
            raise
        self.inside = ready.inside
        """Whether it is in the process that has the segments."""

    @property
    def closed(self) -> bool:
        """Whether the connection broke."""
        return self._connection.closed

    def put(self, keys: KeyColumn, offsets: U64, sizes: U64, segment: str) -> I32:
        """Put what lies at these offsets of the staging memory; Mooncake's codes int32 [n].

        0 does not say that anything was written: the key may have been there, or the segment that
        it is listed in may be dead. Raises StoreUnavailableError when the putter ends.
        """
        codes = np.zeros(len(keys), np.int32)
        for rows in _messages(keys):
            request = PutBlocks(
                encode_keys(keys.take(rows)),
                offsets[rows].tobytes(),
                sizes[rows].tobytes(),
                segment,
            )
            reply = self._connection.call(request, Codes, PUT_SECONDS_MAX)
            codes[rows] = decode_column(reply.codes, np.int32, len(rows))
        return codes

    def remove(self, keys: KeyColumn) -> I32:
        """Remove keys that nobody reads; Mooncake's codes int32 [n]. Raises as `put` does."""
        codes = np.zeros(len(keys), np.int32)
        for rows in _messages(keys):
            request = RemoveBlocks(encode_keys(keys.take(rows)))
            reply = self._connection.call(request, Codes, PUT_SECONDS_MAX)
            codes[rows] = decode_column(reply.codes, np.int32, len(rows))
        return codes

    def close(self) -> None:
        """Close; idempotent."""
        self._connection.close()


class Putters:
    """Finds the putter of each store, keeps a child for those that have none, and remembers what
    all lanes of the daemon have to know of each other. Safe for several threads."""

    def __init__(self, settings: Settings) -> None:
        self._runtime_dir = settings.runtime_dir
        self._child = PutterChild(settings)
        self.turn = threading.Lock()
        """Held around a put and all that is asked about it: a lane that takes a block out again
        moves the counters that another one watches."""
        self._lock = threading.Lock()
        self._users = 0
        self._reserved: Counter[int] = Counter()
        self._doubted: set[bytes] = set()
        self._attempts: Counter[tuple[int, int]] = Counter()

    def connect(self, store_url: str, staging: StagingMemory) -> Putter:
        """A connection for the store at this URL, which ends with `closed`. Raises
        StoreUnavailableError, SnapdError."""
        with self._lock:
            self._users += 1
        try:
            return self._connect(store_url, staging)
        except BaseException:
            self.closed()
            raise

    def closed(self) -> None:
        """A connection was closed. The child ends some time after the last one."""
        with self._lock:
            self._users -= 1
            if self._users == 0:
                timer = threading.Timer(_CHILD_IDLE_SECONDS, self._end_if_idle)
                timer.daemon = True
                timer.start()

    # --- bytes on their way -------------------------------------------------------------------

    def reserve(self, by_store: Mapping[int, int]) -> None:
        """So many bytes are on their way to each store."""
        with self._lock:
            self._reserved.update(by_store)

    def release(self, by_store: Mapping[int, int]) -> None:
        """They have arrived, or will not."""
        with self._lock:
            self._reserved.subtract(by_store)

    def reserved(self, store: int | None = None) -> int:
        """Bytes on their way to one store, or to all."""
        with self._lock:
            return self._reserved.total() if store is None else self._reserved[store]

    # --- blocks in doubt ----------------------------------------------------------------------

    def doubt(self, keys: KeyColumn, gone: Bools) -> None:
        """These keys were to be taken out again; those that are not `gone`, bool [n], still are."""
        with self._lock:
            for key, is_gone in zip(keys.to_list(), gone.tolist(), strict=True):
                if is_gone:
                    self._doubted.discard(key)
                else:
                    self._doubted.add(key)

    def doubted(self, keys: KeyColumn) -> Bools:
        """Which of these keys are to be taken out again, bool [n]."""
        with self._lock:
            if not self._doubted:
                return np.zeros(len(keys), np.bool_)
            return np.array([key in self._doubted for key in keys.to_list()], np.bool_)

    def failed_too_often(self, table: BlockTable, failed: Bools, attempts_max: int) -> Bools:
        """Count a failed put of these blocks; which have failed so often, bool [n]."""
        result: Bools = np.zeros(len(table), np.bool_)
        with self._lock:
            for row in np.flatnonzero(failed).tolist():
                version = (int(table.slot[row]), int(table.slot_sequence[row]))
                self._attempts[version] += 1
                result[row] = self._attempts[version] >= attempts_max
        return result

    def close(self) -> None:
        """End the child, if there is one. Idempotent; `connect` starts another."""
        self._child.stop()

    def _end_if_idle(self) -> None:
        with self._lock:
            idle = self._users == 0
        if idle:  # who connects just now finds the connection broken, and comes again
            self._child.stop()

    def _connect(self, store_url: str, staging: StagingMemory) -> Putter:
        port = urlsplit(store_url).port or 80
        with contextlib.suppress(StoreUnavailableError):
            return Putter(put_socket(self._runtime_dir, port), staging)
        self._child.require()
        return Putter(child_socket(self._runtime_dir), staging)


class PutterChild:
    """The putter that is the daemon's child: started when it is needed, again when it died.

    Its standard input is a pipe that only we hold, so that it ends when we die, however that is.
    """

    def __init__(self, settings: Settings) -> None:
        self._command = [
            settings.mooncake_python or sys.executable,
            *("-m", "snapd.putter"),
            *("--socket", child_socket(settings.runtime_dir)),
            *("--master", settings.mooncake_master),
            *("--metadata", settings.mooncake_metadata),
            *("--protocol", settings.mooncake_protocol),
            *("--device", settings.mooncake_device),
            *("--local-hostname", settings.mooncake_local_hostname),
            *("--log-format", settings.log_format),
            *("--log-level", settings.log_level),
            *(["--group-shared"] if settings.group_shared else []),
        ]
        self._socket = child_socket(settings.runtime_dir)
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._backoff = Backoff(_logger, "start a putter", first_seconds=0.25, most_seconds=10.0)
        self._not_before = 0.0

    def require(self) -> None:
        """Return once it listens. Raises StoreUnavailableError when it does not, or ended not long
        ago; the caller tries again."""
        with self._lock:
            process = self._process
            if process is not None and process.poll() is not None:
                self._failed(f"the putter ended with {process.returncode}")
            if self._process is None:
                if time.monotonic() < self._not_before:
                    raise StoreUnavailableError(f"no putter yet: {self._backoff.error}")
                self._start()
            self._wait()

    def stop(self) -> None:
        """End it; idempotent."""
        with self._lock:
            process, self._process = self._process, None
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        try:
            process.wait(_CHILD_END_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _start(self) -> None:
        try:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=sys.stderr,
                env={"GLOG_minloglevel": "1"} | os.environ,
            )
        except OSError as error:
            raise self._failed(f"{self._command[0]}: {error}; set mooncake_python") from error
        event(_logger, logging.INFO, "started a putter", pid=self._process.pid)

    def _wait(self) -> None:
        deadline = time.monotonic() + _CHILD_START_SECONDS_MAX
        assert self._process is not None
        while True:
            with contextlib.suppress(StoreUnavailableError):
                Connection(self._socket, _CONNECT_SECONDS_MAX, peer="putter").close()
                self._backoff.succeeded()
                return
            if self._process.poll() is not None:
                code = self._process.returncode
                raise self._failed(f"the putter ended with {code}: its words are above")
            if time.monotonic() > deadline:
                self._process.kill()
                self._process.wait()
                raise self._failed(f"no putter listens after {_CHILD_START_SECONDS_MAX:.0f} s")
            time.sleep(0.02)

    def _failed(self, why: str) -> StoreUnavailableError:
        """Note that it ended. The caller holds the lock and raises what this returns."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
        self._process = None
        error = StoreUnavailableError(why)
        self._not_before = time.monotonic() + self._backoff.failed(error)
        return error


def _messages(keys: KeyColumn) -> list[I64]:
    """Rows of keys that fit into one message each."""
    rows, lengths = np.arange(len(keys), dtype=np.int64), keys.lengths.astype(np.uint64)
    return list(windows(rows, lengths, bytes_max=_MESSAGE_KEY_BYTES_MAX, blocks_max=BATCH_KEYS_MAX))
