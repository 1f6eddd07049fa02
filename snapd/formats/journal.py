"""Records of a journal file: what must be durable before the next pack is sealed.

A file is the common 4 KiB header and then records, each with its length and checksum. A crash may
tear the tail; a failing medium may damage the middle. Because removed must stay removed, reading
goes on behind a bad record and takes every later one that verifies: order means nothing to them.
The checksum is seeded with the repository's id, so that records of another repository, or old bytes
that a file system left in a torn tail, never verify.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
import xxhash

from snapd.blocks import KEY_BYTES_MAX
from snapd.errors import CorruptError
from snapd.formats.layout import RecordField, encode_record, record_dtype
from snapd.formats.removals import COLUMN_DTYPES, Removals, check_keys
from snapd.formats.tables import INCARNATION_DTYPE, Incarnation, incarnation_column

RECORD_MAGIC = b"SNAPRECD"
RECORD_ALIGNMENT = 8
"""Records start at multiples of this, so that the next one is found behind a bad one."""
RECORD_ROWS_MAX = 65_536
"""Most removals in one record."""
PAYLOAD_BYTES_MAX = RECORD_ROWS_MAX * (KEY_BYTES_MAX + 32)


class RecordKind(IntEnum):
    """What a record says. Kinds that are not known are counted, and their file is kept."""

    REMOVED = 1
    REMOVE_ALL = 2
    INCARNATION = 3


RECORD_FIELDS = (
    RecordField("magic", "8u1", "SNAPRECD"),
    RecordField("checksum", "<u8", "XXH3-64, seeded, of all bytes behind this field"),
    RecordField("number", "<u8", "0, 1, 2, ... within the file"),
    RecordField("payload_bytes", "<u4", "length of the payload, without padding to 8"),
    RecordField("rows", "<u4", "removals or incarnations in the payload; 0 for REMOVE_ALL"),
    RecordField("kind", "<u2", "1 removed, 2 remove all, 3 incarnation"),
    RecordField("reserved", "6u1", "zero"),
)
RECORD_DTYPE = record_dtype(RECORD_FIELDS, 40)

_CHECKED_FROM = 16


@dataclass(slots=True)
class JournalContents:
    """What a journal file says, and what it could not say."""

    removals: list[Removals] = field(default_factory=list)
    epoch: int = 0
    """Highest epoch that a remove-all began."""
    incarnations: list[Incarnation] = field(default_factory=list)
    records: int = 0
    damaged: int = 0
    """Bad stretches with good records behind them: damage, not a torn tail."""
    torn_bytes: int = 0
    """Bytes behind the last good record: a tail that a crash tore."""
    unknown: int = 0
    """Records of a kind that this version does not know."""


def encode_removed(removals: Removals, number: int, repository_id: bytes) -> bytes:
    """A record of up to `RECORD_ROWS_MAX` removals."""
    keys = removals.keys
    parts = [getattr(removals, name).astype(dtype) for name, dtype in COLUMN_DTYPES.items()]
    payload = b"".join(
        [
            *(part.tobytes() for part in parts),
            keys.lengths.astype("<u2").tobytes(),
            keys.heap[keys.offsets[0] : keys.offsets[-1]].tobytes(),
        ]
    )
    return _encode(RecordKind.REMOVED, payload, len(removals), number, repository_id)


def encode_remove_all(epoch: int, number: int, repository_id: bytes) -> bytes:
    """A record that `epoch` has begun: every block of an earlier one is gone."""
    payload = epoch.to_bytes(4, "little")
    return _encode(RecordKind.REMOVE_ALL, payload, 0, number, repository_id)


def encode_incarnation(incarnation: Incarnation, number: int, repository_id: bytes) -> bytes:
    """A record of a segment that the repository has not met before."""
    payload = incarnation_column([incarnation]).tobytes()
    return _encode(RecordKind.INCARNATION, payload, 1, number, repository_id)


def decode_records(raw: bytes, repository_id: bytes) -> JournalContents:
    """All records in the bytes behind a journal's header that verify, with what was lost."""
    contents = JournalContents()
    view = memoryview(raw)
    position = 0
    while position < len(raw):
        end = _take_record(view, position, repository_id, contents)
        if end is None:
            following = _next_record(view, position, repository_id)
            if following is None:
                contents.torn_bytes = len(raw) - position
                break
            contents.damaged += 1
            position = following
        else:
            position = end
    return contents


def _encode(
    kind: RecordKind, payload: bytes, rows: int, number: int, repository_id: bytes
) -> bytes:
    head = encode_record(
        RECORD_DTYPE,
        magic=RECORD_MAGIC,
        number=number,
        payload_bytes=len(payload),
        rows=rows,
        kind=kind,
    )
    body = head[_CHECKED_FROM:] + payload + bytes(-len(payload) % RECORD_ALIGNMENT)
    checksum = xxhash.xxh3_64_intdigest(body, seed=_seed(repository_id))
    return RECORD_MAGIC + checksum.to_bytes(8, "little") + body


def _seed(repository_id: bytes) -> int:
    return int.from_bytes(repository_id[:8], "little")


def _record_end(view: memoryview, position: int, repository_id: bytes) -> int | None:
    """Where the record at `position` ends, if there is one that verifies."""
    if view.nbytes - position < RECORD_DTYPE.itemsize:
        return None
    if view[position : position + 8] != RECORD_MAGIC:
        return None
    head = np.frombuffer(view[position : position + RECORD_DTYPE.itemsize], RECORD_DTYPE)[0]
    payload_bytes = int(head["payload_bytes"])
    end = position + RECORD_DTYPE.itemsize + payload_bytes + -payload_bytes % RECORD_ALIGNMENT
    if payload_bytes > PAYLOAD_BYTES_MAX or end > view.nbytes:
        return None
    body = view[position + _CHECKED_FROM : end]
    good = xxhash.xxh3_64_intdigest(body, seed=_seed(repository_id)) == int(head["checksum"])
    return end if good else None


def _next_record(view: memoryview, position: int, repository_id: bytes) -> int | None:
    """Where the next record behind `position` starts, if there is one that verifies."""
    whole = (view.nbytes // RECORD_ALIGNMENT) * RECORD_ALIGNMENT
    words = np.frombuffer(view[:whole], "<u8")
    magic = np.frombuffer(RECORD_MAGIC, "<u8")[0]
    for word in np.flatnonzero(words == magic):
        start = int(word) * RECORD_ALIGNMENT
        if start > position and _record_end(view, start, repository_id) is not None:
            return start
    return None


def _take_record(
    view: memoryview, position: int, repository_id: bytes, contents: JournalContents
) -> int | None:
    """Add the record at `position` to `contents` and return its end; None if it is bad."""
    end = _record_end(view, position, repository_id)
    if end is None:
        return None
    first = position + RECORD_DTYPE.itemsize
    head = np.frombuffer(view[position:first], RECORD_DTYPE)[0]
    payload = bytes(view[first : first + int(head["payload_bytes"])])
    rows, kind = int(head["rows"]), int(head["kind"])
    try:
        if kind == RecordKind.REMOVED:
            contents.removals.append(_decode_removed(payload, rows))
        elif kind == RecordKind.REMOVE_ALL:
            contents.epoch = max(contents.epoch, _decode_epoch(payload))
        elif kind == RecordKind.INCARNATION:
            contents.incarnations.append(_decode_incarnation(payload))
        else:
            contents.unknown += 1
    except CorruptError:
        return None
    contents.records += 1
    return end


def _decode_removed(payload: bytes, rows: int) -> Removals:
    width = sum(dtype.itemsize for dtype in COLUMN_DTYPES.values()) + 2
    if rows > RECORD_ROWS_MAX or len(payload) < rows * width:
        raise CorruptError(f"a record of {len(payload)} bytes has no {rows} removals")
    columns: dict[str, np.ndarray] = {}
    start = 0
    for name, dtype in COLUMN_DTYPES.items():
        columns[name] = np.frombuffer(payload, dtype, rows, start)
        start += rows * dtype.itemsize
    lengths = np.frombuffer(payload, "<u2", rows, start)
    heap = np.frombuffer(payload, np.uint8, offset=rows * width)
    return Removals(check_keys(heap, lengths), **columns)


def _decode_epoch(payload: bytes) -> int:
    if len(payload) != 4:
        raise CorruptError("a remove-all record has no epoch")
    return int.from_bytes(payload, "little")


def _decode_incarnation(payload: bytes) -> Incarnation:
    if len(payload) != INCARNATION_DTYPE.itemsize:
        raise CorruptError("an incarnation record has another size")
    one = np.frombuffer(payload, INCARNATION_DTYPE)[0]
    return Incarnation(int(one["ordinal"]), one["segment_id"].tobytes(), int(one["epoch_base"]))
