"""Header and trailer of the files in a repository. The one home of their bytes.

Packs and manifests are sealed files: header | data (packs only) | index | trailer, written once,
never changed. A journal has the same header and then records. Header and trailer are each 4 KiB,
so that everything between them is aligned for direct I/O.

Three things stay where they are in every future version, so that any version can tell a newer file
from a damaged one: the magic in the first 8 bytes, the version in the next 4, and in the last 8
bytes of the 4 KiB the checksum of all bytes before it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xxhash

from snapd.errors import CorruptError, NewerFormatError
from snapd.formats.layout import RecordField, encode_record, record_dtype

FORMAT_VERSION = 1
PAGE_BYTES = 4096
"""Size of a header and of a trailer, and the alignment of everything between them."""

PACK_MAGIC = b"SNAPPACK"
MANIFEST_MAGIC = b"SNAPMANI"
JOURNAL_MAGIC = b"SNAPJRNL"
TRAILER_MAGIC = b"SNAPTAIL"

KNOWN_FEATURES = 0
"""Bits of `features` that this version understands; a file with any other is newer to it."""

ID_BYTES = 16

HEADER_FIELDS = (
    RecordField("magic", "8u1", "SNAPPACK, SNAPMANI or SNAPJRNL; never moves"),
    RecordField("format_version", "<u4", "version that wrote the file; never moves"),
    RecordField(
        "features", "<u4", "bits a reader must know to read the file; an unknown one refuses"
    ),
    RecordField("repository_id", "16u1", "random, of the repository"),
    RecordField("file_id", "16u1", "random, of this file"),
    RecordField("sequence", "<u8", "number of the pack, of the generation, or of the journal file"),
    RecordField("reserved", "4032u1", "zero; ignored by readers"),
    RecordField("checksum", "<u8", "XXH3-64 of all bytes before; never moves"),
)
HEADER_DTYPE = record_dtype(HEADER_FIELDS, PAGE_BYTES)

TRAILER_FIELDS = (
    RecordField("magic", "8u1", "SNAPTAIL; never moves"),
    RecordField("format_version", "<u4", "as in the header; never moves"),
    RecordField("features", "<u4", "as in the header"),
    RecordField("repository_id", "16u1", "as in the header"),
    RecordField("file_id", "16u1", "as in the header"),
    RecordField("sequence", "<u8", "as in the header"),
    RecordField("kind", "8u1", "magic of the header"),
    RecordField("index_offset", "<u8", "start of the index in the file, a multiple of 4096"),
    RecordField("index_bytes", "<u8", "length of the index, padded to a multiple of 4096"),
    RecordField("raw_bytes", "<u8", "length of all sections once they are decompressed"),
    RecordField("index_digest", "16u1", "XXH3-128 of the index's `index_bytes` bytes"),
    RecordField("rows", "<u8", "blocks in the pack; packs in the manifest"),
    RecordField("reserved", "3976u1", "zero; ignored by readers"),
    RecordField("checksum", "<u8", "XXH3-64 of all bytes before; never moves"),
)
TRAILER_DTYPE = record_dtype(TRAILER_FIELDS, PAGE_BYTES)

_CHECKED_BYTES = PAGE_BYTES - 8


@dataclass(frozen=True, slots=True)
class FileHeader:
    """A verified header."""

    magic: bytes
    repository_id: bytes
    file_id: bytes
    sequence: int


@dataclass(frozen=True, slots=True)
class FileTrailer:
    """A verified trailer; its offsets lie inside the file that it was read from."""

    header: FileHeader
    index_offset: int
    index_bytes: int
    raw_bytes: int
    index_digest: bytes
    rows: int


def padded(length: int) -> int:
    """`length` rounded up to whole pages."""
    return -(-length // PAGE_BYTES) * PAGE_BYTES


def index_digest(index: bytes | memoryview) -> bytes:
    """XXH3-128 of an index, 16 bytes."""
    return xxhash.xxh3_128_digest(index)


def encode_header(header: FileHeader) -> bytes:
    """The 4 KiB of a header."""
    return _with_checksum(
        encode_record(
            HEADER_DTYPE,
            magic=header.magic,
            format_version=FORMAT_VERSION,
            repository_id=header.repository_id,
            file_id=header.file_id,
            sequence=header.sequence,
        )
    )


def encode_trailer(trailer: FileTrailer) -> bytes:
    """The 4 KiB of a trailer."""
    return _with_checksum(
        encode_record(
            TRAILER_DTYPE,
            magic=TRAILER_MAGIC,
            format_version=FORMAT_VERSION,
            repository_id=trailer.header.repository_id,
            file_id=trailer.header.file_id,
            sequence=trailer.header.sequence,
            kind=trailer.header.magic,
            index_offset=trailer.index_offset,
            index_bytes=trailer.index_bytes,
            raw_bytes=trailer.raw_bytes,
            index_digest=trailer.index_digest,
            rows=trailer.rows,
        )
    )


def decode_header(raw: bytes, magic: bytes) -> FileHeader:
    """A verified header of the kind `magic`. Raises CorruptError or NewerFormatError."""
    record = _verified_page(raw, magic, HEADER_DTYPE, "header")
    return FileHeader(
        magic,
        record["repository_id"].tobytes(),
        record["file_id"].tobytes(),
        int(record["sequence"]),
    )


def decode_trailer(raw: bytes, magic: bytes, file_bytes: int) -> FileTrailer:
    """A verified trailer of a file of `file_bytes` bytes, whose header has the magic `magic`.

    Raises CorruptError, also when the index does not lie between header and trailer, or
    NewerFormatError.
    """
    record = _verified_page(raw, TRAILER_MAGIC, TRAILER_DTYPE, "trailer")
    trailer = FileTrailer(
        header=FileHeader(
            record["kind"].tobytes(),
            record["repository_id"].tobytes(),
            record["file_id"].tobytes(),
            int(record["sequence"]),
        ),
        index_offset=int(record["index_offset"]),
        index_bytes=int(record["index_bytes"]),
        raw_bytes=int(record["raw_bytes"]),
        index_digest=record["index_digest"].tobytes(),
        rows=int(record["rows"]),
    )
    if trailer.header.magic != magic:
        raise CorruptError(f"trailer is of another kind of file: {trailer.header.magic!r}")
    if (
        trailer.index_offset < PAGE_BYTES
        or trailer.index_offset % PAGE_BYTES
        or trailer.index_bytes % PAGE_BYTES
        or trailer.index_offset + trailer.index_bytes + PAGE_BYTES != file_bytes
    ):
        raise CorruptError(
            f"index at {trailer.index_offset} of {trailer.index_bytes} bytes does not fit "
            f"a file of {file_bytes}"
        )
    return trailer


def check_header_and_trailer(header: FileHeader, trailer: FileTrailer) -> None:
    """Raises CorruptError unless both are of one file."""
    if header != trailer.header:
        raise CorruptError("header and trailer are of two different files")


def _with_checksum(page: bytes) -> bytes:
    body = page[:_CHECKED_BYTES]
    return body + xxhash.xxh3_64_intdigest(body).to_bytes(8, "little")


def _verified_page(raw: bytes, magic: bytes, dtype: np.dtype[np.void], what: str) -> np.void:
    if len(raw) != PAGE_BYTES:
        raise CorruptError(f"{what} is cut off: {len(raw)} of {PAGE_BYTES} bytes")
    record: np.void = np.frombuffer(raw, dtype)[0]
    if record["magic"].tobytes() != magic:
        raise CorruptError(f"{what} starts with {raw[:8]!r}, not {magic!r}")
    if xxhash.xxh3_64_intdigest(raw[:_CHECKED_BYTES]) != int(record["checksum"]):
        raise CorruptError(f"{what} does not have its checksum")
    version, features = int(record["format_version"]), int(record["features"])
    if version > FORMAT_VERSION or features & ~KNOWN_FEATURES:
        raise NewerFormatError(
            f"{what} has format version {version} with features {features:#x}, newer than "
            f"{FORMAT_VERSION}: use the snapd that wrote it, or a later one"
        )
    if version == 0:
        raise CorruptError(f"{what} has format version 0")
    return record
