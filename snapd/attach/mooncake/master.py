"""`MasterAdmin`: what Mooncake's master says of its keys, segments and counters.

These are the questions of its admin HTTP. None of them takes a lease, so none of them disturbs the
order of eviction. Only the default tenant is listed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, TypeVar
from urllib.parse import quote_from_bytes

import msgspec
import numpy as np

from snapd.attach.mooncake.counters import (
    COUNTERS,
    NEW_OBJECTS,
    NEW_OBJECTS_AT_FIRST,
    REQUIRED,
    Counters,
)
from snapd.attach.mooncake.http import Answer, HttpPeer
from snapd.blocks import KEY_BYTES_MAX, KeyColumn
from snapd.blocks.keys import I64, U64, Bools

KEYS_BYTES_MAX = 1 << 30
"""Longest listing of keys that is read."""
LOCATE_KEYS = 500
"""Keys asked about in one request."""
_LOCATE_BYTES_MAX = 128 << 10
_ANSWER_BYTES_MAX = 64 << 20
_COMMA, _LINE_FEED = ord(","), ord("\n")
_SAMPLE = re.compile(rb"^([a-z_]+) ([0-9]+)\r?$", re.MULTILINE)
"""A sample without labels, and whole: all that is needed of the text format, once a second."""
_BASE_ADDRESS = re.compile(r"0x([0-9a-f]{1,16})")
_ADDRESS_END = 1 << 64

Count = Annotated[int, msgspec.Meta(ge=0)]
AnswerType = TypeVar("AnswerType")


@dataclass(frozen=True, slots=True)
class MasterSegment:
    """A segment as the master lists it."""

    segment_id: str
    client_id: str
    """Of the store service that contributes it; another one for each life of the service."""
    base_address: int
    """In the address space of that service."""
    size_bytes: int
    endpoint: str
    used_bytes: int
    is_ok: bool


@dataclass(frozen=True, slots=True)
class Locations:
    """Where n keys are, as columns."""

    found: Bools
    """The master lists the key as complete, in whatever place."""
    segment: I64
    """Position, in the segments that were given, of the one that holds it in memory; -1: none."""
    offset: U64
    """First byte in that segment; 0 where there is none."""
    size: U64
    """Its bytes; 0 where there is none."""


class MasterKeys(KeyColumn):
    """The keys that a master lists, each once, as far as they can be asked about."""

    __slots__ = ("unlistable",)

    def __init__(self, keys: KeyColumn, unlistable: int) -> None:
        super().__init__(keys.heap, keys.offsets)
        self.unlistable = unlistable
        """Left out: keys that are empty, too long, not UTF-8, or contain a comma, which separates
        keys in a question. (A key with a line feed looks like two that are not there.)"""


class _Segment(msgspec.Struct):
    segment_id: str
    client_id: str
    base_address: str
    size_bytes: Count
    te_endpoint: str
    status: str
    allocator_used_bytes: Count


class _Segments(msgspec.Struct):
    segments: list[_Segment]


class _Replica(msgspec.Struct):
    size: Count = msgspec.field(name="size_")
    address: Count = msgspec.field(name="buffer_address_")
    endpoint: str = msgspec.field(name="transport_endpoint_")


class _Found(msgspec.Struct):
    ok: bool
    values: list[_Replica] | None = None


class _Query(msgspec.Struct):
    success: bool
    data: dict[str, _Found]


class MasterAdmin:
    """One master. Not safe for use by two threads at once: give each thread its own.

    Every method raises StoreUnavailableError when the master does not answer within the deadline
    (or is a standby), and ProtocolError when what it says cannot be used.
    """

    def __init__(
        self, address: str, *, timeout_seconds: float = 5.0, listing_timeout_seconds: float = 60.0
    ) -> None:
        """`address` is host:port; nothing is asked yet. The second deadline is that of `keys`."""
        self._timeout_seconds = timeout_seconds
        self._listing_timeout_seconds = listing_timeout_seconds
        self._peer = HttpPeer(
            "Mooncake's master",
            f"http://{address}",
            "check that mooncake_master runs, and that mooncake_admin names its --metrics_port",
        )

    def counters(self) -> Counters:
        """One look at the counters of /metrics: of two readings, the one with less under way."""
        first, second = self._counters(), self._counters()
        return first if first.rewrites < second.rewrites else second

    def _counters(self) -> Counters:
        answer = self._get("/metrics", _ANSWER_BYTES_MAX)
        values = {
            name: int(value)
            for raw, value in _SAMPLE.findall(answer.body)
            if (name := raw.decode()) in COUNTERS and len(value) < 20
        }
        if missing := REQUIRED - values.keys():
            raise self._peer.nonsense("GET /metrics", f"no {', '.join(sorted(missing))}")
        values.setdefault(NEW_OBJECTS, NEW_OBJECTS_AT_FIRST)
        return Counters(MappingProxyType(values))

    def segments(self) -> list[MasterSegment]:
        """All segments, of whichever host."""
        target = "/get_segments_detail"
        listed = self._json(self._get(target, _ANSWER_BYTES_MAX), _Segments, target).segments
        return [self._segment(each, target) for each in listed]

    def keys(self) -> MasterKeys:
        """All complete keys of the default tenant."""
        answer = self._get("/get_all_keys", KEYS_BYTES_MAX, self._listing_timeout_seconds)
        if answer.body and answer.body[-1] != _LINE_FEED:
            raise self._peer.nonsense("GET /get_all_keys", "the last key has no end")
        return split_keys(answer.body)

    def locate(self, keys: KeyColumn, segments: Sequence[MasterSegment]) -> Locations:
        """Where each key is. A replica counts where the whole of it is inside one of `segments`.

        A key that no question can contain (with a comma, not UTF-8) is not found.
        """
        count = len(keys)
        found: Bools = np.zeros(count, np.bool_)
        rows: list[int] = []
        places: list[_Replica] = []
        for first, names in _questions(keys):
            for row, reply in enumerate(self._query(names), first):
                if reply is not None and reply.ok:
                    found[row] = True
                    for replica in reply.values or ():
                        rows.append(row)
                        places.append(replica)
        return self._place(found, np.array(rows, np.int64), places, segments)

    def close(self) -> None:
        """Close the connection; idempotent."""
        self._peer.close()

    def _query(self, names: list[str | None]) -> Iterable[_Found | None]:
        asked = [name for name in names if name is not None]
        if not asked:
            return [None] * len(names)
        encoded = quote_from_bytes(",".join(asked).encode(), safe=",")
        question = f"GET /batch_query_keys of {len(asked)} keys"
        answer = self._get(f"/batch_query_keys?keys={encoded}", _ANSWER_BYTES_MAX, None, question)
        query = self._json(answer, _Query, question)
        if not query.success or not query.data.keys() >= set(asked):
            raise self._peer.nonsense(question, f"keys are left out in {answer.excerpt()}")
        return [None if name is None else query.data[name] for name in names]

    def _place(
        self, found: Bools, rows: I64, places: list[_Replica], segments: Sequence[MasterSegment]
    ) -> Locations:
        count = len(found)
        numbers = {endpoint: n for n, endpoint in enumerate({s.endpoint for s in segments})}
        endpoints = np.array([numbers.get(place.endpoint, -1) for place in places], np.int64)
        try:
            addresses = np.array([place.address for place in places], np.uint64)
            sizes = np.array([place.size for place in places], np.uint64)
        except OverflowError as error:
            raise self._peer.nonsense("GET /batch_query_keys", str(error)) from error
        locations = Locations(
            found,
            np.full(count, -1, np.int64),
            np.zeros(count, np.uint64),
            np.zeros(count, np.uint64),
        )
        # From the last segment and replica to the first, so that the first stands.
        for position in range(len(segments) - 1, -1, -1):
            segment = segments[position]
            base, length = np.uint64(segment.base_address), np.uint64(segment.size_bytes)
            inside = endpoints == numbers[segment.endpoint]
            inside &= (addresses >= base) & (sizes > 0) & (sizes <= length)
            # Unsigned differences wrap where the terms above are false already.
            inside &= addresses - base <= length - sizes
            chosen = np.flatnonzero(inside)[::-1]
            locations.segment[rows[chosen]] = position
            locations.offset[rows[chosen]] = addresses[chosen] - base
            locations.size[rows[chosen]] = sizes[chosen]
        return locations

    def _segment(self, listed: _Segment, question: str) -> MasterSegment:
        base = _BASE_ADDRESS.fullmatch(listed.base_address)
        if base is None or int(base[1], 16) + listed.size_bytes > _ADDRESS_END:
            what = f"segment {listed.segment_id!r} at {listed.base_address!r}, {listed.size_bytes}"
            raise self._peer.nonsense(question, what)
        return MasterSegment(
            segment_id=listed.segment_id,
            client_id=listed.client_id,
            base_address=int(base[1], 16),
            size_bytes=listed.size_bytes,
            endpoint=listed.te_endpoint,
            used_bytes=listed.allocator_used_bytes,
            is_ok=listed.status == "OK",
        )

    def _get(
        self,
        target: str,
        body_bytes_max: int,
        timeout_seconds: float | None = None,
        question: str = "",
    ) -> Answer:
        question = question or f"GET {target}"
        answer = self._peer.ask(
            "GET",
            target,
            question=question,
            timeout_seconds=timeout_seconds or self._timeout_seconds,
            body_bytes_max=body_bytes_max,
        )
        if answer.status >= 500:
            raise self._peer.refused(question, answer)
        if answer.status == 404:
            raise self._peer.outdated(question)
        if answer.status != 200:
            raise self._peer.nonsense(question, f"HTTP {answer.status} {answer.excerpt()}")
        return answer

    def _json(self, answer: Answer, kind: type[AnswerType], question: str) -> AnswerType:
        try:
            return msgspec.json.decode(answer.body, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise self._peer.nonsense(question, f"{error} in {answer.excerpt()}") from error


def split_keys(body: bytearray) -> MasterKeys:
    """The keys of a listing in which each ends with a line feed."""
    heap = np.frombuffer(body, np.uint8)
    ends = np.flatnonzero(heap == _LINE_FEED)
    starts = np.concatenate([np.zeros(1, np.int64), ends[:-1] + 1])[: len(ends)]
    lengths = ends - starts
    usable = (lengths > 0) & (lengths <= KEY_BYTES_MAX)
    commas = np.flatnonzero(heap == _COMMA)
    usable[np.searchsorted(ends, commas)] = False
    usable &= _is_text(body, starts, lengths)
    # The heap without line feeds is that of all keys; the rows that are usable are taken of it.
    every = KeyColumn.from_lengths(heap[heap != _LINE_FEED], lengths)
    keys = every if bool(usable.all()) else every.take(usable)
    return MasterKeys(_distinct(keys), len(ends) - int(usable.sum()))


def _distinct(keys: KeyColumn) -> KeyColumn:
    """Each key once, in order: a part of a key with a line feed may look like another key."""
    hashes, first, group = np.unique(keys.hashes(), return_index=True, return_inverse=True)
    if len(hashes) == len(keys):
        return keys
    rows = np.arange(len(keys))
    repeats = rows[first[group] != rows]
    twice = keys.equal(repeats, keys, first[group[repeats]])
    return keys.take(np.delete(rows, repeats[twice]))


def _is_text(body: bytearray, starts: I64, lengths: I64) -> Bools:
    """Which keys are UTF-8; one look at all of them is nearly always enough."""
    if _decodes(body):
        return np.ones(len(starts), np.bool_)
    pairs = zip(starts.tolist(), (starts + lengths).tolist(), strict=True)
    return np.fromiter((_decodes(body[a:b]) for a, b in pairs), np.bool_, count=len(starts))


def _decodes(data: bytearray) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _questions(keys: KeyColumn) -> Iterable[tuple[int, list[str | None]]]:
    """(first row, keys as text) of as many keys as fit in each request; None cannot be asked."""
    first = 0
    while first < len(keys):
        last = min(first + LOCATE_KEYS, len(keys))
        start = int(keys.offsets[first])
        fits = int(np.searchsorted(keys.offsets, start + _LOCATE_BYTES_MAX, "right")) - 1
        last = max(first + 1, min(last, fits))
        part = KeyColumn(keys.heap, keys.offsets[first : last + 1]).to_list()
        yield first, [_askable(key) for key in part]
        first = last


def is_askable(key: bytes) -> bool:
    """Whether a master can be asked about this key, and lists it as it is."""
    return b"\n" not in key and _askable(key) is not None


def _askable(key: bytes) -> str | None:
    if not key or b"," in key or len(key) > _LOCATE_BYTES_MAX:
        return None
    try:
        return key.decode()
    except UnicodeDecodeError:
        return None
