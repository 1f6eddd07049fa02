"""Pack index, manifest and the pages around them: every byte flipped, every length cut."""

from __future__ import annotations

import numpy as np
import pytest
import xxhash
import zstandard
from repository_kit import content, table_of

from snapd.blocks import BlockTable
from snapd.errors import CorruptError, NewerFormatError
from snapd.formats.manifest import (
    Manifest,
    ManifestPack,
    decode_manifest,
    encode_manifest,
    quantise_heat,
    restore_heat,
)
from snapd.formats.pack import PackIndex, PackSection, decode_pack_index, encode_pack_index
from snapd.formats.removals import Removals
from snapd.formats.sealed import (
    FORMAT_VERSION,
    HEADER_DTYPE,
    MANIFEST_MAGIC,
    PACK_MAGIC,
    PAGE_BYTES,
    TRAILER_DTYPE,
    FileHeader,
    FileTrailer,
    decode_header,
    decode_trailer,
    encode_header,
    encode_trailer,
    index_digest,
)
from snapd.formats.sections import Encoding, Sections, encode_sections
from snapd.formats.tables import Incarnation

HEADER = FileHeader(PACK_MAGIC, b"r" * 16, b"p" * 16, 7)
VERDICTS = (CorruptError, NewerFormatError)


def index_of(rows: int = 5, removed: int = 2) -> PackIndex:
    keys = [b"key-%d" % n for n in range(rows)]
    blocks = table_of(keys, [content(key, 1, 5000) for key in keys], sequence=9, fingerprint=3)
    blocks = blocks.with_columns(
        stored_size=blocks.size,
        pack=np.full(rows, 7),
        pack_offset=PAGE_BYTES + 8192 * np.arange(rows),
        parent=np.arange(rows),
        group=np.arange(rows),
    )
    gone = [b"gone-%d" % n for n in range(removed)]
    return PackIndex(
        blocks,
        Removals.of_blocks(table_of(gone, [b"x"] * removed, sequence=4)),
        epoch=2,
        incarnations=(Incarnation(1, b"s" * 16, 0), Incarnation(2, b"t" * 16, 1)),
        fingerprints={3: "model/bf16", 9: "ünï"},
    )


def sealed(index: PackIndex, **changes: int) -> tuple[bytes, FileTrailer]:
    """An index and a trailer that fits it."""
    raw, raw_bytes = encode_pack_index(index)
    end = PAGE_BYTES + 8192 * max(5, len(index.blocks))
    fields = {"index_offset": end, "raw_bytes": raw_bytes, "rows": len(index.blocks), **changes}
    return raw, FileTrailer(
        header=HEADER, index_bytes=len(raw), index_digest=index_digest(raw), **fields
    )


def same(left: BlockTable, right: BlockTable) -> bool:
    return left.keys.to_list() == right.keys.to_list() and all(
        bool((getattr(left, name) == getattr(right, name)).all())
        for name in ("epoch", "incarnation", "sequence", "size", "stored_size", "codec",
                     "checksum", "fingerprint", "parent", "group", "pin", "heat", "pack",
                     "pack_offset", "key_hash")
    )  # fmt: skip


def test_a_pack_index_comes_back() -> None:
    index = index_of()
    back = decode_pack_index(*sealed(index))
    assert same(back.blocks, index.blocks)
    assert back.removals.keys.to_list() == index.removals.keys.to_list()
    assert (back.removals.sequence == 4).all()
    assert (back.epoch, back.incarnations, back.fingerprints) == (
        index.epoch,
        index.incarnations,
        index.fingerprints,
    )


def test_an_empty_pack_index_comes_back() -> None:
    back = decode_pack_index(*sealed(index_of(0, 0)))
    assert len(back.blocks) == len(back.removals) == 0


def test_header_and_trailer_come_back() -> None:
    assert decode_header(encode_header(HEADER), PACK_MAGIC) == HEADER
    raw, trailer = sealed(index_of())
    size = trailer.index_offset + len(raw) + PAGE_BYTES
    assert decode_trailer(encode_trailer(trailer), PACK_MAGIC, size) == trailer


@pytest.mark.parametrize("mask", [0x01, 0x80, 0xFF])
def test_every_flipped_byte_of_header_and_trailer_is_caught(mask: int) -> None:
    _, trailer = sealed(index_of())
    size = trailer.index_offset + trailer.index_bytes + PAGE_BYTES
    header_page, trailer_page = encode_header(HEADER), encode_trailer(trailer)
    for at in range(PAGE_BYTES):
        for page, decode in (
            (header_page, lambda raw: decode_header(raw, PACK_MAGIC)),
            (trailer_page, lambda raw: decode_trailer(raw, PACK_MAGIC, size)),
        ):
            bad = bytearray(page)
            bad[at] ^= mask
            with pytest.raises(CorruptError):
                decode(bytes(bad))


def test_every_flipped_byte_of_an_index_is_caught() -> None:
    raw, trailer = sealed(index_of())
    for at in range(len(raw)):
        bad = bytearray(raw)
        bad[at] ^= 1 << (at % 8)
        with pytest.raises(CorruptError):
            decode_pack_index(bytes(bad), trailer)


def test_every_flipped_byte_under_a_new_digest_gives_a_verdict_or_a_valid_table() -> None:
    """A digest that was made to fit hides nothing from the checks behind it."""
    raw, trailer = sealed(index_of())
    for at in range(len(raw)):
        for mask in (0x01, 0xFF):
            bad = bytearray(raw)
            bad[at] ^= mask
            fitting = FileTrailer(
                trailer.header,
                trailer.index_offset,
                len(bad),
                trailer.raw_bytes,
                index_digest(bytes(bad)),
                trailer.rows,
            )
            try:
                index = decode_pack_index(bytes(bad), fitting)
            except VERDICTS:
                continue
            assert len(index.blocks) == trailer.rows
            assert (index.blocks.pack_offset % PAGE_BYTES == 0).all()


def test_every_truncation_is_caught() -> None:
    raw, trailer = sealed(index_of())
    for length in range(len(raw)):
        with pytest.raises(CorruptError):
            decode_pack_index(raw[:length], trailer)
    page = encode_header(HEADER)
    for length in range(PAGE_BYTES):
        with pytest.raises(CorruptError):
            decode_header(page[:length], PACK_MAGIC)


@pytest.mark.parametrize("field", ["format_version", "features"])
def test_a_newer_file_is_told_from_a_damaged_one(field: str) -> None:
    record = np.frombuffer(encode_header(HEADER), HEADER_DTYPE).copy()
    record[field] = FORMAT_VERSION + 1 if field == "format_version" else 1 << 31
    body = record.tobytes()[: PAGE_BYTES - 8]
    with pytest.raises(CorruptError):
        decode_header(record.tobytes(), PACK_MAGIC)
    page = body + xxhash.xxh3_64_intdigest(body).to_bytes(8, "little")
    with pytest.raises(NewerFormatError, match="newer"):
        decode_header(page, PACK_MAGIC)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("index_offset", 0),
        ("index_offset", 4097),
        ("index_offset", 2**64 - 4096),
        ("index_bytes", 2**64 - 4096),
        ("index_bytes", 4095),
    ],
)
def test_lengths_in_a_trailer_are_checked_against_the_file(field: str, value: int) -> None:
    raw, trailer = sealed(index_of())
    size = trailer.index_offset + len(raw) + PAGE_BYTES
    record = np.frombuffer(encode_trailer(trailer), TRAILER_DTYPE).copy()
    record[field] = value
    body = record.tobytes()[: PAGE_BYTES - 8]
    page = body + xxhash.xxh3_64_intdigest(body).to_bytes(8, "little")
    with pytest.raises(CorruptError, match="does not fit"):
        decode_trailer(page, PACK_MAGIC, size)


BAD_COLUMNS = {
    "overlap": ("pack_offset", 4096 + 8192 * np.array([0, 1, 1, 3, 4]), CorruptError),
    "overlap by a page": ("pack_offset", 4096 * np.array([1, 2, 5, 7, 9]), CorruptError),
    "in the header": ("pack_offset", 8192 * np.arange(5), CorruptError),
    "not aligned": ("pack_offset", 4100 + 8192 * np.arange(5), CorruptError),
    "in the index": ("pack_offset", 4096 + 8192 * np.arange(1, 6), CorruptError),
    "wraps around": ("pack_offset", np.array([1, 3, 5, 7, 2**52 - 1]) * 4096, CorruptError),
    "no size": ("size", np.array([0, 5000, 5000, 5000, 5000]), CorruptError),
    "two sizes": ("stored_size", np.full(5, 4000), CorruptError),
    "huge": ("size", np.full(5, 2**41), CorruptError),
    "codec": ("codec", np.full(5, 9), NewerFormatError),
    "later epoch": ("epoch", np.full(5, 3), CorruptError),
    "fingerprint": ("fingerprint", np.full(5, 4), CorruptError),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_COLUMNS)
def test_columns_that_cannot_be_are_refused(name: str) -> None:
    column, values, verdict = BAD_COLUMNS[name]
    index = index_of()
    bad = PackIndex(
        index.blocks.with_columns(**{column: values}),
        index.removals,
        index.epoch,
        index.incarnations,
        index.fingerprints,
    )
    with pytest.raises(verdict):
        decode_pack_index(*sealed(bad))


def test_more_rows_than_the_data_area_has_pages_are_refused_before_anything_is_read() -> None:
    with pytest.raises(CorruptError, match="do not fit"):
        decode_pack_index(*sealed(index_of(), rows=2**40))


def test_unknown_sections_are_skipped_if_optional_and_refused_if_required() -> None:
    known = {1: np.arange(3, dtype=np.uint64)}
    extra = {**known, 999: np.arange(9, dtype=np.uint8)}
    assert 999 in Sections(encode_sections(extra, optional=[999]), [1])
    with pytest.raises(NewerFormatError, match="999"):
        Sections(encode_sections(extra), [1])


def test_a_decompression_bomb_is_refused_by_its_claim() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 24))
    raw = bytearray(encode_sections({1: np.zeros(4096, np.uint8)}))
    sections = Sections(bytes(raw), [1])
    stored = int(sections._entries[1]["stored_bytes"])
    start = int(sections._entries[1]["offset"])
    assert int(sections._entries[1]["encoding"]) == Encoding.ZSTD
    assert stored < 100
    rebuilt = bytearray(raw[:start] + bomb)
    rebuilt[16:24] = len(rebuilt).to_bytes(8, "little")
    rebuilt[24 + 16 : 24 + 24] = len(bomb).to_bytes(8, "little")
    with pytest.raises(CorruptError, match="decompress"):
        Sections(bytes(rebuilt), [1]).column(1, np.uint8, 4096)


@pytest.mark.parametrize("dtype", ["u1", "<u2", "<u4", "<u8", "<f4"])
@pytest.mark.parametrize("rows", [0, 1, 3, 1000])
def test_columns_of_every_type_come_back(dtype: str, rows: int) -> None:
    rising = np.arange(rows).astype(dtype)
    noise = np.frombuffer(np.random.default_rng(3).bytes(rows * rising.itemsize), dtype)
    raw = encode_sections({1: rising, 2: noise})
    sections = Sections(raw, [1, 2])
    assert sections.column(1, dtype, rows).tobytes() == rising.tobytes()
    assert sections.column(2, dtype, rows).tobytes() == noise.tobytes()
    with pytest.raises(CorruptError):
        sections.column(1, dtype, rows + 1)


def manifest_of() -> Manifest:
    live = np.array([True, False, True, True, False, True, True])
    return Manifest(
        epoch=3,
        pack_floor=9,
        pack_last=11,
        journal_floor=4,
        committed_ns=1_700_000_000_000_000_000,
        bytes=12345,
        packs=(
            ManifestPack(3, b"a" * 16, b"d" * 16, 4),
            ManifestPack(11, b"b" * 16, b"e" * 16, 3),
        ),
        live=live,
        heat=np.array([0, 0.5, 1, 7, 1000], np.float32),
        incarnations=(Incarnation(1, b"s" * 16, 0),),
        fingerprints={1: "x"},
    )


def sealed_manifest(manifest: Manifest) -> tuple[bytes, FileTrailer]:
    raw, raw_bytes = encode_manifest(manifest)
    header = FileHeader(MANIFEST_MAGIC, b"r" * 16, b"m" * 16, 5)
    digest = index_digest(raw)
    return raw, FileTrailer(header, PAGE_BYTES, len(raw), raw_bytes, digest, len(manifest.packs))


def test_a_manifest_comes_back() -> None:
    manifest = manifest_of()
    back = decode_manifest(*sealed_manifest(manifest))
    assert (back.live == manifest.live).all()
    assert np.allclose(back.heat, manifest.heat, rtol=0.05)
    for name in ("epoch", "pack_floor", "pack_last", "journal_floor", "committed_ns", "bytes",
                 "packs", "incarnations", "fingerprints", "blocks"):  # fmt: skip
        assert getattr(back, name) == getattr(manifest, name), name


def test_every_flipped_byte_and_every_truncation_of_a_manifest_is_caught() -> None:
    raw, trailer = sealed_manifest(manifest_of())
    for at in range(len(raw)):
        bad = bytearray(raw)
        bad[at] ^= 0x10
        with pytest.raises(CorruptError):
            decode_manifest(bytes(bad), trailer)
        with pytest.raises(CorruptError):
            decode_manifest(raw[:at], trailer)
        fitting = FileTrailer(
            trailer.header, PAGE_BYTES, len(bad), trailer.raw_bytes, index_digest(bytes(bad)), 2
        )
        try:
            assert len(decode_manifest(bytes(bad), fitting).live) == 7
        except VERDICTS:
            continue


def test_heat_is_kept_within_five_percent_and_in_order() -> None:
    heat = np.concatenate([[0.0], np.geomspace(2e-5, 3e4, 5000)]).astype(np.float32)
    back = restore_heat(quantise_heat(heat))
    assert back[0] == 0
    assert np.allclose(back[1:], heat[1:], rtol=0.05)
    assert (np.diff(back) >= 0).all()
    odd = quantise_heat(np.array([np.nan, np.inf, -1, 1e-30], np.float32))
    assert odd.tolist() == [0, 255, 0, 0]


def test_section_numbers_never_change() -> None:
    """A number stands for the same section in every version."""
    numbers = {section.name: section.value for section in PackSection}
    assert numbers["KEY_HEAP"] == 3
    assert numbers["PACK_OFFSET"] == 17
    assert numbers["REMOVAL_SEQUENCE"] == 53
    assert len(set(numbers.values())) == len(numbers)
