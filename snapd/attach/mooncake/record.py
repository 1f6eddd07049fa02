"""`SegmentRecord`: what a file in shared memory says of itself, in a trailer that no store mounts.

The trailer has two halves. A record is written to the half that does not hold the newest one, so a
process that is killed while it writes leaves the one before.

    half:  magic 8 | format version u32 | payload length u32 | sequence u64 | checksum u64 | payload

The checksum is XXH3-64 of everything else up to the payload's end; the payload is MessagePack.
"""

from __future__ import annotations

import struct
from typing import Annotated

import msgspec
import xxhash

from snapd.errors import CorruptError, NewerFormatError

RECORD_VERSION = 1
HALF_BYTES = 32 << 10
TRAILER_BYTES = 2 * HALF_BYTES
_MAGIC = b"SNAPMOON"
_HEAD = struct.Struct("<8sIIQ")
_CHECKSUM = struct.Struct("<Q")
PAYLOAD_BYTES_MAX = HALF_BYTES - _HEAD.size - _CHECKSUM.size
_SEQUENCE_END = 1 << 64

_Text = Annotated[str, msgspec.Meta(max_length=512)]
_Names = Annotated[tuple[_Text, ...], msgspec.Meta(max_length=128)]
_Counts = Annotated[tuple[Annotated[int, msgspec.Meta(ge=0)], ...], msgspec.Meta(max_length=128)]


class SegmentRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Which segments of which store a file was mounted as, and in which life of the master."""

    version: int = RECORD_VERSION
    store_url: _Text
    """The store service that mounted it."""
    segment_ids: _Names
    """The segments it became, in their order in the file; empty before it is mounted."""
    base_addresses: _Counts
    """Of each segment, in the address space of the store service."""
    sizes: _Counts
    """Of each segment, in bytes."""
    client_id: _Text
    endpoint: _Text
    life_id: Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
    """Ours for the life of the master."""
    counters: Annotated[dict[_Text, int], msgspec.Meta(max_length=128)]
    """The master's counters at the last look."""
    since: Annotated[dict[_Text, int], msgspec.Meta(max_length=128)] = {}
    """The master's counters when this life was first seen."""
    is_whole: bool = False
    """Whether everything that lives before this one lost was put back."""
    mounted_at: float
    """Seconds of the epoch; for people."""


def encode_half(record: SegmentRecord, sequence: int) -> bytes:
    """One half of a trailer. Raises ValueError if the record does not fit."""
    payload = msgspec.msgpack.encode(record)
    if len(payload) > PAYLOAD_BYTES_MAX:
        raise ValueError(f"a record of {len(payload)} bytes, where {PAYLOAD_BYTES_MAX} fit")
    head = _HEAD.pack(_MAGIC, record.version, len(payload), sequence)
    return head + _CHECKSUM.pack(xxhash.xxh3_64_intdigest(head + payload)) + payload


def decode_trailer(trailer: bytes) -> tuple[SegmentRecord | None, int]:
    """The newest record and its sequence; (None, 0) where none was ever written.

    Raises CorruptError if no half is whole and the trailer is not blank, NewerFormatError if the
    newest whole record is of a later version.
    """
    if len(trailer) != TRAILER_BYTES:
        raise CorruptError(f"a trailer of {len(trailer)} bytes, not {TRAILER_BYTES}")
    halves = [_open_half(trailer[at : at + HALF_BYTES]) for at in (0, HALF_BYTES)]
    whole = [half for half in halves if half is not None]
    if not whole:
        if any(trailer):
            raise CorruptError("the trailer is damaged")
        return None, 0
    sequence, version, payload = max(whole)
    if version > RECORD_VERSION:
        raise NewerFormatError(f"the trailer is of version {version}, this snapd reads up to 1")
    try:
        record = msgspec.msgpack.decode(payload, type=SegmentRecord)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptError(f"the trailer's record: {error}") from error
    if not len(record.segment_ids) == len(record.base_addresses) == len(record.sizes):
        raise CorruptError("the trailer's record has columns of different lengths")
    return record, sequence


def _open_half(half: bytes) -> tuple[int, int, bytes] | None:
    """(sequence, version, payload) of a half whose checksum is right."""
    magic, version, length, sequence = _HEAD.unpack_from(half)
    if magic != _MAGIC or length > PAYLOAD_BYTES_MAX or not 0 < sequence < _SEQUENCE_END:
        return None
    start = _HEAD.size + _CHECKSUM.size
    payload = half[start : start + length]
    (expected,) = _CHECKSUM.unpack_from(half, _HEAD.size)
    if xxhash.xxh3_64_intdigest(half[: _HEAD.size] + payload) != expected:
        return None
    return sequence, version, payload
