"""The trace channel: what clients looked up, one datagram a lookup.

It only ever says what is worth keeping, so it is made to be lost: a datagram that does not fit
into the queue is dropped by its sender, and one that is not exactly a lookup by its receiver.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Annotated

import msgspec
import numpy as np

from snapd.blocks.keys import U64
from snapd.errors import ProtocolError

TRACE_SOCKET = "trace.sock"
"""Its name in the runtime directory."""

TRACE_VERSION = 1

PAGES_MAX = 4096
"""Most pages of one lookup."""

DEPTH_MAX = 2**32 - 1

DATAGRAM_BYTES_MAX = 8 * PAGES_MAX + 64
"""No lookup is longer."""


class _Datagram(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A lookup as it travels; `pages` is uint64 little-endian."""

    version: int
    parent: Annotated[int, msgspec.Meta(ge=0)]
    depth: Annotated[int, msgspec.Meta(ge=0, le=DEPTH_MAX)]
    hits: Annotated[int, msgspec.Meta(ge=0, le=PAGES_MAX)]
    pages: Annotated[bytes, msgspec.Meta(min_length=8, max_length=8 * PAGES_MAX)]


_encode = msgspec.msgpack.encode
_decoder = msgspec.msgpack.Decoder(_Datagram)


@dataclass(frozen=True, slots=True)
class Lookup:
    """Somebody asked for the pages of a chain."""

    pages: U64
    """uint64 [n], 1 to `PAGES_MAX`, in the order of the chain; see `snapd.blocks.pages`."""
    parent: int
    """The page before the first one; 0: there is none, or it is not known."""
    depth: int
    """Pages before the first one; 0 as well where that is not known."""
    hits: int
    """So many of them, from the first, were there."""


def trace_socket(runtime_dir: str) -> str:
    """The path of the socket."""
    return os.path.join(runtime_dir, TRACE_SOCKET)


def encode_lookup(lookup: Lookup) -> bytes:
    """As a datagram; the caller keeps the bounds, or the receiver drops it."""
    pages = lookup.pages.astype("<u8", copy=False).tobytes()
    return _encode(_Datagram(TRACE_VERSION, lookup.parent, lookup.depth, lookup.hits, pages))


def decode_lookup(raw: bytes) -> Lookup:
    """A datagram that is exactly a lookup. Raises ProtocolError for anything else."""
    try:
        datagram = _decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(f"not a lookup: {error}") from error
    if datagram.version != TRACE_VERSION:
        raise ProtocolError(f"a lookup of version {datagram.version}")
    count, rest = divmod(len(datagram.pages), 8)
    if rest or datagram.hits > count:
        raise ProtocolError(f"{len(datagram.pages)} bytes of pages, {datagram.hits} of them hits")
    pages = np.frombuffer(datagram.pages, "<u8").astype(np.uint64)
    return Lookup(pages, datagram.parent, datagram.depth, datagram.hits)
