"""Manifests: header, trailer and sections, as recovery reads them."""

from __future__ import annotations

import random

import numpy as np
from format_mutators import mutate_sealed

from snapd.errors import CorruptError, NewerFormatError
from snapd.formats.manifest import Manifest, ManifestPack, decode_manifest, encode_manifest
from snapd.formats.sealed import (
    MANIFEST_MAGIC,
    PAGE_BYTES,
    FileHeader,
    FileTrailer,
    check_header_and_trailer,
    decode_header,
    decode_trailer,
    encode_header,
    encode_trailer,
    index_digest,
)
from snapd.formats.tables import Incarnation

_HEADER = FileHeader(MANIFEST_MAGIC, b"repository-fuzz!", b"manifest-fuzzing", 12)


def _file(manifest: Manifest) -> bytes:
    body, raw_bytes = encode_manifest(manifest)
    packs = len(manifest.packs)
    trailer = FileTrailer(_HEADER, PAGE_BYTES, len(body), raw_bytes, index_digest(body), packs)
    return encode_header(_HEADER) + body + encode_trailer(trailer)


def _manifest(rows: list[int]) -> Manifest:
    packs = tuple(
        ManifestPack(2 * number + 1, bytes([number]) * 16, bytes([number + 1]) * 16, count)
        for number, count in enumerate(rows)
    )
    live = np.arange(sum(rows)) % 3 != 0
    return Manifest(
        epoch=3,
        pack_floor=2 * len(rows),
        pack_last=2 * len(rows) + 4,
        journal_floor=5,
        committed_ns=1_700_000_000_000_000_000,
        bytes=4096 * int(live.sum()),
        packs=packs,
        live=live,
        heat=np.linspace(0, 9, int(live.sum()), dtype=np.float32),
        incarnations=(Incarnation(1, b"s" * 16, 0), Incarnation(2, b"t" * 16, 1)),
        fingerprints={1: "model-a", 7: "model-b"},
    )


def seeds() -> list[bytes]:
    """Manifests of no pack, of a few, and of rows enough to be compressed."""
    return [_file(_manifest(rows)) for rows in ([], [5], [3, 0, 9], [4000, 1, 700])]


def mutate(data: bytes, rng: random.Random) -> bytes:
    return mutate_sealed(data, rng, "manifest")


def check(data: bytes) -> None:
    """Decode as recovery does; what is accepted adds up, and says the same when written again."""
    try:
        header = decode_header(data[:PAGE_BYTES], MANIFEST_MAGIC)
        trailer = decode_trailer(data[-PAGE_BYTES:], MANIFEST_MAGIC, len(data))
        check_header_and_trailer(header, trailer)
        end = trailer.index_offset + trailer.index_bytes
        manifest = decode_manifest(data[trailer.index_offset : end], trailer)
    except (CorruptError, NewerFormatError):
        return
    assert len(manifest.live) == sum(pack.rows for pack in manifest.packs)
    assert len(manifest.heat) == int(manifest.live.sum()) == manifest.blocks
    assert bool(np.isfinite(manifest.heat).all())
    assert bool((manifest.heat >= 0).all())
    numbers = [pack.sequence for pack in manifest.packs]
    assert numbers == sorted(set(numbers)), "a pack is named twice"
    assert all(rows.stop >= rows.start for rows in manifest.rows_of_packs())
    body, raw_bytes = encode_manifest(manifest)
    second = FileTrailer(header, PAGE_BYTES, len(body), raw_bytes, index_digest(body), len(numbers))
    again = decode_manifest(body, second)
    assert again.packs == manifest.packs
    assert np.array_equal(again.live, manifest.live)
    assert np.array_equal(again.heat, manifest.heat), "heat drifts from snapshot to snapshot"
    assert (again.incarnations, again.fingerprints) == (
        manifest.incarnations,
        manifest.fingerprints,
    )
