"""Sections: how the index of a pack and the body of a manifest hold their columns.

A directory (head and one entry a section) and then the sections. A reader skips a section that it
does not know, unless the entry says that it is required: then the file is newer than the reader.
Each length is checked against the bytes that are there, and each raw length against what its column
must have, before anything is decompressed, so a hostile file cannot ask for more memory than the
rows it claims.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import IntEnum

import numpy as np
import numpy.typing as npt
import zstandard

from snapd.errors import CorruptError, NewerFormatError
from snapd.formats.layout import RecordField, encode_record, record_dtype
from snapd.formats.sealed import padded

SECTIONS_MAGIC = b"SNAPSECT"
SECTIONS_MAX = 256
RAW_BYTES_MAX = 1 << 31
"""Most bytes that all sections of one file may have once decompressed."""

REQUIRED = 1
"""Flag of a section: a reader that does not know its kind must refuse the file."""


class Encoding(IntEnum):
    """How a section is stored."""

    RAW = 0
    ZSTD = 1
    PLANES_ZSTD = 2
    """zstd over byte planes: first byte 0 of every item, then byte 1 of every item, and so on.
    Numbers that rise slowly differ in few planes and shrink tenfold."""


HEAD_FIELDS = (
    RecordField("magic", "8u1", "SNAPSECT"),
    RecordField("sections", "<u4", "entries that follow"),
    RecordField("reserved", "<u4", "zero"),
    RecordField("body_bytes", "<u8", "length of head, entries and sections, without padding"),
)
HEAD_DTYPE = record_dtype(HEAD_FIELDS, 24)

ENTRY_FIELDS = (
    RecordField("kind", "<u2", "which section; numbers are never used again for something else"),
    RecordField("flags", "u1", "bit 0: required, a reader that does not know it must refuse"),
    RecordField("encoding", "u1", "0 raw, 1 zstd, 2 zstd over byte planes"),
    RecordField("item_bytes", "<u4", "size of an item of the column"),
    RecordField("offset", "<u8", "from the start of the head"),
    RecordField("stored_bytes", "<u8", "length as stored"),
    RecordField("raw_bytes", "<u8", "length once decompressed"),
)
ENTRY_DTYPE = record_dtype(ENTRY_FIELDS, 32)

_COMPRESSION_LEVEL = 1
_SMALLER_BY = 16
"""A section is stored compressed only if that saves one part in this many."""

Column = npt.NDArray[np.generic]


def encode_sections(columns: Mapping[int, Column], optional: Collection[int] = ()) -> bytes:
    """A directory and these columns by kind, padded to whole pages; all required but `optional`.

    Columns are one-dimensional and little-endian.
    """
    compressor = zstandard.ZstdCompressor(level=_COMPRESSION_LEVEL, write_checksum=False)
    head_bytes = HEAD_DTYPE.itemsize + ENTRY_DTYPE.itemsize * len(columns)
    entries: list[bytes] = []
    bodies: list[bytes] = []
    offset = head_bytes
    for kind, column in columns.items():
        encoding, body = _encode_column(column, compressor)
        entries.append(
            encode_record(
                ENTRY_DTYPE,
                kind=kind,
                flags=0 if kind in optional else REQUIRED,
                encoding=encoding,
                item_bytes=column.dtype.itemsize,
                offset=offset,
                stored_bytes=len(body),
                raw_bytes=column.nbytes,
            )
        )
        bodies.append(body)
        offset += len(body)
    head = encode_record(HEAD_DTYPE, magic=SECTIONS_MAGIC, sections=len(columns), body_bytes=offset)
    return b"".join([head, *entries, *bodies, bytes(padded(offset) - offset)])


class Sections:
    """A parsed directory over `raw`; columns are decompressed when they are asked for."""

    __slots__ = ("_entries", "_raw", "raw_bytes")

    def __init__(self, raw: bytes | memoryview, known: Collection[int]) -> None:
        """Check every entry's bounds. Raises CorruptError, or NewerFormatError for a required
        section or an encoding that is not known."""
        self._raw = memoryview(raw)
        self._entries = {int(entry["kind"]): entry for entry in self._read_directory()}
        self.raw_bytes = sum(int(entry["raw_bytes"]) for entry in self._entries.values())
        if self.raw_bytes > RAW_BYTES_MAX:
            raise CorruptError(f"sections of {self.raw_bytes} bytes are over {RAW_BYTES_MAX}")
        for kind, entry in self._entries.items():
            if kind in known:
                if int(entry["encoding"]) not in list(Encoding):
                    raise NewerFormatError(f"section {kind} has an encoding that is not known")
            elif int(entry["flags"]) & REQUIRED:
                raise NewerFormatError(f"section {kind} is required and not known to this version")

    def __contains__(self, kind: int) -> bool:
        return kind in self._entries

    def items(self, kind: int, item_bytes: int) -> int:
        """How many items of this size a section holds. Raises CorruptError."""
        raw_bytes = int(self._entry(kind)["raw_bytes"])
        if raw_bytes % item_bytes:
            raise CorruptError(f"section {kind} of {raw_bytes} bytes has broken items")
        return raw_bytes // item_bytes

    def column(self, kind: int, dtype: npt.DTypeLike, rows: int) -> npt.NDArray[np.void]:
        """A section as `rows` items, read-only. Raises CorruptError unless it has just those."""
        item = np.dtype(dtype)
        entry = self._entry(kind)
        raw_bytes = int(entry["raw_bytes"])
        if raw_bytes != rows * item.itemsize or int(entry["item_bytes"]) != item.itemsize:
            raise CorruptError(f"section {kind} has {raw_bytes} bytes for {rows} rows of {item}")
        first = int(entry["offset"])
        stored = self._raw[first : first + int(entry["stored_bytes"])]
        encoding = Encoding(int(entry["encoding"]))
        if encoding is Encoding.RAW:
            if stored.nbytes != raw_bytes:
                raise CorruptError(f"section {kind} is raw and has two lengths")
            return np.frombuffer(stored, item)
        data = _decompress(stored, raw_bytes, kind)
        if encoding is Encoding.PLANES_ZSTD:
            planes = np.frombuffer(data, np.uint8).reshape(item.itemsize, rows)
            return np.ascontiguousarray(planes.T).reshape(-1).view(item)
        return np.frombuffer(data, item)

    def _entry(self, kind: int) -> np.void:
        if kind not in self._entries:
            raise CorruptError(f"section {kind} is missing")
        entry: np.void = self._entries[kind]
        return entry

    def _read_directory(self) -> npt.NDArray[np.void]:
        raw = self._raw
        if raw.nbytes < HEAD_DTYPE.itemsize:
            raise CorruptError(f"directory of sections is cut off at {raw.nbytes} bytes")
        head = np.frombuffer(raw[: HEAD_DTYPE.itemsize], HEAD_DTYPE)[0]
        count, body_bytes = int(head["sections"]), int(head["body_bytes"])
        head_bytes = HEAD_DTYPE.itemsize + count * ENTRY_DTYPE.itemsize
        if (
            head["magic"].tobytes() != SECTIONS_MAGIC
            or count > SECTIONS_MAX
            or not head_bytes <= body_bytes <= raw.nbytes
        ):
            raise CorruptError("directory of sections is not one")
        entries = np.frombuffer(raw[HEAD_DTYPE.itemsize : head_bytes], ENTRY_DTYPE)
        # Sections follow each other without gaps, so they can neither overlap nor leave the body.
        ends = np.cumsum(
            [head_bytes, *(int(size) for size in entries["stored_bytes"])], dtype=object
        )
        if list(ends[:-1]) != [int(offset) for offset in entries["offset"]]:
            raise CorruptError("sections do not follow each other")
        if ends[-1] != body_bytes:
            raise CorruptError(f"sections end at {ends[-1]}, not at {body_bytes}")
        if len({int(kind) for kind in entries["kind"]}) != count:
            raise CorruptError("a section is there twice")
        return entries


def _encode_column(column: Column, compressor: zstandard.ZstdCompressor) -> tuple[Encoding, bytes]:
    data = np.ascontiguousarray(column)
    raw = data.tobytes()
    encoding, source = Encoding.ZSTD, raw
    if data.dtype.itemsize > 1 and data.dtype.kind in "uif":
        encoding = Encoding.PLANES_ZSTD
        source = data.view(np.uint8).reshape(len(data), data.dtype.itemsize).T.tobytes()
    small = compressor.compress(source) if raw else raw
    if len(small) + len(raw) // _SMALLER_BY < len(raw):
        return encoding, small
    return Encoding.RAW, raw


def _decompress(stored: memoryview, raw_bytes: int, kind: int) -> bytes:
    try:
        # The frame's own claim decides what the library allocates, so it is checked first.
        if zstandard.frame_content_size(stored) != raw_bytes:
            raise CorruptError(f"section {kind} does not decompress to {raw_bytes} bytes")
        data = zstandard.ZstdDecompressor().decompress(
            stored, max_output_size=raw_bytes, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise CorruptError(f"section {kind} does not decompress: {error}") from error
    if len(data) != raw_bytes:
        raise CorruptError(f"section {kind} decompresses to {len(data)}, not {raw_bytes} bytes")
    return data
