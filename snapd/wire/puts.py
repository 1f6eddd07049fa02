"""Messages between the daemon and a *putter*: who puts blocks into Mooncake on its behalf.

A putter runs inside the store service (`snapd mooncake-store`) or as a child of the daemon, see
`snapd.putter`. The bytes are in memory that both map: with `PutHello` comes one descriptor, of an
anonymous file that can no longer shrink, and every request names ranges of it. Columns travel as in
`snapd.wire.messages`.
"""

from __future__ import annotations

import os

import msgspec

from snapd.errors import ProtocolError
from snapd.wire.messages import Codes, Failure, KeyBatch, Message

PUT_PROTOCOL_VERSION = 1

STAGING_BYTES_MAX = 1 << 36
"""Most memory that one connection may share."""


class PutHello(Message, frozen=True, tag="put_hello"):
    """First message of a connection; the descriptor of the staging memory comes with it.

    → `PutReady`, or `Failure`.
    """

    protocol: int
    name: str
    staging_bytes: int


class PutBlocks(Message, frozen=True, tag="put_blocks"):
    """Put n blocks: their bytes are [offset, offset + size) of the staging memory, both uint64 [n].

    A key that is there already is left alone, and answered 0 like one that was put: what is really
    there, whoever asks must look up. `segment` is the endpoint of the segment to prefer. → `Codes`.
    """

    keys: KeyBatch
    offsets: bytes
    sizes: bytes
    segment: str


class RemoveBlocks(Message, frozen=True, tag="remove_blocks"):
    """Remove n keys, but never one that a reader holds a lease on. → `Codes`."""

    keys: KeyBatch


class PutReady(Message, frozen=True, tag="put_ready"):
    """`inside` is true where the putter is in the process that has the segments mapped."""

    protocol: int
    inside: bool
    process_id: int


PutRequest = PutHello | PutBlocks | RemoveBlocks
PutReply = PutReady | Codes | Failure

_requests: msgspec.msgpack.Decoder[PutRequest] = msgspec.msgpack.Decoder(PutRequest)
_replies: msgspec.msgpack.Decoder[PutReply] = msgspec.msgpack.Decoder(PutReply)


def decode_put_request(payload: bytes) -> PutRequest:
    """A typed request. Raises ProtocolError."""
    try:
        return _requests.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"not a request to a putter: {error}") from error


def decode_put_reply(payload: bytes) -> PutReply:
    """A typed reply. Raises ProtocolError."""
    try:
        return _replies.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"not a putter's reply: {error}") from error


def put_socket(runtime_dir: str, port: int) -> str:
    """Path of the socket of the putter inside the store service whose HTTP is at `port`."""
    return os.path.join(runtime_dir, f"put-{port}.sock")


def child_socket(runtime_dir: str) -> str:
    """Path of the socket of the putter that is the daemon's child."""
    return os.path.join(runtime_dir, "put-child.sock")
