"""Segments that somebody made or changed, through the adoption that a store starts with.

A segment is believed field by field: whatever is in it, a store starts on it or refuses it with a
sentence, serves each block with its own bytes or not at all, and can take new ones.

    SNAPD_HOSTILE_CASE='<its name>' .venv/bin/pytest --long tests/hostile/test_hostile_segments.py
"""

from __future__ import annotations

import logging
import os
import random
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import forgery
import numpy as np
import pytest
import xxhash
from fault_ledger import FaultClass, case
from hostile_exam import deadline
from store_kit import LocalStore, content, shared_memory_path

from snapd.errors import NewerFormatError, SegmentError, SettingError, SnapdError
from snapd.formats.segment import (
    HEADER_BYTES,
    HEADER_DTYPE,
    LAYOUT_VERSION,
    SLOT_DTYPE,
    STATE_DTYPE,
    STATE_OFFSETS,
    Geometry,
    SlotState,
    decode_header,
    encode_header,
    seal_slots,
)

ONLY = os.environ.get("SNAPD_HOSTILE_CASE", "")
SIZES = {"global_segment_size": 1 << 16, "segment_blocks_max": 32}
BLOCKS = {b"key-%d" % number: content(number, 1000 + 900 * number) for number in range(6)}
REMOVED = b"removed"
Change = Callable[[bytearray], None]


@dataclass(frozen=True, slots=True)
class Altered:
    """One case."""

    name: str
    change: Change
    forged: bool = False
    """With the right checksums: then blocks may be lost, or be another's, but never torn."""


@pytest.fixture(scope="module")
def image() -> Iterator[bytes]:
    """A segment that a store was killed on: blocks, a removal not yet durable, one unfinished."""
    logging.disable(logging.CRITICAL)
    with shared_memory_path() as path:
        store = LocalStore(path, **SIZES)
        client = store.client()
        client.put(BLOCKS | {REMOVED: b"r" * 5000})
        client.remove([REMOVED], force=True)
        client.reserve([b"unfinished"], [4096])
        yield Path(path).read_bytes()
        store.close()
    logging.disable(logging.NOTSET)


def set_bytes(offset: int, data: bytes) -> Change:
    def change(raw: bytearray) -> None:
        raw[offset : offset + len(data)] = data

    return change


def set_everywhere(offsets: list[int], data: bytes) -> Change:
    def change(raw: bytearray) -> None:
        for offset in offsets:
            set_bytes(offset, data)(raw)

    return change


def flips(image: bytes) -> Iterator[Altered]:
    """Every byte of the header and its states, of the slots in use, of the keys; some of the
    rest."""
    geometry = decode_header(image[:HEADER_BYTES])
    table = np.frombuffer(image, SLOT_DTYPE, geometry.slot_count, geometry.slots_offset)
    used = np.flatnonzero(table["state"]).tolist()
    places = list(range(HEADER_DTYPE.itemsize))
    for state in STATE_OFFSETS:
        places += range(state, state + STATE_DTYPE.itemsize)
    for row in [*used, used[-1] + 1]:
        start = geometry.slots_offset + row * SLOT_DTYPE.itemsize
        places += range(start, start + SLOT_DTYPE.itemsize)
    heap = geometry.key_heap_offset
    places += range(heap, heap + 32 * (len(used) + 1))
    places += range(HEADER_DTYPE.itemsize, len(image), 211)
    for offset in places:
        for mask in (0x01, 0x80, 0xFF):
            yield Altered(
                f"segment: byte {offset} xor {mask:#04x}",
                set_bytes(offset, bytes([image[offset] ^ mask])),
            )


def forged_fields(image: bytes) -> Iterator[Altered]:
    """Every field of header, states and slots, with the checksums made right again."""
    geometry = decode_header(image[:HEADER_BYTES])
    yield from _forged(image, "header", [0], HEADER_DTYPE, _seal_header)
    yield from _forged(image, "both states", list(STATE_OFFSETS), STATE_DTYPE, _seal_record)
    yield from _forged(image, "one state", [STATE_OFFSETS[0]], STATE_DTYPE, _seal_record)
    table = np.frombuffer(image, SLOT_DTYPE, geometry.slot_count, geometry.slots_offset)
    for row in np.flatnonzero(table["state"]).tolist():
        start = geometry.slots_offset + row * SLOT_DTYPE.itemsize
        yield from _forged(image, f"slot {row}", [start], SLOT_DTYPE, seal_slots)
    used = np.flatnonzero(table["state"] == SlotState.PUBLISHED).tolist()
    for one in used:
        for other in used:
            if one != other:
                target = geometry.slots_offset + other * SLOT_DTYPE.itemsize
                yield Altered(
                    f"segment: slot {other} is a copy of slot {one}",
                    set_bytes(target, table[one].tobytes()),
                    forged=True,
                )


def _forged(
    image: bytes,
    label: str,
    offsets: list[int],
    dtype: np.dtype[np.void],
    seal: Callable[[np.ndarray], None],
) -> Iterator[Altered]:
    record = np.frombuffer(image, dtype, 1, offsets[0])
    for field in dtype.names or ():
        if field in {"checksum", "preamble_checksum", "slot_checksum"}:
            continue
        current = record[0][field]
        values: list[int | bytes] = []
        if current.shape:
            values = [bytes(current.nbytes), b"\xff" * current.nbytes]
        else:
            values += forgery.telling_values(int(current), current.dtype.itemsize)
        for value in values:
            changed = record.copy()
            forgery.set_field(changed[0], field, value)
            seal(changed)
            shown = value if isinstance(value, int) else value[:1]
            yield Altered(
                f"segment: {label}.{field} = {shown!r}",
                set_everywhere(offsets, changed.tobytes()),
                forged=True,
            )


def _seal_record(record: np.ndarray) -> None:
    record["checksum"] = xxhash.xxh3_64_intdigest(record.tobytes()[:-8])


def _seal_header(record: np.ndarray) -> None:
    preamble = xxhash.xxh3_64_intdigest(record.tobytes()[:12])
    record["preamble_checksum"] = preamble & 0xFFFFFFFF
    _seal_record(record)


def lengths(image: bytes) -> Iterator[Altered]:
    """Cut at every page and beside it, in the header and in the slots at every field; longer."""
    near = {page + step for page in range(0, len(image) + 1, 4096) for step in (-1, 0, 1)}
    near |= set(range(0, HEADER_DTYPE.itemsize, 8)) | {1024, 1088, 2048, 2112}
    for length in sorted(one for one in near if 0 <= one < len(image)):
        yield Altered(
            f"segment: cut to {length}", lambda raw, to=length: raw.__delitem__(slice(to, None))
        )
    for more in (1, 4096, 1 << 20):
        yield Altered(f"segment: {more} bytes longer", lambda raw, by=more: raw.extend(bytes(by)))


def examine(path: str, one: Altered) -> None:
    """Start a store twice; what it serves, and whether it takes a new block."""
    for start in (1, 2):
        try:
            store = LocalStore(path, **SIZES)
        except (SegmentError, SettingError, NewerFormatError):
            return
        try:
            client = store.client()
            for key, data in zip(BLOCKS, client.get(list(BLOCKS)), strict=True):
                known = set(BLOCKS.values()) if one.forged else {BLOCKS[key]}
                assert data is None or data in known, f"{key!r} has bytes that it does not hold"
            if not one.forged:
                assert client.get([REMOVED]) == [None], "removed and back"
            fresh = b"fresh-%d" % start
            codes = client.put({fresh: b"f" * 3000})
            if codes[fresh] == 0:
                assert client.get([fresh]) == [b"f" * 3000], "a new block does not come back"
            client.close()
        finally:
            store.close()


def run(cases: Iterator[Altered], image: bytes, count: int) -> int:
    chosen = [one for one in cases if ONLY in one.name]
    if count and not ONLY:
        chosen = random.Random(5).sample(chosen, min(count, len(chosen)))
    for one in chosen:
        again = (
            f"SNAPD_HOSTILE_CASE={one.name!r} .venv/bin/pytest --long "
            "tests/hostile/test_hostile_segments.py"
        )
        raw = bytearray(image)
        one.change(raw)
        with shared_memory_path() as path:
            Path(path).write_bytes(raw)
            try:
                with case(FaultClass.HOSTILE_FILE, one.name), deadline(one.name):
                    examine(path, one)
            except Exception as error:
                raise AssertionError(
                    f"{one.name}: {type(error).__name__}: {error}\nrepeat with: {again}"
                ) from error
    return len(chosen)


LISTS = {"flips": (flips, 40), "forged": (forged_fields, 60), "lengths": (lengths, 10)}


@pytest.mark.parametrize("name", LISTS)
def test_a_sample_of_hostile_segments(name: str, image: bytes) -> None:
    make, count = LISTS[name]
    assert run(make(image), image, count)


@pytest.mark.long
@pytest.mark.parametrize("name", LISTS)
def test_every_hostile_segment(name: str, image: bytes) -> None:
    make, _ = LISTS[name]
    run(make(image), image, 0)


# --- what is no segment at all --------------------------------------------------------------------


def refused(path: str, name: str, error: type[SnapdError]) -> None:
    with (
        case(FaultClass.HOSTILE_FILE, f"segment: {name}"),
        deadline(name),
        pytest.raises(error),
    ):
        LocalStore(path, **SIZES).close()


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    """Anybody may leave one in /dev/shm; an empty file behind it would be overwritten."""
    victim = tmp_path / "victim"
    victim.touch()
    with shared_memory_path() as path:
        os.symlink(victim, path)
        refused(path, "a symbolic link", SegmentError)
    assert victim.read_bytes() == b""


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with shared_memory_path() as path:
        os.mkfifo(path)
        refused(path, "a FIFO", SegmentError)
    with shared_memory_path() as path:
        os.mkdir(path)
        refused(path, "a directory", SegmentError)
        os.rmdir(path)
    with shared_memory_path() as path:
        Path(path).write_bytes(secrets.token_bytes(8192))
        refused(path, "somebody else's file", SettingError)
        assert len(Path(path).read_bytes()) == 8192


def test_a_segment_of_holes_asks_for_nothing(image: bytes) -> None:
    """A right header over a sparse file: hundreds of MiB of tables, made for nothing."""
    geometry = Geometry.plan(b"a" * 16, 1 << 20, 1 << 22)
    with shared_memory_path() as path:
        page = bytearray(encode_header(geometry))
        for offset in STATE_OFFSETS:
            page[offset : offset + STATE_DTYPE.itemsize] = image[
                offset : offset + STATE_DTYPE.itemsize
            ]
        with open(path, "wb") as file:
            file.write(page)
            file.truncate(geometry.file_bytes)
        with case(FaultClass.HOSTILE_FILE, "segment: holes for tables"), deadline("holes"):
            store = LocalStore(path, **SIZES)
            try:
                assert store.segment.created, "it was adopted"
            finally:
                store.close()
        assert os.path.exists(path + ".bad")


def test_a_newer_layout_is_refused_and_left_alone(image: bytes) -> None:
    geometry = decode_header(image[:HEADER_BYTES])
    newer = bytearray(image)
    end = HEADER_DTYPE.itemsize
    newer[:end] = encode_header(geometry, LAYOUT_VERSION + 1)[:end]
    with shared_memory_path() as path:
        Path(path).write_bytes(newer)
        with (
            case(FaultClass.OTHER_VERSION, "segment of a newer layout"),
            pytest.raises(NewerFormatError),
        ):
            LocalStore(path, **SIZES)
        assert Path(path).read_bytes() == newer
        assert not os.path.exists(path + ".bad")
