"""Small files that ask for much: memory, time. Each is opened in a process of its own, with a limit
on its address space, and its cost is measured."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import forgery
import numpy as np
import pytest
import zstandard
from fault_ledger import FaultClass, case
from forgery import Columns
from hostile_cases import Layout
from sample_repository import Expected, build_sample

from snapd.blocks import Codec
from snapd.formats.journal import RECORD_DTYPE, RECORD_MAGIC
from snapd.formats.layout import encode_record
from snapd.formats.manifest import ManifestSection
from snapd.formats.pack import PackSection
from snapd.formats.sealed import PAGE_BYTES, padded
from snapd.formats.sections import (
    ENTRY_DTYPE,
    HEAD_DTYPE,
    REQUIRED,
    SECTIONS_MAGIC,
    Encoding,
    encode_sections,
)

EXAM = Path(__file__).parents[1] / "support" / "hostile_exam.py"
ADDRESS_BYTES_MAX = 6 << 30
"""Stops what would take the machine with it; NumPy alone reserves more than a GiB of addresses."""
GROWN_KIB_MAX = 200 * 1024
SECONDS_MAX = 120

Bomb = Callable[[Path], None]


def examine(root: Path) -> dict[str, object]:
    """Open, read, verify and go on in a child; its measurements."""
    ended = subprocess.run(
        [sys.executable, str(EXAM), str(root)],
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
        preexec_fn=partial(
            resource.setrlimit, resource.RLIMIT_AS, (ADDRESS_BYTES_MAX, ADDRESS_BYTES_MAX)
        ),
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    result: dict[str, object] = json.loads(ended.stdout)
    return result


def zeros(length: int, *, sized: bool) -> bytes:
    """A zstd frame of this many zeros; with its size in its header or without."""
    compressor = zstandard.ZstdCompressor(level=1)
    size = length if sized else -1
    chunk = bytes(min(length, 1 << 24))
    maker = compressor.compressobj(size=size)
    pieces = [maker.compress(chunk) for _ in range(length // len(chunk))]
    return b"".join([*pieces, maker.flush()])


# --- blocks ---------------------------------------------------------------------------------------


def plant_frame(frame: bytes, name: str, root: Path) -> None:
    """Let the first compressed block of a pack be this frame, as far as it has room."""
    path = root / name
    sealed = forgery.Sealed.read(path)
    columns = forgery.columns_of(sealed.index, "pack")
    row = int(np.flatnonzero(columns[PackSection.CODEC] == Codec.ZSTD)[0])
    # Behind the blocks that are there, so that there is always room.
    offset = PAGE_BYTES + len(sealed.data)
    sealed.data += frame + bytes(padded(len(frame)) - len(frame))
    columns[PackSection.PACK_OFFSET][row] = offset
    columns[PackSection.STORED_SIZE][row] = len(frame)
    columns[PackSection.SIZE][row] = max(int(columns[PackSection.SIZE][row]), len(frame))
    sealed.trailer["index_offset"] = PAGE_BYTES + len(sealed.data)
    sealed.write(path)
    forgery.replace_index(
        path, encode_sections(columns), sum(column.nbytes for column in columns.values())
    )


def frame_bombs() -> dict[str, bytes]:
    small = zeros(1 << 14, sized=True)
    # The descriptor: content size of 8 bytes, single segment, dictionary id of 4 bytes.
    head = b"\x28\xb5\x2f\xfd"
    return {
        "a GiB, its size unsaid": zeros(1 << 30, sized=False),
        "a GiB, its size said": zeros(1 << 30, sized=True),
        "a size of 2^62": head + b"\xe0" + (1 << 62).to_bytes(8, "little") + b"\x01\x00\x00",
        "a dictionary that nobody has": head + b"\xe3" + b"\x07\0\0\0" + bytes(8) + b"\x01\0\0",
        "a window of an exabyte": head + b"\x00\xf8" + b"\x01\x00\x00",
        "ten thousand frames": small * 10_000,
        "ten thousand empty frames": zstandard.ZstdCompressor().compress(b"") * 10_000,
        "skippable frames": b"\x50\x2a\x4d\x18\x04\0\0\0abcd" * 1000,
        "half a frame": small[: len(small) // 2],
        "no frame": b"\x28\xb5\x2f\xfd",
    }


FRAMES = frame_bombs()


@pytest.fixture
def sample(tmp_path: Path) -> tuple[Path, Expected, Layout]:
    root = tmp_path / "repository"
    return root, build_sample(root), Layout.of(root)


def check_cost(
    name: str,
    sample: tuple[Path, Expected, Layout],
    lost_max: int,
    grown_kib_max: int = GROWN_KIB_MAX,
) -> None:
    """At most so many blocks lost, and no more memory than a small repository needs."""
    root, expected, _ = sample
    with case(FaultClass.HOSTILE_FILE, f"bomb: {name}"):
        result = examine(root)
        grown = result["grown_kib"]
        assert isinstance(grown, int)
        assert grown < grown_kib_max, f"{name} cost {grown} KiB"
        for key in ("seen", "first", "second"):
            found = result[key]
            assert isinstance(found, int)
            assert found >= len(expected.live) - lost_max, f"{name}: {result}"


FAST_FRAMES = {"a GiB, its size unsaid"}


@pytest.mark.parametrize("name", sorted(FAST_FRAMES))
def test_a_block_that_expands_without_end(name: str, sample: tuple[Path, Expected, Layout]) -> None:
    plant_frame(FRAMES[name], sample[2].packs[3], sample[0])
    check_cost(f"block is {name}", sample, lost_max=1)


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(FRAMES.keys() - FAST_FRAMES))
def test_every_block_that_expands_without_end(
    name: str, sample: tuple[Path, Expected, Layout]
) -> None:
    plant_frame(FRAMES[name], sample[2].packs[3], sample[0])
    check_cost(f"block is {name}", sample, lost_max=1)


# --- indexes --------------------------------------------------------------------------------------


def directory_of(sections: list[tuple[int, int, bytes, int]]) -> bytes:
    """An index of (kind, item bytes, bytes as stored, length that they claim), all zstd."""
    offset = HEAD_DTYPE.itemsize + ENTRY_DTYPE.itemsize * len(sections)
    entries = []
    for kind, item_bytes, stored, raw_bytes in sections:
        entries.append(
            encode_record(
                ENTRY_DTYPE,
                kind=kind,
                flags=REQUIRED,
                encoding=Encoding.ZSTD,
                item_bytes=item_bytes,
                offset=offset,
                stored_bytes=len(stored),
                raw_bytes=raw_bytes,
            )
        )
        offset += len(stored)
    head = encode_record(
        HEAD_DTYPE, magic=SECTIONS_MAGIC, sections=len(sections), body_bytes=offset
    )
    body = b"".join([head, *entries, *(stored for _, _, stored, _ in sections)])
    return body + bytes(padded(len(body)) - len(body))


def index_bomb(path: Path, bombs: dict[int, tuple[int, bytes, int]]) -> None:
    """Replace sections of a file by (item bytes, bytes as stored, length that they claim)."""
    columns = forgery.columns_of(forgery.Sealed.read(path).index, forgery.kind_of(path))
    compressor = zstandard.ZstdCompressor()
    sections = []
    for kind, column in columns.items():
        raw = column.tobytes()
        found = (column.dtype.itemsize, compressor.compress(raw), len(raw))
        sections.append((kind, *bombs.get(kind, found)))
    forgery.replace_index(path, directory_of(sections), sum(length for *_, length in sections))


def one_gib_of(kind: int, item_bytes: int, *, sized: bool, path: Path) -> None:
    index_bomb(path, {kind: (item_bytes, zeros(1 << 30, sized=sized), 1 << 30)})


def claimed(kind: int, path: Path, *, sized: bool = False) -> None:
    """A section that holds a GiB and claims to hold what it should."""
    columns = forgery.columns_of(forgery.Sealed.read(path).index, forgery.kind_of(path))
    column = columns[kind]
    index_bomb(path, {kind: (column.dtype.itemsize, zeros(1 << 30, sized=sized), column.nbytes)})


INDEX_BOMBS: dict[str, Callable[[Path], None]] = {
    "keys of a GiB": lambda path: one_gib_of(PackSection.KEY_HEAP, 1, sized=True, path=path),
    "keys of a GiB, unsaid": lambda path: claimed(PackSection.KEY_HEAP, path),
    "hashes of a GiB": lambda path: one_gib_of(PackSection.KEY_HASH, 8, sized=True, path=path),
    "hashes of a GiB, unsaid": lambda path: claimed(PackSection.KEY_HASH, path),
    "hashes of a GiB, denied": lambda path: claimed(PackSection.KEY_HASH, path, sized=True),
    "incarnations of a GiB": lambda path: one_gib_of(
        PackSection.INCARNATIONS, 24, sized=True, path=path
    ),
    "labels of a GiB": lambda path: one_gib_of(
        PackSection.FINGERPRINT_LABELS, 1, sized=True, path=path
    ),
    "removals of a GiB": lambda path: one_gib_of(
        PackSection.REMOVAL_KEY_HEAP, 1, sized=True, path=path
    ),
}


@pytest.mark.parametrize("name", ["keys of a GiB", "hashes of a GiB, denied"])
def test_an_index_that_expands_without_end(
    name: str, sample: tuple[Path, Expected, Layout]
) -> None:
    INDEX_BOMBS[name](sample[0] / sample[2].packs[3])
    check_cost(f"pack index has {name}", sample, lost_max=3)


@pytest.mark.long
@pytest.mark.parametrize("name", INDEX_BOMBS)
def test_every_index_that_expands_without_end(
    name: str, sample: tuple[Path, Expected, Layout]
) -> None:
    INDEX_BOMBS[name](sample[0] / sample[2].packs[3])
    check_cost(f"pack index has {name}", sample, lost_max=3)


# --- tables that are right and long ---------------------------------------------------------------


def many_incarnations(count: int, columns: Columns) -> None:
    """So many segments, each different."""
    kind = int(PackSection.INCARNATIONS)
    table = np.zeros(count, columns[kind].dtype)
    table["ordinal"] = np.arange(1, count + 1)
    table["segment_id"][:, :4] = np.arange(count, dtype="<u4").view(np.uint8).reshape(-1, 4)
    columns[kind] = table


def many_labels(count: int, columns: Columns) -> None:
    """So many fingerprints, each different; the first are those of the blocks."""
    labels = [b"%05d" % number for number in range(count)]
    table = np.zeros(count, columns[int(PackSection.FINGERPRINTS)].dtype)
    table["id"] = np.arange(1, count + 1)
    table["label_bytes"] = 5
    columns[int(PackSection.FINGERPRINTS)] = table
    heap = np.frombuffer(b"".join(labels), np.uint8)
    columns[int(PackSection.FINGERPRINT_LABELS)] = heap.copy()


def many_packs(count: int, columns: Columns) -> None:
    """A manifest that names so many packs that are not there, beside those that are."""
    kind = int(ManifestSection.PACKS)
    table = np.zeros(count, columns[kind].dtype)
    table["sequence"] = 100 + np.arange(count)
    columns[kind] = np.concatenate([columns[kind], table])


def many_rows(rows: int, columns: Columns) -> None:
    """A manifest whose last pack has so many blocks."""
    packs = columns[int(ManifestSection.PACKS)]
    packs["rows"][-1] = rows
    total = int(packs["rows"].sum(dtype=np.int64))
    columns[int(ManifestSection.LIVE)] = np.zeros(-(-total // 8), np.uint8)
    columns[int(ManifestSection.HEAT)] = np.zeros(0, np.uint8)
    columns[int(ManifestSection.META)]["blocks"] = 0


def edit_with_rows(path: Path, edit: Callable[[Columns], None]) -> None:
    """As `edit_sections`, with the trailer's number of packs set right as well."""
    forgery.edit_sections(path, edit)
    rows = len(forgery.columns_of(forgery.Sealed.read(path).index, "manifest")[2])
    forgery.edit_trailer(path, "rows", rows)


LONG_TABLES: dict[str, Bomb] = {
    "pack: as many segments as may be": lambda root: _in_pack(
        root, partial(many_incarnations, 1 << 16)
    ),
    "pack: a million segments": lambda root: _in_pack(root, partial(many_incarnations, 1 << 20)),
    "pack: as many labels as may be": lambda root: _in_pack(root, partial(many_labels, 65_535)),
    "manifest: 20,000 packs": lambda root: _in_manifest(root, partial(many_packs, 20_000)),
    "manifest: two million packs": lambda root: _in_manifest(root, partial(many_packs, 2_000_000)),
    "manifest: two milliard blocks": lambda root: _in_manifest(root, partial(many_rows, 2**31 - 9)),
    "manifest: as many segments as may be": lambda root: _in_manifest(
        root, partial(many_incarnations, 1 << 16)
    ),
}


def _in_pack(root: Path, edit: Callable[[Columns], None]) -> None:
    forgery.edit_sections(root / Layout.of(root).packs[3], edit)


def _in_manifest(root: Path, edit: Callable[[Columns], None]) -> None:
    edit_with_rows(root / Layout.of(root).manifests[-1], edit)


def test_a_table_that_is_too_long(sample: tuple[Path, Expected, Layout]) -> None:
    LONG_TABLES["pack: a million segments"](sample[0])
    check_cost("pack: a million segments", sample, lost_max=3)


@pytest.mark.long
@pytest.mark.parametrize("name", LONG_TABLES)
def test_every_table_that_is_too_long(name: str, sample: tuple[Path, Expected, Layout]) -> None:
    LONG_TABLES[name](sample[0])
    # What packs that are not there say of blocks is lost, and so is their memory's share.
    check_cost(name, sample, lost_max=len(sample[1].live))


# --- sparse files, and many of them ---------------------------------------------------------------


def sparse_pack(root: Path) -> None:
    """A TiB without a byte in between header and trailer, which both have their checksums."""
    name = Layout.of(root).packs[3]
    sealed = forgery.Sealed.read(root / name)
    length = 1 << 40
    index_bytes = 16 << 20
    sealed.trailer["index_offset"] = length - PAGE_BYTES - index_bytes
    sealed.trailer["index_bytes"] = index_bytes
    sealed.trailer["rows"] = (length - index_bytes) // PAGE_BYTES - 2
    sealed.trailer["raw_bytes"] = (1 << 63) - 1
    with (root / name).open("r+b") as file:
        file.truncate(length)
        file.seek(length - PAGE_BYTES)
        file.write(forgery.sealed_page(sealed.trailer.tobytes()))


def test_a_sparse_pack_of_a_tebibyte_asks_for_nothing(
    sample: tuple[Path, Expected, Layout],
) -> None:
    sparse_pack(sample[0])
    check_cost("a sparse pack of a TiB with the right checksums", sample, lost_max=3)


@pytest.mark.long
def test_ten_thousand_strays_cost_nothing(sample: tuple[Path, Expected, Layout]) -> None:
    root = sample[0]
    for directory in ("packs", "manifests", "journal", "quarantine"):
        for number in range(2500):
            (root / directory / f"stray-{number}").touch()
    check_cost("ten thousand strays", sample, lost_max=0)


@pytest.mark.long
def test_ten_thousand_empty_packs_are_counted(sample: tuple[Path, Expected, Layout]) -> None:
    root = sample[0]
    for number in range(10_000):
        (root / "packs" / f"{1000 + number:010d}-{'0' * 32}.pack").touch()
    check_cost("ten thousand empty packs", sample, lost_max=0)


def fake_records(root: Path) -> None:
    """A journal of 8 MiB in which every 40 bytes a record seems to begin, as long as may be."""
    heads = np.zeros((8 << 20) // RECORD_DTYPE.itemsize, RECORD_DTYPE)
    heads["magic"] = np.frombuffer(RECORD_MAGIC, np.uint8)
    heads["kind"] = 1
    left = heads.nbytes - RECORD_DTYPE.itemsize * np.arange(1, len(heads) + 1)
    heads["payload_bytes"] = np.maximum(left - 64, 0)
    name = Layout.of(root).journals[-1]
    page = (root / name).read_bytes()[:PAGE_BYTES]
    (root / name.replace("0002.", "0090.")).write_bytes(page + heads.tobytes())


def test_a_journal_of_fake_records_is_not_hashed_for_ever(
    sample: tuple[Path, Expected, Layout],
) -> None:
    fake_records(sample[0])
    check_cost("a journal of fake records", sample, lost_max=0)


@pytest.mark.long
def test_a_sparse_journal_of_a_tebibyte_costs_what_is_read_of_it(
    sample: tuple[Path, Expected, Layout],
) -> None:
    with (sample[0] / "journal" / "0000000090.journal").open("wb") as file:
        file.truncate(1 << 40)
    check_cost("a sparse journal of a TiB", sample, lost_max=0, grown_kib_max=4 * GROWN_KIB_MAX)
