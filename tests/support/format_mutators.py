"""Changes to sealed files, journals and segments that keep their checksums right, drawn from a
random generator: what lets a fuzzer get behind the checksums."""

from __future__ import annotations

import random
from collections.abc import Callable

import forgery
import numpy as np
from forgery import Sealed, columns_of, sealed_page, set_field, telling_values

from snapd.formats.sealed import HEADER_DTYPE, PAGE_BYTES, TRAILER_DTYPE
from snapd.formats.sections import ENTRY_DTYPE, HEAD_DTYPE, encode_sections

Page = tuple[int, np.dtype[np.void]]


def number(rng: random.Random, current: int, width_bytes: int) -> int:
    """A value for a field: telling, near, or any."""
    chosen = rng.random()
    if chosen < 0.5:
        return rng.choice(telling_values(current, width_bytes))
    if chosen < 0.8:
        return (current + rng.randint(-5, 5)) % (1 << 8 * width_bytes)
    return rng.getrandbits(8 * width_bytes)


def change_record(rng: random.Random, record: np.ndarray, *, spare: tuple[str, ...] = ()) -> None:
    """Change one field of one record, in place."""
    names = [name for name in record.dtype.names or () if name not in spare]
    field = rng.choice(names)
    current = record[field]
    if current.shape:
        raw = bytearray(current.tobytes())
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        set_field(record, field, bytes(raw))
    else:
        set_field(record, field, number(rng, int(current), current.dtype.itemsize))


def change_column(rng: random.Random, column: np.ndarray) -> np.ndarray:
    """A column with an item changed, or of another length or order."""
    if not len(column):
        return np.zeros(rng.randint(1, 3), column.dtype)
    change: Callable[[], np.ndarray] = rng.choice(
        [lambda: _with_item(rng, column)] * 6
        + [
            lambda: column[:-1],
            lambda: np.concatenate([column, column[-1:]]),
            column[::-1].copy,
            lambda: np.repeat(column[:1], len(column)),
            lambda: np.zeros_like(column),
            lambda: column[:0],
        ]
    )
    return change()


def _with_item(rng: random.Random, column: np.ndarray) -> np.ndarray:
    result = column.copy()
    row = rng.randrange(len(result))
    if result.dtype.names is None:
        result[row] = number(rng, int(result[row]), result.dtype.itemsize)
    else:
        change_record(rng, result[row : row + 1][0])
    return result


def mutate_sealed(data: bytes, rng: random.Random, kind: str) -> bytes:
    """A sealed file of this kind with one to three changes and the right checksums."""
    sealed = _split(data)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        chosen = rng.random()
        if chosen < 0.1:
            change_record(rng, sealed.header[0], spare=("reserved", "checksum"))
        elif chosen < 0.25:
            change_record(rng, sealed.trailer[0], spare=("reserved", "checksum", "index_digest"))
        elif chosen < 0.45:
            sealed.set_index(_changed_directory(rng, sealed.index))
        elif chosen < 0.55:
            index = bytearray(sealed.index)
            for _ in range(rng.randint(1, 4)):
                index[rng.randrange(len(index))] ^= 1 << rng.randrange(8)
            sealed.set_index(bytes(index))
        else:
            columns = columns_of(sealed.index, kind)
            for _ in range(rng.choice([1, 1, 2])):
                chosen_kind = rng.choice(list(columns))
                columns[chosen_kind] = change_column(rng, columns[chosen_kind])
            if rng.random() < 0.05:
                del columns[rng.choice(list(columns))]
            if rng.random() < 0.05:
                columns[rng.choice([64, 65, 99, 200])] = np.arange(4, dtype=np.uint8)
            sealed.set_index(encode_sections(columns), sum(one.nbytes for one in columns.values()))
    pages = [sealed_page(sealed.header.tobytes()), sealed_page(sealed.trailer.tobytes())]
    return pages[0] + sealed.data + sealed.index + pages[1]


def _split(data: bytes) -> Sealed:
    """The parts of a file as its own trailer has them. Raises ValueError or IndexError."""
    trailer = np.frombuffer(bytearray(data[-PAGE_BYTES:]), TRAILER_DTYPE)
    start = int(trailer["index_offset"][0])
    if not PAGE_BYTES <= start <= len(data) - PAGE_BYTES:
        raise ValueError("the index lies elsewhere")
    header = np.frombuffer(bytearray(data[:PAGE_BYTES]), HEADER_DTYPE)
    return Sealed(header, data[PAGE_BYTES:start], data[start:-PAGE_BYTES], trailer)


def _changed_directory(rng: random.Random, index: bytes) -> bytes:
    raw = bytearray(index)
    head = np.frombuffer(bytes(raw[: HEAD_DTYPE.itemsize]), HEAD_DTYPE)[0]
    entry = rng.randrange(-1, int(head["sections"]))
    first: Page = (0, HEAD_DTYPE)
    if entry >= 0:
        first = (HEAD_DTYPE.itemsize + entry * ENTRY_DTYPE.itemsize, ENTRY_DTYPE)
    offset, dtype = first
    record = np.frombuffer(bytes(raw[offset : offset + dtype.itemsize]), dtype).copy()
    change_record(rng, record[0])
    raw[offset : offset + dtype.itemsize] = record.tobytes()
    return bytes(raw)


def mutate_journal(data: bytes, rng: random.Random) -> bytes:
    """A journal with a record changed, moved, doubled or dropped, its checksum right."""
    records = list(forgery.journal_records(data))
    identity = data[16:32]
    start, end = rng.choice(records)
    record = bytearray(data[start:end])
    chosen = rng.random()
    if chosen < 0.5:
        dtype = forgery.RECORD_DTYPE
        head = np.frombuffer(bytes(record[: dtype.itemsize]), dtype).copy()
        change_record(rng, head[0], spare=("checksum",))
        record[: dtype.itemsize] = head.tobytes()
    elif chosen < 0.85 and len(record) > forgery.RECORD_DTYPE.itemsize:
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(forgery.RECORD_DTYPE.itemsize, len(record))
            record[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, record[at] ^ 1])
    elif chosen < 0.9:
        return data[:start] + data[end:]
    elif chosen < 0.95:
        return data[:end] + data[start:end] + data[end:]
    else:
        return data[:start] + rng.randbytes(rng.randint(1, 64)) + data[start:]
    changed = forgery.sealed_record(bytes(record), identity)
    if rng.random() < 0.5:
        return data[:start] + changed + data[end:]
    return data.replace(data[start:end], changed)
