"""`repository.json`."""

from __future__ import annotations

import random

from snapd.errors import CorruptError, NewerFormatError
from snapd.formats.repository import decode_repository, encode_repository

_TOKENS = [b'"', b"{", b"}", b"[", b"1e999", b"-1", b"9" * 400, b"null", b"\\ud800", b"\xff", b":"]


def seeds() -> list[bytes]:
    return [
        encode_repository(bytes(range(16))),
        b'{"format_version": 2, "repository_id": "00"}',
        b'{"repository_id": "000102030405060708090a0b0c0d0e0f", "format_version": 1, "more": [{}]}',
    ]


def mutate(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    token = rng.choice(_TOKENS)
    if rng.random() < 0.3:
        return data[:at] + token * rng.choice([1, 2, 2000]) + data[at:]
    if rng.random() < 0.5:
        return data[:at] + token + data[at + len(token) :]
    raw = bytearray(data)
    raw[min(at, len(raw) - 1)] = rng.choice(b'0123456789abcdef"{}[],: \0\xff')
    return bytes(raw)


def check(data: bytes) -> None:
    """An id of 16 bytes that is the same when written again, or a typed verdict."""
    try:
        identity = decode_repository(data)
    except (CorruptError, NewerFormatError):
        return
    assert len(identity) == 16
    assert decode_repository(encode_repository(identity)) == identity
