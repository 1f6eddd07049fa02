"""The optional section of a manifest: here it counts, elsewhere it is passed over."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from snapd.errors import CorruptError
from snapd.formats.manifest import (
    MANIFEST_META_DTYPE,
    Manifest,
    ManifestSection,
    decode_manifest,
    encode_manifest,
)
from snapd.formats.sealed import (
    MANIFEST_MAGIC,
    PAGE_BYTES,
    FileHeader,
    FileTrailer,
    index_digest,
)
from snapd.formats.sections import Sections, encode_sections

FIRST_VERSION = (1, 2, 3, 4, 32, 33, 34)
"""Every section that a reader knew before there was a budget."""

EMPTY = Manifest(
    epoch=0,
    pack_floor=0,
    pack_last=0,
    journal_floor=0,
    committed_ns=7,
    bytes=0,
    packs=(),
    live=np.zeros(0, np.bool_),
    heat=np.zeros(0, np.float32),
    incarnations=(),
    fingerprints={},
)


def trailer_of(raw: bytes, raw_bytes: int) -> FileTrailer:
    header = FileHeader(MANIFEST_MAGIC, b"r" * 16, b"m" * 16, 5)
    return FileTrailer(header, PAGE_BYTES, len(raw), raw_bytes, index_digest(raw), 0)


@pytest.mark.parametrize("debt", [0, 1, 12345, (1 << 64) - 1])
def test_a_debt_comes_back(debt: int) -> None:
    raw, raw_bytes = encode_manifest(replace(EMPTY, write_debt_bytes=debt))
    assert decode_manifest(raw, trailer_of(raw, raw_bytes)).write_debt_bytes == debt


def test_a_reader_from_before_passes_over_it() -> None:
    raw, raw_bytes = encode_manifest(replace(EMPTY, write_debt_bytes=12345))
    sections = Sections(raw, FIRST_VERSION)
    assert sections.raw_bytes == raw_bytes, "such a reader checks this sum"
    assert sections.column(ManifestSection.META, MANIFEST_META_DTYPE, 1)["committed_ns"] == 7


def test_a_manifest_from_before_owes_nothing() -> None:
    raw, raw_bytes = encode_manifest(EMPTY)
    assert ManifestSection.BUDGET not in Sections(raw, FIRST_VERSION)
    assert decode_manifest(raw, trailer_of(raw, raw_bytes)).write_debt_bytes == 0


def test_a_broken_section_is_corrupt_and_no_number() -> None:
    raw, _ = encode_manifest(EMPTY)
    sections = Sections(raw, FIRST_VERSION)
    items = {1: MANIFEST_META_DTYPE.itemsize, 2: 40, 3: 1, 4: 1, 32: 24, 33: 4, 34: 1}
    columns = {
        kind: sections.column(kind, f"V{size}", sections.items(kind, size))
        for kind, size in items.items()
    }
    columns[ManifestSection.BUDGET] = np.zeros(3, np.uint8)
    raw = encode_sections(columns, [ManifestSection.BUDGET])
    raw_bytes = sum(column.nbytes for column in columns.values())
    with pytest.raises(CorruptError):
        decode_manifest(raw, trailer_of(raw, raw_bytes))
