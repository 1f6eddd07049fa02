"""`StoreLink`: one connection to the store, with what it may do in the segment."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from snapd.blocks.labels import label_tag
from snapd.client.mapped import MappedSegment
from snapd.client.names import encode_names
from snapd.config.logs import event
from snapd.errors import SegmentError, StoreUnavailableError
from snapd.wire.connection import Connection, ReplyType
from snapd.wire.messages import PROTOCOL_VERSION, Hello, HelloReply, KeyBatch, Message

REQUEST_SECONDS_MAX = 5.0
"""Deadline of one request, beside what a get is allowed to wait for cold blocks."""

SegmentLookup = Callable[[str, bytes], MappedSegment]
"""Gives a counted use of the mapping of the segment at a path with an id."""


_log = logging.getLogger(__name__)


class LabelNotice:
    """Says once in each life of a store that it has blocks, and none of this client's label."""

    def __init__(self) -> None:
        self._boot_id = b""
        self._lock = threading.Lock()

    def look(self, fingerprint: str, hello: HelloReply) -> None:
        """Look at a greeting; from any thread."""
        with self._lock:
            if hello.boot_id == self._boot_id:
                return
            self._boot_id = hello.boot_id
        if hello.label_blocks or not hello.other_blocks:
            return
        event(
            _log,
            logging.WARNING,
            "the store has no blocks of this fingerprint, only of others: their keys are misses",
            fingerprint=fingerprint or "none",
            other_blocks=hello.other_blocks,
        )


@dataclass(frozen=True, slots=True)
class LinkOptions:
    """How to connect: path of the socket, label of what is put and found, seconds to wait for cold
    blocks."""

    socket_path: str
    fingerprint: str
    get_wait_seconds: float
    notice: LabelNotice = field(default_factory=LabelNotice, compare=False)

    def relabelled(self, fingerprint: str) -> LinkOptions:
        """The same under another label."""
        return LinkOptions(self.socket_path, fingerprint, self.get_wait_seconds)

    @property
    def tag(self) -> bytes:
        """What keys have behind them on their way to the store."""
        return label_tag(self.fingerprint)


class StoreLink:
    """Used by one thread at a time. After any error but `RequestFailedError` it must be closed."""

    def __init__(self, options: LinkOptions, lookup: SegmentLookup, timeout_seconds: float) -> None:
        """Connect and map. Raises StoreUnavailableError, ProtocolError, RequestFailedError, and
        SegmentError, CorruptError or NewerFormatError when the segment cannot be mapped."""
        self.options = options
        self._tag = options.tag
        self._connection = Connection(options.socket_path, timeout_seconds)
        self._holds_writer = False
        try:
            hello = Hello(PROTOCOL_VERSION, "client", f"client-{os.getpid()}", options.fingerprint)
            self._hello = self._connection.call(hello, HelloReply, timeout_seconds)
            options.notice.look(options.fingerprint, self._hello)
            self.segment = lookup(self._hello.segment_path, self._hello.segment_id)
        except BaseException:
            self._connection.close()
            raise

    def call(
        self, request: Message, reply_type: type[ReplyType], wait_seconds: float = 0.0
    ) -> ReplyType:
        """One request; `wait_seconds` is what the store may take beside the usual deadline.

        Raises what `Connection.call` raises.
        """
        return self._connection.call(request, reply_type, REQUEST_SECONDS_MAX + wait_seconds)

    def encode(self, names: Sequence[bytes]) -> KeyBatch:
        """Keys of callers as this client's store knows them, see `usable_rows`."""
        return encode_names(names, self._tag)

    def become_writer(self) -> None:
        """Hold this connection's writer lock from now on until `close`; idempotent.

        It comes before the first `PutStart`: whoever finds the lock free may reuse the space.
        Raises StoreUnavailableError if another process has it: a new connection has another
        number.
        """
        if not self._holds_writer:
            try:
                self.segment.hold_writer(self._hello.writer)
            except SegmentError as error:
                raise StoreUnavailableError(f"cannot write: {error}") from error
            self._holds_writer = True

    def close(self) -> None:
        """Close the connection, then give up lock and mapping; no copy may be in flight."""
        self._connection.close()
        if self._holds_writer:
            self._holds_writer = False
            self.segment.release_writer(self._hello.writer)
        self.segment.release()

    def forget(self) -> None:
        """Drop the socket in a child of `fork`, without a word to the store or about the lock."""
        self._connection.close()
