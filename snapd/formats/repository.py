"""`repository.json`: the one file for people, and the id that every other file repeats."""

from __future__ import annotations

import re

import msgspec
import xxhash

from snapd.errors import CorruptError, NewerFormatError
from snapd.formats.sealed import FORMAT_VERSION, ID_BYTES

_HEX_ID = re.compile(f"[0-9a-f]{{{2 * ID_BYTES}}}")


class RepositoryFile(msgspec.Struct, frozen=True, kw_only=True):
    """Contents of `repository.json`; fields of later versions are ignored."""

    format_version: int
    """Version of the layout of the directory; a higher one is refused."""
    repository_id: str
    """16 random bytes as 32 lower-case hexadecimal digits."""
    checksum: str = ""
    """XXH3-64 of `<format_version> <repository_id>` as 16 lower-case hexadecimal digits, in every
    version: a flipped bit is no other repository and no newer one. Without it nothing is checked.
    """


def encode_repository(repository_id: bytes) -> bytes:
    """The text of `repository.json`."""
    record = RepositoryFile(
        format_version=FORMAT_VERSION,
        repository_id=repository_id.hex(),
        checksum=_checksum(FORMAT_VERSION, repository_id.hex()),
    )
    return msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"


def decode_repository(raw: bytes) -> bytes:
    """The repository's id. Raises CorruptError or NewerFormatError."""
    try:
        record = msgspec.json.decode(raw, type=RepositoryFile)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptError(f"repository.json: {error}") from error
    if record.checksum and record.checksum != _checksum(
        record.format_version, record.repository_id
    ):
        raise CorruptError("repository.json does not have its checksum")
    if record.format_version > FORMAT_VERSION:
        raise NewerFormatError(
            f"repository.json has format version {record.format_version}, newer than "
            f"{FORMAT_VERSION}: use the snapd that wrote it, or a later one"
        )
    if record.format_version < 1 or not _HEX_ID.fullmatch(record.repository_id):
        raise CorruptError("repository.json has no valid version and id")
    return bytes.fromhex(record.repository_id)


def _checksum(format_version: int, repository_id: str) -> str:
    return xxhash.xxh3_64_hexdigest(f"{format_version} {repository_id}".encode())
