"""Layout of a segment: the shared-memory file that holds blocks. The one home of its bytes.

Regions in order, each 4 KiB-aligned: header page | slots | heat | two unused ones | key heap |
data. All numbers are little-endian. Everything here is pure: arrays and bytes
in, arrays, verified types or typed errors out.

What has to survive a SIGKILL between any two instructions is built from aligned 8-byte stores:

- The header's geometry is written once, before the file is used, and covered by a checksum.
- The header's mutable state exists twice, each copy with its own checksum; a writer renews one
  copy after the other, so that at least one is whole, and the one of the higher generation counts.
- Beside them, two tallies say how many slots are reserved and how many hold a removal, so that an
  adoption knows what a damaged slot cannot have been. Each is one word that checks itself.
- A slot's state, pin and checksum are its last 8 bytes (`SLOT_SEAL_WORD`). A slot is filled with
  that word still zero and then sealed by storing it; it is freed by zeroing that word first.
  A slot whose last word is zero is therefore free, whatever the other 56 bytes hold.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from snapd.blocks import Pin
from snapd.blocks.index import BUCKET_ENTRIES, bucket_count
from snapd.blocks.keys import I64, U64, Bools
from snapd.errors import CorruptError, NewerFormatError, SegmentError
from snapd.formats.layout import RecordField, record_dtype

U32 = npt.NDArray[np.uint32]
Slots = npt.NDArray[np.void]
"""Records of `SLOT_DTYPE`, [n]."""

SEGMENT_MAGIC = 0x31_54_47_53_44_50_4E_53
"""ASCII "SNPDSGT1", little-endian."""

LAYOUT_VERSION = 1
HEADER_BYTES = 4096
REGION_ALIGNMENT = 4096
DATA_UNIT_BYTES = 4096
"""Extents in the data area are counted in these, so that a disk read lands in its final place."""
KEY_UNIT_BYTES = 32
"""Extents in the key heap are counted in these."""
KEY_BYTES_PER_SLOT = 128
"""Key heap bytes planned for each slot."""
STATE_OFFSETS = (1024, 2048)
"""Where in the header page the two copies of the mutable state lie: different cache lines."""
TALLY_OFFSET = 3072
"""Where in the header page the tallies lie."""
STORE_LOCK_BYTE = 0
"""The store process holds an open-file-description lock on this byte of the file."""
WRITER_LOCK_BASE = 1 << 60
"""Byte `WRITER_LOCK_BASE + writer` of the file is a writer's lock; it lies beyond any file end."""


SLOTS_MAX = 1 << 30
"""Most slots that a header may say."""

PREAMBLE_FIELDS = (
    RecordField("magic", "<u8", "SNPDSGT1; the same in every version"),
    RecordField("layout_version", "<u4", "version of everything after these 16 bytes"),
    RecordField("preamble_checksum", "<u4", "low half of XXH3-64 of the 12 bytes before"),
)
"""The first 16 bytes, which no later version changes: they tell a newer layout from a bad one."""

GEOMETRY_FIELDS = (
    RecordField(
        "segment_id", "16u1", "random, made with the segment: the incarnation of its blocks"
    ),
    RecordField("slot_count", "<u8", "slots in the table"),
    RecordField("slots_offset", "<u8", "bytes from the start of the file"),
    RecordField("heat_offset", "<u8", "bytes from the start of the file"),
    RecordField("index_offset", "<u8", "unused: an older version's key index, uint64 [buckets, 8]"),
    RecordField("index_buckets", "<u8", "buckets of that index, a power of two"),
    RecordField("displaced_offset", "<u8", "unused: its displaced counts, uint32 [buckets]"),
    RecordField("key_heap_offset", "<u8", "bytes from the start of the file"),
    RecordField("key_heap_bytes", "<u8", "bytes, in units of 32"),
    RecordField("data_offset", "<u8", "bytes from the start of the file"),
    RecordField("data_bytes", "<u8", "bytes, in units of 4096"),
    RecordField("file_bytes", "<u8", "length of the file"),
    RecordField("writer_lock_base", "<u8", "file byte of the lock of writer 0"),
)
"""What does not change during a segment's life."""

HEADER_FIELDS = (
    *PREAMBLE_FIELDS,
    *GEOMETRY_FIELDS,
    RecordField("checksum", "<u8", "XXH3-64 of all bytes before"),
)
HEADER_DTYPE = record_dtype(HEADER_FIELDS, 136)

STATE_FIELDS = (
    RecordField(
        "generation", "<u8", "rises with every change; the valid copy with the higher one counts"
    ),
    RecordField("sequence_ceiling", "<u8", "every sequence handed out so far is below this"),
    RecordField("data_allocated_bytes", "<u8", "so much of the data area has memory behind it"),
    RecordField("boot_id", "16u1", "random, of the store process that wrote this: one life of it"),
    RecordField("epoch", "<u4", "number of remove-alls; slots of lower epochs are dead"),
    RecordField("writer_ceiling", "<u4", "every writer number handed out so far is below this"),
    RecordField(
        "in_doubt", "<u8", "1: free space may belong to a reservation whose slot was damaged"
    ),
    RecordField("checksum", "<u8", "XXH3-64 of all bytes before"),
)
STATE_DTYPE = record_dtype(STATE_FIELDS, 64)

TALLY_FIELDS = (
    RecordField("unfinished", "<u8", "slots in state writing, or more"),
    RecordField("removed", "<u8", "slots in state removed, or more"),
)
TALLY_DTYPE = record_dtype(TALLY_FIELDS, 16)
"""Each rises before the slots change and falls after them, so a kill leaves it too high, never too
low. The count is a word's lower half; its upper half is the complement of the count and of the
first 4 bytes of the boot id. A word whose halves do not match is unknown."""

SLOT_FIELDS = (
    RecordField(
        "sequence", "<u8", "version of the block; rises over the segment's life, never reused"
    ),
    RecordField("key_hash", "<u8", "XXH3-64 of the key: an index, never a proof"),
    RecordField("size", "<u8", "bytes of the block"),
    RecordField("checksum", "<u8", "XXH3-64 of the block's bytes; 0 while it is being written"),
    RecordField(
        "extent", "<u4", "start in the data area, in units of 4096 bytes (of no meaning when cold)"
    ),
    RecordField("key_offset", "<u4", "start in the key heap, in units of 32 bytes"),
    RecordField("epoch", "<u4", "epoch that the block belongs to"),
    RecordField("group", "<u4", "group of the block; 0 is none"),
    RecordField("writer", "<u4", "writer that reserved the slot"),
    RecordField("key_length", "<u2", "bytes of the key, 1 to 1024"),
    RecordField("fingerprint", "<u2", "16 bits of its label's number, to count; 0 is unlabelled"),
    RecordField("state", "u1", "0 free, 1 writing, 2 published, 3 cold, 4 removed"),
    RecordField("pin", "u1", "0 none, 1 soft, 2 hard"),
    RecordField("reserved", "<u2", "zero"),
    RecordField(
        "slot_checksum", "<u4", "multilinear hash of the 60 bytes before (`slot_checksums`)"
    ),
)
SLOT_DTYPE = record_dtype(SLOT_FIELDS, 64)
SLOT_WORDS = 8
SLOT_SEQUENCE_WORD = 0
SLOT_CHECKSUM_WORD = 3
SLOT_SEAL_WORD = 7
"""The 8 bytes with state, pin and slot checksum, stored last and at once."""

HEAT_FIELDS = (
    RecordField("access_count", "<f4", "reads, decayed to the time in last_access"),
    RecordField("last_access", "<u4", "seconds since 1970-01-01 UTC of the last read or put"),
    RecordField("parent", "<u8", "key hash of the page before this one in its chain; 0 if unknown"),
)
HEAT_DTYPE = record_dtype(HEAT_FIELDS, 16)
"""Advisory and without a checksum: a wrong value costs an order, never a byte."""

if SLOT_DTYPE.fields is None or SLOT_DTYPE.fields["state"][1] != 8 * SLOT_SEAL_WORD:
    raise AssertionError("the state must begin the slot's last word")


class SlotState(IntEnum):
    """What a slot holds."""

    FREE = 0
    WRITING = 1
    """Reserved: its writer may be copying."""
    PUBLISHED = 2
    COLD = 3
    """Key, size and checksum are known; the bytes are on disk only."""
    REMOVED = 4
    """A removal that no daemon has made durable yet."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """Where everything is. Only `plan` and `decode_header` make one, so it has been checked."""

    segment_id: bytes
    slot_count: int
    slots_offset: int
    heat_offset: int
    index_offset: int
    index_buckets: int
    displaced_offset: int
    key_heap_offset: int
    key_heap_bytes: int
    data_offset: int
    data_bytes: int
    file_bytes: int
    writer_lock_base: int = WRITER_LOCK_BASE

    @classmethod
    def plan(cls, segment_id: bytes, data_bytes: int, slot_count: int) -> Geometry:
        """A layout for this much data and this many slots, both rounded up to whole units.

        Raises SegmentError if one of them is more than a slot's fields can name.
        """
        data_bytes = _align(data_bytes, DATA_UNIT_BYTES)
        key_heap_bytes = _align(slot_count * KEY_BYTES_PER_SLOT, REGION_ALIGNMENT)
        buckets = bucket_count(slot_count)
        limits = (data_bytes // DATA_UNIT_BYTES, key_heap_bytes // KEY_UNIT_BYTES, slot_count + 1)
        if max(limits) > 0xFFFFFFFF or data_bytes < 1 or slot_count < 1:
            raise SegmentError(
                f"a segment of {data_bytes} bytes and {slot_count} blocks cannot be laid out: "
                "set global_segment_size to at most 16 TiB and segment_blocks_max to at most 2^30"
            )
        slots = HEADER_BYTES
        heat = _align(slots + slot_count * SLOT_DTYPE.itemsize)
        index = _align(heat + slot_count * HEAT_DTYPE.itemsize)
        displaced = _align(index + buckets * BUCKET_ENTRIES * 8)
        key_heap = _align(displaced + buckets * 4)
        data = _align(key_heap + key_heap_bytes)
        return cls(
            segment_id=segment_id,
            slot_count=slot_count,
            slots_offset=slots,
            heat_offset=heat,
            index_offset=index,
            index_buckets=buckets,
            displaced_offset=displaced,
            key_heap_offset=key_heap,
            key_heap_bytes=key_heap_bytes,
            data_offset=data,
            data_bytes=data_bytes,
            file_bytes=data + data_bytes,
        )

    @property
    def data_units(self) -> int:
        """Length of the data area in units of `DATA_UNIT_BYTES`."""
        return self.data_bytes // DATA_UNIT_BYTES

    @property
    def key_units(self) -> int:
        """Length of the key heap in units of `KEY_UNIT_BYTES`."""
        return self.key_heap_bytes // KEY_UNIT_BYTES


@dataclass(frozen=True, slots=True)
class HeaderState:
    """The header's mutable part."""

    generation: int
    sequence_ceiling: int
    data_allocated_bytes: int
    boot_id: bytes
    epoch: int
    writer_ceiling: int
    in_doubt: int = 0


def _align(value: int, unit: int = REGION_ALIGNMENT) -> int:
    return -(-value // unit) * unit


def encode_header(geometry: Geometry, layout_version: int = LAYOUT_VERSION) -> bytes:
    """The header page without state: `HEADER_BYTES` bytes."""
    record = np.zeros(1, HEADER_DTYPE)
    record.view(np.uint8)[:16] = np.frombuffer(encode_preamble(layout_version), np.uint8)
    for field in fields(geometry):
        value = getattr(geometry, field.name)
        record[field.name] = np.frombuffer(value, np.uint8) if isinstance(value, bytes) else value
    record["checksum"] = xxhash.xxh3_64_intdigest(record.tobytes()[:-8])
    return record.tobytes().ljust(HEADER_BYTES, b"\0")


def decode_header(page: bytes) -> Geometry:
    """The verified geometry in a header page.

    Raises NewerFormatError for a newer layout, CorruptError for anything else that does not fit.
    """
    if len(page) < HEADER_BYTES:
        raise CorruptError(f"segment header is {len(page)} bytes, not {HEADER_BYTES}")
    record = np.frombuffer(page, HEADER_DTYPE, 1)[0]
    if int(record["magic"]) != SEGMENT_MAGIC:
        raise CorruptError(f"segment header starts with {int(record['magic']):#018x}: no segment")
    if int(record["preamble_checksum"]) != _preamble_checksum(page):
        raise CorruptError("segment header: checksum of its first 16 bytes is wrong")
    version = int(record["layout_version"])
    if version > LAYOUT_VERSION:
        raise NewerFormatError(
            f"segment has layout version {version}, this snapd knows {LAYOUT_VERSION}: "
            "start a newer snapd, or remove the segment to give up what it holds"
        )
    end = HEADER_DTYPE.itemsize
    if int(record["checksum"]) != xxhash.xxh3_64_intdigest(page[: end - 8]):
        raise CorruptError("segment header: checksum is wrong")
    geometry = Geometry(**{field.name: _value(record[field.name]) for field in fields(Geometry)})
    _check_geometry(geometry, version)
    return geometry


def _preamble_checksum(page: bytes) -> int:
    return int(xxhash.xxh3_64_intdigest(page[:12])) & 0xFFFFFFFF


def _check_geometry(geometry: Geometry, version: int) -> None:
    """Raises CorruptError unless the regions follow each other, aligned, inside the file."""
    buckets = geometry.index_buckets
    regions = (
        (geometry.slots_offset, geometry.slot_count * SLOT_DTYPE.itemsize),
        (geometry.heat_offset, geometry.slot_count * HEAT_DTYPE.itemsize),
        (geometry.index_offset, buckets * BUCKET_ENTRIES * 8),
        (geometry.displaced_offset, buckets * 4),
        (geometry.key_heap_offset, geometry.key_heap_bytes),
        (geometry.data_offset, geometry.data_bytes),
        (geometry.file_bytes, 0),
    )
    end = HEADER_BYTES
    for offset, size in regions:
        if offset % REGION_ALIGNMENT or offset < end:
            raise CorruptError(f"segment header: a region at {offset} overlaps or is not aligned")
        end = offset + size
    if version < 1 or geometry.slot_count < 1 or buckets & (buckets - 1) or buckets < 1:
        raise CorruptError("segment header: version, slots or buckets are out of range")
    for size, unit in (
        (geometry.key_heap_bytes, KEY_UNIT_BYTES),
        (geometry.data_bytes, DATA_UNIT_BYTES),
    ):
        if size % unit or not 1 <= size // unit <= 0xFFFFFFFF:
            raise CorruptError(f"segment header: {size} bytes are not units of {unit}")
    if geometry.slot_count > SLOTS_MAX:
        raise CorruptError(f"segment header: {geometry.slot_count} slots are over {SLOTS_MAX}")
    if not geometry.file_bytes <= geometry.writer_lock_base <= WRITER_LOCK_BASE:
        raise CorruptError("segment header: the locks of writers are not behind the file")
    if BUCKET_ENTRIES * buckets < geometry.slot_count:
        raise CorruptError("segment header: the key index is smaller than the slot table")


def encode_state(state: HeaderState) -> bytes:
    """One copy of the mutable state, 64 bytes."""
    record = np.zeros(1, STATE_DTYPE)
    for field in fields(state):
        value = getattr(state, field.name)
        record[field.name] = np.frombuffer(value, np.uint8) if isinstance(value, bytes) else value
    record["checksum"] = xxhash.xxh3_64_intdigest(record.tobytes()[:-8])
    return record.tobytes()


def decode_state(page: bytes) -> HeaderState:
    """The newest valid copy of the state in a header page. Raises CorruptError if none is valid."""
    valid = [state for offset in STATE_OFFSETS if (state := _decode_copy(page, offset)) is not None]
    if not valid:
        raise CorruptError("segment header: both copies of its state have wrong checksums")
    return max(valid, key=lambda state: state.generation)


_COUNTERS_MAX = {
    "generation": 1 << 63,
    "sequence_ceiling": 1 << 63,
    "epoch": 1 << 29,
    "writer_ceiling": 1 << 31,
}
"""Nobody counts so far, and from here on up nothing overflows, in packs neither."""


def _decode_copy(page: bytes, offset: int) -> HeaderState | None:
    raw = page[offset : offset + STATE_DTYPE.itemsize]
    record = np.frombuffer(raw, STATE_DTYPE, 1)[0]
    if int(record["checksum"]) != xxhash.xxh3_64_intdigest(raw[:-8]):
        return None
    if any(int(record[name]) > limit for name, limit in _COUNTERS_MAX.items()):
        return None
    return HeaderState(**{field.name: _value(record[field.name]) for field in fields(HeaderState)})


def _value(stored: Any) -> Any:
    """A field as Python has it: bytes for an array, int for a number."""
    return stored.tobytes() if isinstance(stored, np.ndarray) else int(stored)


def encode_tally(count: int, boot_id: bytes) -> int:
    """A tally's word, written by the store of this boot id."""
    seal = 0xFFFFFFFF ^ int.from_bytes(boot_id[:4], "little")
    return count | (count ^ seal) << 32


def decode_tally(word: int, boot_id: bytes) -> int | None:
    """The count in a tally's word; None unless the store of this boot id wrote it whole."""
    count = word & 0xFFFFFFFF
    return count if word == encode_tally(count, boot_id) else None


def encode_preamble(layout_version: int = LAYOUT_VERSION) -> bytes:
    """The first 16 bytes of a header page: the first bytes that a new segment gets."""
    record = np.zeros(1, record_dtype(PREAMBLE_FIELDS, 16))
    record["magic"] = SEGMENT_MAGIC
    record["layout_version"] = layout_version
    record["preamble_checksum"] = _preamble_checksum(record.tobytes())
    return record.tobytes()


def is_unfinished(page: bytes) -> bool:
    """Whether a header page is that of a segment whose making was cut short: a preamble, then
    zeros."""
    preamble = encode_preamble()
    return page.startswith(preamble) and not any(page[len(preamble) :])


def is_of_a_segment(page: bytes) -> bool:
    """Whether a header page, however damaged, is a segment's: it has the magic, or its checksum
    once the magic is put right, or a copy of the state. No other program's file has one of them."""
    if page[:8] == SEGMENT_MAGIC.to_bytes(8, "little"):
        return True
    if len(page) < HEADER_BYTES:
        return False
    end = HEADER_DTYPE.itemsize
    mended = SEGMENT_MAGIC.to_bytes(8, "little") + page[8:end]
    stored = int.from_bytes(mended[-8:], "little")
    if stored == xxhash.xxh3_64_intdigest(mended[:-8]):
        return True
    return any(_decode_copy(page, offset) is not None for offset in STATE_OFFSETS)


_LOW_HALF = np.uint64(0xFFFFFFFF)
_HIGH = np.uint64(32)
SLOT_MULTIPLIERS: U64 = np.array(
    [
        0xE220A8397B1DCDAF,
        0x6E789E6AA1B965F5,
        0x06C45D188009454F,
        0xF88BB8A8724C81ED,
        0x1B39896A51A8749B,
        0x53CB9F0C747EA2EB,
        0x2C829ABE1F4532E1,
        0xC584133AC916AB3D,
    ],
    np.uint64,
)
"""Odd, and none times a power of two below 2^32 comes nearer than 2^32 to 0 modulo 2^64; so a
single flipped bit moves the hash by that much or more and always changes its upper half. (The
outputs of splitmix64 from seed 0, made odd; a test checks the property.)"""


def slot_words(slots: Slots) -> U64:
    """The records as uint64 [n, 8], sharing their memory (which must be contiguous)."""
    words: U64 = slots.view(np.uint64).reshape(-1, SLOT_WORDS)
    return words


def slot_checksums(words: U64) -> U32:
    """Checksum of each record, uint32 [n], from its words uint64 [n, 8].

    Upper half of the sum of words times odd constants, modulo 2^64, over the 60 bytes before the
    checksum (multilinear hashing: Carter and Wegman 1979). A free slot of zeros has checksum 0.
    """
    seal = words[:, SLOT_SEAL_WORD]
    total = words @ SLOT_MULTIPLIERS - (seal & ~_LOW_HALF) * SLOT_MULTIPLIERS[SLOT_SEAL_WORD]
    result: U32 = (total >> _HIGH).astype(np.uint32)
    return result


def seal_slots(slots: Slots) -> None:
    """Put the right checksum into each record, in place."""
    slots["slot_checksum"] = slot_checksums(slot_words(slots))


def valid_slots(slots: Slots) -> Bools:
    """Which records have their checksum, or are free, bool [n]."""
    words = slot_words(slots)
    seal = words[:, SLOT_SEAL_WORD]
    valid: Bools = (slot_checksums(words) == (seal >> _HIGH)) | (seal == 0)
    return valid


def in_bounds(slots: Slots, geometry: Geometry) -> Bools:
    """Which records name a key, an extent and values that can exist in this segment, bool [n]."""
    key_end = slots["key_offset"].astype(np.int64) * KEY_UNIT_BYTES + slots["key_length"]
    units = data_units(slots["size"])
    fits = (
        (slots["state"] <= max(SlotState))
        & (slots["pin"] <= max(Pin))
        & (slots["key_length"] > 0)
        & (key_end <= geometry.key_heap_bytes)
        & (slots["size"] > 0)
    )
    needs_space = (slots["state"] == SlotState.WRITING) | (slots["state"] == SlotState.PUBLISHED)
    in_data = (slots["size"] <= geometry.data_bytes) & (
        slots["extent"].astype(np.int64) + units <= geometry.data_units
    )
    result: Bools = fits & (in_data | ~needs_space)
    return result


def data_units(sizes: U64) -> I64:
    """Units of `DATA_UNIT_BYTES` that blocks of these sizes take, int64 [n]."""
    units = sizes // np.uint64(DATA_UNIT_BYTES) + (sizes % np.uint64(DATA_UNIT_BYTES) > 0)
    result: I64 = units.astype(np.int64)
    return result


def key_units(lengths: npt.NDArray[np.integer]) -> I64:
    """Units of `KEY_UNIT_BYTES` that keys of these lengths take, int64 [n]."""
    result: I64 = -(-lengths.astype(np.int64) // KEY_UNIT_BYTES)
    return result
