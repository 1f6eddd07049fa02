"""Records of a journal file: what must be durable before the next pack is sealed.

A file is the common 4 KiB header and then batches of records, each record with its length and
checksum. What is synced together is a batch, and a batch is in the file twice: its records, zeros
up to the next page, the same records again, zeros up to the next page. No page holds bytes of two
copies, so one bad page, whichever it is, costs nothing.

A crash may tear the tail; a failing medium may damage the middle. Because removed must stay
removed, reading goes on behind what is bad and takes every record that verifies, from either copy:
order means nothing to them. A record says its number within the file and its place within its
batch, which tells damage from a torn tail: a batch that is followed by another one was durable, so
whatever of it is not there now was lost later.

The checksum is seeded with the repository's id, so that records of another repository, or old bytes
that a file system left in a torn tail, never verify.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import xxhash

from snapd.blocks import KEY_BYTES_MAX
from snapd.errors import CorruptError
from snapd.formats.layout import RecordField, encode_record, record_dtype
from snapd.formats.removals import COLUMN_DTYPES, Removals, check_keys
from snapd.formats.sealed import PAGE_BYTES
from snapd.formats.tables import (
    INCARNATION_DTYPE,
    Incarnation,
    check_counter,
    incarnation_column,
)

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
    RecordField("reserved", "2u1", "zero"),
    RecordField(
        "place", "<u4", "1, 2, ... within its batch, which is there twice; 0 if it is there once"
    ),
)
RECORD_DTYPE = record_dtype(RECORD_FIELDS, 40)

_CHECKED_FROM = 16
_WASTED_TIMES_MAX = 64
"""How often the length of a file is hashed at most for records that do not verify."""


class RecordPlace(NamedTuple):
    """Where a record is in its file."""

    number: int
    """0, 1, 2, ... within the file."""
    place: int
    """1, 2, ... within its batch; 0 where a record is written once."""


@dataclass(slots=True)
class JournalContents:
    """What a journal file says, and what it could not say."""

    removals: list[Removals] = field(default_factory=list)
    epoch: int = 0
    """Highest epoch that a remove-all began."""
    incarnations: list[Incarnation] = field(default_factory=list)
    records: int = 0
    """Different records that verify."""
    durable: int = 0
    """Records that were durable for certain: all in front of the last batch."""
    copies_damaged: int = 0
    """Records with one copy left of the two that were durable: nothing is lost."""
    lost: int = 0
    """Records that were durable and of which no copy is left."""
    stretches_damaged: int = 0
    """Bad stretches before records that are there once: each lost what it held."""
    torn_bytes: int = 0
    """Bytes behind the last good record: padding, or a tail that a crash tore."""
    unknown: int = 0
    """Records of a kind that this version does not know."""


def encode_removed(removals: Removals, at: RecordPlace, repository_id: bytes) -> bytes:
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
    return _encode(RecordKind.REMOVED, payload, len(removals), at, repository_id)


def encode_remove_all(epoch: int, at: RecordPlace, repository_id: bytes) -> bytes:
    """A record that `epoch` has begun: every block of an earlier one is gone."""
    payload = epoch.to_bytes(4, "little")
    return _encode(RecordKind.REMOVE_ALL, payload, 0, at, repository_id)


def encode_incarnation(incarnation: Incarnation, at: RecordPlace, repository_id: bytes) -> bytes:
    """A record of a segment that the repository has not met before."""
    payload = incarnation_column([incarnation]).tobytes()
    return _encode(RecordKind.INCARNATION, payload, 1, at, repository_id)


def encode_batch(records: Sequence[bytes]) -> list[bytes]:
    """The bytes of a batch, to be written at the start of a page: its records, twice."""
    copy = [*records, bytes(-sum(map(len, records)) % PAGE_BYTES)]
    return [*copy, *copy]


def decode_records(raw: bytes | memoryview, repository_id: bytes) -> JournalContents:
    """All records in the bytes behind a journal's header that verify, with what was lost.

    What looks like a record and does not verify was hashed for nothing. So much of that that only
    a made-up file has it ends the search: the rest counts as damage.
    """
    contents = JournalContents()
    view = memoryview(raw)
    seen: dict[tuple[int, int], _Seen] = {}
    end = wasted = 0
    for start in _starts(view):
        if start < end:
            continue
        head = _verified_head(view, start, repository_id)
        if head is None:
            wasted += _claimed_bytes(view, start)
            if wasted > _WASTED_TIMES_MAX * view.nbytes:
                contents.stretches_damaged += 1
                break
            continue
        # Only what verifies moves on: a record within the key of another is passed over.
        place, number = int(head["place"]), int(head["number"])
        known = seen.setdefault((number, int(head["checksum"])), _Seen(number, place))
        known.copies += 1
        if known.copies == 1 and not _take_record(view, start, head, contents):
            del seen[number, int(head["checksum"])]
            continue
        contents.stretches_damaged += start > end and not place
        end = _end_of(start, head)
    contents.torn_bytes = len(raw) - end
    contents.records = len(seen)
    _count_lost(list(seen.values()), contents)
    return contents


@dataclass(slots=True)
class _Seen:
    """A record that verifies."""

    number: int
    place: int
    copies: int = 0


def _count_lost(seen: list[_Seen], contents: JournalContents) -> None:
    """Tell damage from a torn tail, by the numbers of the records that are there twice by rights.

    Batches are synced one after another, and a file is given up at the first failure: when there is
    a record of a batch, everything in front of that batch was durable.
    """
    double = [one for one in seen if one.place]
    contents.durable = durable = max([0, *(one.number - one.place + 1 for one in double)])
    copies: Counter[int] = Counter()
    for one in double:
        if one.number < durable:
            copies[one.number] += one.copies
    contents.copies_damaged = sum(count < 2 for count in copies.values())
    contents.lost = durable - len(copies)


def _encode(
    kind: RecordKind, payload: bytes, rows: int, at: RecordPlace, repository_id: bytes
) -> bytes:
    head = encode_record(
        RECORD_DTYPE,
        magic=RECORD_MAGIC,
        number=at.number,
        payload_bytes=len(payload),
        rows=rows,
        kind=kind,
        place=at.place,
    )
    body = head[_CHECKED_FROM:] + payload + bytes(-len(payload) % RECORD_ALIGNMENT)
    checksum = xxhash.xxh3_64_intdigest(body, seed=_seed(repository_id))
    return RECORD_MAGIC + checksum.to_bytes(8, "little") + body


def _seed(repository_id: bytes) -> int:
    return int.from_bytes(repository_id[:8], "little")


def _starts(view: memoryview) -> Iterator[int]:
    """Where records may start, rising."""
    whole = (view.nbytes // RECORD_ALIGNMENT) * RECORD_ALIGNMENT
    words = np.frombuffer(view[:whole], "<u8")
    magic = np.frombuffer(RECORD_MAGIC, "<u8")[0]
    for word in np.flatnonzero(words == magic):
        yield int(word) * RECORD_ALIGNMENT


def _end_of(start: int, head: np.void) -> int:
    payload_bytes = int(head["payload_bytes"])
    return start + RECORD_DTYPE.itemsize + payload_bytes + -payload_bytes % RECORD_ALIGNMENT


def _claimed_bytes(view: memoryview, start: int) -> int:
    """How long the record at `start` says that it is, as far as bytes are there."""
    left = view.nbytes - start
    if left < RECORD_DTYPE.itemsize:
        return 0
    head = np.frombuffer(view[start : start + RECORD_DTYPE.itemsize], RECORD_DTYPE)[0]
    payload_bytes = int(head["payload_bytes"])
    return payload_bytes if payload_bytes <= min(left, PAYLOAD_BYTES_MAX) else 0


def _verified_head(view: memoryview, start: int, repository_id: bytes) -> np.void | None:
    """The head of the record at `start`, if there is one that verifies."""
    if view.nbytes - start < RECORD_DTYPE.itemsize:
        return None
    head: np.void = np.frombuffer(view[start : start + RECORD_DTYPE.itemsize], RECORD_DTYPE)[0]
    end = _end_of(start, head)
    if int(head["payload_bytes"]) > PAYLOAD_BYTES_MAX or end > view.nbytes:
        return None
    body = view[start + _CHECKED_FROM : end]
    good = xxhash.xxh3_64_intdigest(body, seed=_seed(repository_id)) == int(head["checksum"])
    return head if good else None


def _take_record(view: memoryview, start: int, head: np.void, contents: JournalContents) -> bool:
    """Add a verified record to `contents`; False if it makes no sense."""
    first = start + RECORD_DTYPE.itemsize
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
        return False
    return True


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
    for name in ("epoch", "incarnation"):
        check_counter(name, int(columns[name].max(initial=0)))
    return Removals(check_keys(heap, lengths), **columns)


def _decode_epoch(payload: bytes) -> int:
    if len(payload) != 4:
        raise CorruptError("a remove-all record has no epoch")
    epoch = int.from_bytes(payload, "little")
    check_counter("epoch", epoch)
    return epoch


def _decode_incarnation(payload: bytes) -> Incarnation:
    if len(payload) != INCARNATION_DTYPE.itemsize:
        raise CorruptError("an incarnation record has another size")
    one = np.frombuffer(payload, INCARNATION_DTYPE)[0]
    check_counter("incarnation", int(one["ordinal"]))
    check_counter("epoch base", int(one["epoch_base"]))
    return Incarnation(int(one["ordinal"]), one["segment_id"].tobytes(), int(one["epoch_base"]))
