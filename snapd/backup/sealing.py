"""Seals of chunks: a checksum, or authenticated encryption where a key is given."""

from __future__ import annotations

import hashlib
import importlib
import re
from dataclasses import dataclass, field
from typing import Any, Protocol

import xxhash

from snapd.backup.format import ID_BYTES, SEAL_BYTES, ArchiveHeader, ChunkHead, Cipher
from snapd.errors import CorruptError, RefusedError, SettingError

KEY_BYTES = 32
Bytes = bytes | bytearray | memoryview
_HEX_KEY = re.compile(rb"[0-9a-fA-F]{64}")


@dataclass(frozen=True, slots=True)
class BackupKey:
    """A key of 32 bytes; what is told of it is its id."""

    secret: bytes = field(repr=False)

    @property
    def key_id(self) -> bytes:
        """16 bytes that name the key and tell nothing about it."""
        digest = hashlib.blake2b(key=self.secret, digest_size=ID_BYTES, person=b"snapd key id")
        return digest.digest()


def parse_key(raw: bytes) -> BackupKey:
    """The key in a key file: 32 bytes, or 64 hexadecimal digits. Raises SettingError."""
    if len(raw) == KEY_BYTES:
        return BackupKey(raw)
    text = raw.strip()
    if _HEX_KEY.fullmatch(text) is None:
        raise SettingError(
            "the key file must hold 32 random bytes, or 64 hexadecimal digits: "
            "`openssl rand -hex 32` makes them"
        )
    return BackupKey(bytes.fromhex(text.decode()))


class Sealer(Protocol):
    """Seals the chunks of one archive. Safe to use from several threads."""

    def seal(self, number: int, head: ChunkHead, data: bytes) -> bytes:
        """`data` sealed, 16 bytes longer."""

    def open(self, number: int, head: ChunkHead, sealed: bytes | bytearray) -> Bytes:
        """What was sealed. Raises CorruptError unless it is chunk `number` with this head."""


class ChecksumSealer:
    """Tells chance damage, and chunks of other archives or in other places; no defence against
    somebody who wants to deceive, which takes a key."""

    def __init__(self, header: ArchiveHeader) -> None:
        self._archive_id = header.archive_id

    def seal(self, number: int, head: ChunkHead, data: bytes) -> bytes:
        """See `Sealer`."""
        return data + self._checksum(number, head, data)

    def open(self, number: int, head: ChunkHead, sealed: bytes | bytearray) -> Bytes:
        """See `Sealer`."""
        data = memoryview(sealed)[:-SEAL_BYTES]
        if self._checksum(number, head, data) != bytes(sealed[-SEAL_BYTES:]):
            raise CorruptError(f"chunk {number} of the backup does not have its checksum")
        return data

    def _checksum(self, number: int, head: ChunkHead, data: Bytes) -> bytes:
        state = xxhash.xxh3_128(self._archive_id + number.to_bytes(8, "little") + head.raw)
        state.update(data)
        return state.digest()


def sealer_of(header: ArchiveHeader, key: BackupKey | None) -> Sealer:
    """The sealer of an archive.

    Raises RefusedError when it is encrypted with another key or none was given; and when a key was
    given and the archive is not encrypted, because then anybody can have made it. Raises
    SettingError when the library for it is not installed.
    """
    if header.cipher == Cipher.NONE:
        if key is not None:
            raise RefusedError(
                "the backup is not encrypted, so nobody knows who wrote it: leave out the key file "
                "if that is what you want"
            )
        return ChecksumSealer(header)
    if key is None:
        raise RefusedError(
            f"the backup is encrypted with key {header.key_id.hex()}: name its file with --key-file"
        )
    if key.key_id != header.key_id:
        raise RefusedError(
            f"the backup is encrypted with key {header.key_id.hex()}, and the key file holds "
            f"{key.key_id.hex()}"
        )
    sealer: Sealer = load_extra("snapd.backup.aead", "encryption").AeadSealer(header, key.secret)
    return sealer


def load_extra(module: str, extra: str) -> Any:
    """A module that needs packages which not every installation has. Raises SettingError."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise SettingError(
            f"this needs the Python package {error.name}: pip install 'mooncake-snapd[{extra}]'"
        ) from error
