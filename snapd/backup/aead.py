"""Authenticated encryption of chunks: the STREAM construction over AES-256-GCM.

Hoang, Reyhanitabar, Rogaway and Vizár, "Online Authenticated-Encryption and its Nonce-Reuse
Misuse-Resistance" (CRYPTO 2015): the nonce is the number of the chunk and whether it is the last
one, so chunks cannot be dropped, moved or cut off at the end without the next tag telling. Each
archive has a key of its own, derived (HKDF-SHA-256) from the operator's key, a random salt and the
whole header: nonces never meet under one key, and a changed header decrypts nothing.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from snapd.backup.format import ArchiveHeader, ChunkHead
from snapd.backup.sealing import Bytes
from snapd.errors import CorruptError

_INFO = b"mooncake-snapd backup 1 "
_NONCE_COUNTER_BYTES = 11


class AeadSealer:
    """Encrypts and authenticates the chunks of one archive. Safe to use from several threads."""

    def __init__(self, header: ArchiveHeader, secret: bytes) -> None:
        derived = HKDF(SHA256(), 32, header.salt, _INFO + header.raw).derive(secret)
        self._cipher = AESGCM(derived)

    def seal(self, number: int, head: ChunkHead, data: bytes) -> bytes:
        """See `Sealer`."""
        return self._cipher.encrypt(_nonce(number, head), data, head.raw)

    def open(self, number: int, head: ChunkHead, sealed: bytes | bytearray) -> Bytes:
        """See `Sealer`."""
        try:
            return self._cipher.decrypt(_nonce(number, head), sealed, head.raw)
        except InvalidTag as error:
            raise CorruptError(
                f"chunk {number} of the backup is not what was encrypted: it was changed, moved or "
                "cut off"
            ) from error


def _nonce(number: int, head: ChunkHead) -> bytes:
    return number.to_bytes(_NONCE_COUNTER_BYTES, "big") + bytes([head.last])
