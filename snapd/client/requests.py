"""One request, or one put, on one link: columns in, codes out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from snapd.blocks.keys import I64, U64
from snapd.blocks.labels import tagged_with, without_tags
from snapd.client.link import StoreLink
from snapd.client.options import PutOptions
from snapd.client.transfer import Sources
from snapd.errors import ProtocolError, StoreUnavailableError
from snapd.wire.codes import ReturnCode
from snapd.wire.connection import RequestFailedError
from snapd.wire.messages import (
    Codes,
    Count,
    Exist,
    Listed,
    ListKeys,
    Located,
    PutEnd,
    PutRevoke,
    PutStart,
    Query,
    Remove,
    RemoveAll,
    Reserved,
    Stats,
    StatsReply,
    decode_column,
    decode_keys,
)

_LISTINGS_MAX = 3
"""How often to list keys while some of them move."""


class Listing(NamedTuple):
    """The keys that a store has, as callers name them. It is `complete` unless it may have more."""

    names: list[bytes]
    complete: bool


def ping(link: StoreLink) -> int:
    """0, once the store has answered."""
    link.call(Stats(), StatsReply)
    return int(ReturnCode.OK)


def exist(link: StoreLink, keys: Sequence[bytes]) -> I64:
    """1, 0 or a negative code for each key, int64 [n]."""
    return _decode_codes(link.call(Exist(link.encode(keys)), Codes), len(keys))


def sizes(link: StoreLink, keys: Sequence[bytes]) -> I64:
    """Bytes or a negative code for each key, int64 [n]."""
    located = link.call(Query(link.encode(keys)), Located)
    codes = decode_column(located.codes, np.int32, len(keys)).astype(np.int64)
    found = decode_column(located.sizes, np.uint64, len(keys)).astype(np.int64)
    result: I64 = np.where(codes == ReturnCode.OK, found, codes)
    return result


def remove(link: StoreLink, keys: Sequence[bytes], *, force: bool) -> I64:
    """0 or a negative code for each key, int64 [n]."""
    return _decode_codes(link.call(Remove(link.encode(keys), force), Codes), len(keys))


def names(link: StoreLink) -> Listing:
    """The keys of this client's label. Keys that are put or removed during the call may be in it or
    not; one that only moves, from disk into memory, makes the listing begin anew, or incomplete."""
    listing = Listing([], complete=False)
    for _ in range(_LISTINGS_MAX):
        pages = list(_pages(link))
        columns = [decode_keys(page.keys) for page in pages]
        own = [without_tags(keys.take(tagged_with(keys, link.options.tag))) for keys in columns]
        still = pages[0].moved == pages[-1].moved
        complete = still and all(page.complete for page in pages)
        listing = Listing([name for keys in own for name in keys.to_list()], complete)
        if still:
            break
    return listing


def _pages(link: StoreLink) -> Iterator[Listed]:
    first = 0
    while True:
        page = link.call(ListKeys(first), Listed)
        yield page
        if page.next <= first:
            return
        first = page.next


def remove_all(link: StoreLink, *, force: bool) -> int:
    """How many keys were removed."""
    return link.call(RemoveAll(force), Count).value


def put(link: StoreLink, keys: Sequence[bytes], sources: Sources, options: PutOptions) -> I64:
    """0 or a negative code for each key, int64 [n].

    Reserve, hash and copy, publish: a client that dies before the last step has published nothing,
    and its space is reused only when the kernel has dropped the lock that it holds since before
    the first step.
    """
    link.become_writer()
    lengths: U64 = np.array(sources.sizes, np.uint64)
    request = PutStart(
        link.encode(keys),
        lengths.tobytes(),
        options.upsert,
        int(options.pin),
        options.soft_pin_ttl_ms,
        options.keep_pin,
        b"" if options.groups is None else options.groups.tobytes(),
    )
    reserved = link.call(request, Reserved)
    result = decode_column(reserved.codes, np.int32, len(keys)).astype(np.int64)
    rows = np.flatnonzero(result == ReturnCode.OK)
    if len(rows) == 0:
        return result
    slots = decode_column(reserved.slots, np.uint32, len(keys))[rows].tobytes()
    sequences = decode_column(reserved.sequences, np.uint64, len(keys))[rows].tobytes()
    offsets = decode_column(reserved.offsets, np.uint64, len(keys))[rows]
    try:
        taken = sources if len(rows) == len(keys) else sources.take(rows.tolist())
        checksums = taken.copy_to(link.segment.addresses(offsets, lengths[rows]))
    except BaseException:
        with contextlib.suppress(StoreUnavailableError, ProtocolError, RequestFailedError):
            link.call(PutRevoke(slots, sequences), Codes)
        raise
    ended = link.call(PutEnd(slots, sequences, checksums.tobytes()), Codes)
    result[rows] = _decode_codes(ended, len(rows))
    return result


def _decode_codes(reply: Codes, count: int) -> I64:
    return decode_column(reply.codes, np.int32, count).astype(np.int64)
