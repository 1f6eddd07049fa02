"""The bytes of a backup archive: header, chunks, records. Their one home; see docs/backup.md.

An archive is one stream: a header, then chunks. A chunk holds up to `CHUNK_BYTES` bytes of content,
compressed on its own, and a seal (a checksum, or a tag of authenticated encryption) that covers its
number, its head and whether it is the last one: a stream that is cut, reordered or put together
from two never verifies. The content is a row of records: the plan, the files, and the contents with
a digest for each file.

Names come from a grammar and nothing else, so an archive cannot name a place outside of a
repository. Nothing here touches a file.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TypeVar

import msgspec
import numpy as np
import xxhash

from snapd.errors import CorruptError, NewerFormatError
from snapd.formats.layout import RecordField, encode_record, record_dtype
from snapd.repository.names import (
    JOURNAL,
    MANIFESTS,
    PACKS,
    REPOSITORY_FILE,
    parse_journal,
    parse_manifest,
    parse_pack,
)

ARCHIVE_MAGIC = b"SNAPBKUP"
FORMAT_VERSION = 1
KNOWN_FEATURES = 0
ID_BYTES = 16
SALT_BYTES = 32
CHUNK_BYTES = 1 << 20
"""Content of a chunk, at most: what is in memory at a time is a few of these."""
SEAL_BYTES = 16
DOCUMENT_BYTES_MAX = 1 << 28
"""Longest plan or table of contents that is read into memory."""
NAME_BYTES_MAX = 96
FILE_BYTES_MAX = 1 << 40

HEADER_FIELDS = (
    RecordField("magic", "8u1", "SNAPBKUP; never moves"),
    RecordField("format_version", "<u4", "version that wrote the archive; never moves"),
    RecordField("features", "<u4", "bits a reader must know; an unknown one refuses"),
    RecordField("archive_id", "16u1", "random, of this archive"),
    RecordField("key_id", "16u1", "of the key it is encrypted with; zero without"),
    RecordField("cipher", "<u4", "0 none, 1 AES-256-GCM in the STREAM construction"),
    RecordField("chunk_bytes", "<u4", "most content in a chunk"),
    RecordField("salt", "32u1", "random; makes the archive's own key"),
    RecordField("reserved", "32u1", "zero"),
    RecordField("checksum", "<u8", "XXH3-64 of all bytes before; never moves"),
)
HEADER_BYTES = 128
HEADER_DTYPE = record_dtype(HEADER_FIELDS, HEADER_BYTES)

CHUNK_FIELDS = (
    RecordField("stored_bytes", "<u4", "bytes that follow, the seal of 16 included"),
    RecordField("raw_bytes", "<u4", "content, once decompressed"),
    RecordField("codec", "u1", "0 raw, 1 zstd"),
    RecordField("last", "u1", "1 in the last chunk of the archive"),
    RecordField("reserved", "6u1", "zero"),
)
CHUNK_HEAD_BYTES = 16
CHUNK_DTYPE = record_dtype(CHUNK_FIELDS, CHUNK_HEAD_BYTES)

RECORD_FIELDS = (
    RecordField("kind", "<u4", "1 plan, 2 file, 3 contents"),
    RecordField("name_bytes", "<u4", "length of the name that follows; 0 but for files"),
    RecordField("size", "<u8", "bytes that follow the name"),
)
RECORD_HEAD_BYTES = 16
RECORD_DTYPE = record_dtype(RECORD_FIELDS, RECORD_HEAD_BYTES)


T = TypeVar("T", bound=msgspec.Struct)


class Cipher(IntEnum):
    """How an archive is encrypted."""

    NONE = 0
    AES_256_GCM = 1


class ChunkCodec(IntEnum):
    """How the content of a chunk is stored."""

    RAW = 0
    ZSTD = 1


class RecordKind(IntEnum):
    """What a record of the content is."""

    PLAN = 1
    FILE = 2
    CONTENTS = 3


@dataclass(frozen=True, slots=True)
class ArchiveHeader:
    """A verified header, with the bytes it came from: the archive's key is bound to them."""

    archive_id: bytes
    key_id: bytes
    cipher: Cipher
    salt: bytes
    raw: bytes


@dataclass(frozen=True, slots=True)
class ChunkHead:
    """A chunk head within its bounds, with the bytes it came from: the seal covers them."""

    stored_bytes: int
    raw_bytes: int
    codec: ChunkCodec
    last: bool
    raw: bytes


@dataclass(frozen=True, slots=True)
class RecordHead:
    """What comes next in the content."""

    kind: RecordKind
    name_bytes: int
    size: int


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """First record: what the archive is of, and how much is to come."""

    repository_id: str
    generation: int
    created_ns: int
    """Nanoseconds since 1970-01-01 UTC; for people, never order."""
    blocks: int
    """Live blocks."""
    bytes: int
    """Their sizes added up."""
    files: int
    file_bytes: int
    """Lengths of all files added up."""


class FileEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A file of the repository."""

    name: str
    bytes: int
    digest: str
    """XXH3-128 of its bytes, hexadecimal."""
    part: str = ""
    """Id of the archive beside this one that holds the file, hexadecimal; empty: it is in here."""


class Contents(msgspec.Struct, frozen=True, kw_only=True):
    """Last record: every file of the backup."""

    files: tuple[FileEntry, ...]


def encode_header(archive_id: bytes, key_id: bytes, cipher: Cipher, salt: bytes) -> ArchiveHeader:
    """A header and its 128 bytes."""
    raw = encode_record(
        HEADER_DTYPE,
        magic=ARCHIVE_MAGIC,
        format_version=FORMAT_VERSION,
        archive_id=archive_id,
        key_id=key_id,
        cipher=cipher,
        chunk_bytes=CHUNK_BYTES,
        salt=salt,
    )
    body = raw[:-8]
    raw = body + xxhash.xxh3_64_intdigest(body).to_bytes(8, "little")
    return ArchiveHeader(archive_id, key_id, cipher, salt, raw)


def decode_header(raw: bytes) -> ArchiveHeader:
    """A verified header. Raises CorruptError or NewerFormatError."""
    if len(raw) != HEADER_BYTES or raw[:8] != ARCHIVE_MAGIC:
        raise CorruptError("this is no backup of snapd, or it is cut off")
    record: np.void = np.frombuffer(raw, HEADER_DTYPE)[0]
    if xxhash.xxh3_64_intdigest(raw[:-8]) != int(record["checksum"]):
        raise CorruptError("the header of the backup does not have its checksum")
    version, features = int(record["format_version"]), int(record["features"])
    if (
        version > FORMAT_VERSION
        or features & ~KNOWN_FEATURES
        or int(record["cipher"]) > max(Cipher)
    ):
        raise NewerFormatError(
            f"the backup has format version {version}, newer than {FORMAT_VERSION}: use the snapd "
            "that wrote it, or a later one"
        )
    if version == 0 or int(record["chunk_bytes"]) != CHUNK_BYTES:
        raise CorruptError("the header of the backup makes no sense")
    return ArchiveHeader(
        record["archive_id"].tobytes(),
        record["key_id"].tobytes(),
        Cipher(int(record["cipher"])),
        record["salt"].tobytes(),
        bytes(raw),
    )


def encode_chunk_head(
    stored_bytes: int, raw_bytes: int, codec: ChunkCodec, *, last: bool
) -> ChunkHead:
    """The head of a chunk; `stored_bytes` without the seal."""
    stored_bytes += SEAL_BYTES
    raw = encode_record(
        CHUNK_DTYPE, stored_bytes=stored_bytes, raw_bytes=raw_bytes, codec=codec, last=int(last)
    )
    return ChunkHead(stored_bytes, raw_bytes, codec, last, raw)


def decode_chunk_head(raw: bytes) -> ChunkHead:
    """A chunk head whose lengths are within bounds; its seal is not checked yet. Raises
    CorruptError."""
    if len(raw) != CHUNK_HEAD_BYTES:
        raise CorruptError("the backup is cut off: its last chunk is missing")
    record: np.void = np.frombuffer(raw, CHUNK_DTYPE)[0]
    stored, content = int(record["stored_bytes"]), int(record["raw_bytes"])
    if (
        not SEAL_BYTES <= stored <= CHUNK_BYTES + SEAL_BYTES
        or content > CHUNK_BYTES
        or int(record["codec"]) > max(ChunkCodec)
        or int(record["last"]) > 1
    ):
        raise CorruptError("a chunk of the backup has a head that makes no sense")
    codec, last = ChunkCodec(int(record["codec"])), bool(record["last"])
    if codec == ChunkCodec.RAW and content != stored - SEAL_BYTES:
        raise CorruptError("a chunk of the backup has two lengths")
    return ChunkHead(stored, content, codec, last, bytes(raw))


def encode_record_head(kind: RecordKind, name: bytes, size: int) -> bytes:
    """The head of a record and its name."""
    return encode_record(RECORD_DTYPE, kind=kind, name_bytes=len(name), size=size) + name


def decode_record_head(raw: bytes) -> RecordHead:
    """A record head whose lengths are within bounds. Raises CorruptError."""
    record: np.void = np.frombuffer(raw, RECORD_DTYPE)[0]
    kind, name_bytes, size = int(record["kind"]), int(record["name_bytes"]), int(record["size"])
    if kind not in set(RecordKind):
        raise CorruptError(f"the backup has a record of kind {kind}")
    is_file = kind == RecordKind.FILE
    size_max = FILE_BYTES_MAX if is_file else DOCUMENT_BYTES_MAX
    if size > size_max or name_bytes > NAME_BYTES_MAX or bool(name_bytes) != is_file:
        raise CorruptError("a record of the backup has lengths that make no sense")
    return RecordHead(RecordKind(kind), name_bytes, size)


def decode_plan(raw: bytes) -> Plan:
    """Raises CorruptError."""
    plan = _decode_document(raw, Plan)
    counts = (plan.generation, plan.blocks, plan.bytes, plan.files, plan.file_bytes)
    if min(counts) < 0 or not is_hex_id(plan.repository_id):
        raise CorruptError("the plan of the backup makes no sense")
    return plan


def decode_contents(raw: bytes) -> Contents:
    """Raises CorruptError, also for a name that no file of a repository has, or has twice."""
    contents = _decode_document(raw, Contents)
    for entry in contents.files:
        check_name(entry.name)
        good_part = not entry.part or is_hex_id(entry.part)
        if not 0 <= entry.bytes <= FILE_BYTES_MAX or not is_hex_id(entry.digest) or not good_part:
            raise CorruptError(f"what the backup says of {entry.name} makes no sense")
    if len({entry.name for entry in contents.files}) != len(contents.files):
        raise CorruptError("the backup names a file twice")
    return contents


def decode_name(raw: bytes) -> str:
    """The name of a file. Raises CorruptError."""
    try:
        return check_name(raw.decode("ascii"))
    except UnicodeDecodeError as error:
        raise CorruptError(f"the backup names {raw!r}, which is no file of a repository") from error


def check_name(name: str) -> str:
    """`name`, if it is one that a repository gives to its files. Raises CorruptError: no other
    name is ever opened, whatever made the archive."""
    directory, _, leaf = name.rpartition("/")
    good = (
        name == REPOSITORY_FILE
        or (directory == PACKS and parse_pack(leaf) is not None)
        or (directory == MANIFESTS and parse_manifest(leaf) is not None)
        or (directory == JOURNAL and parse_journal(leaf) is not None)
    )
    if not good:
        raise CorruptError(f"the backup names {name!r}, which is no file of a repository")
    return name


def is_hex_id(text: str) -> bool:
    """Whether a text is 16 bytes in lower-case hexadecimal digits."""
    return len(text) == 2 * ID_BYTES and set(text) <= set("0123456789abcdef")


def _decode_document(raw: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptError(f"a document in the backup cannot be read: {error}") from error
