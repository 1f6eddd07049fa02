"""Segments: header, state, slots and key heap, as a store that adopts one reads them."""

from __future__ import annotations

import os
import random
from pathlib import Path
from unittest.mock import patch

import numpy as np
import xxhash
from format_mutators import change_record
from store_kit import Daemon, LocalStore, content

from snapd.errors import NewerFormatError, SegmentError, SettingError
from snapd.formats.segment import (
    HEADER_BYTES,
    HEADER_DTYPE,
    KEY_UNIT_BYTES,
    SLOT_DTYPE,
    STATE_DTYPE,
    STATE_OFFSETS,
    Slots,
    SlotState,
    decode_header,
    in_bounds,
    seal_slots,
)

_SIZES = {"global_segment_size": 1 << 16, "segment_blocks_max": 32}
_PATH = Path(f"/dev/shm/snapd-fuzz-{os.getpid()}")
"""Removed again after each input: the fuzzer leaves no chance to tidy up at the end."""
_BLOCKS = {b"key-%d" % number: content(number, 1000 + 700 * number) for number in range(6)}


def seeds() -> list[bytes]:
    """Segments that a store left: with blocks, a cold one, a removed one, an unfinished one."""
    # Ids and sequences are the same each time, so that an input has the same name each time.
    with patch("secrets.token_bytes", random.Random(1).randbytes):
        return [_image(steps) for steps in range(4)]


def _image(steps: int) -> bytes:
    store = LocalStore(str(_PATH), **_SIZES)
    try:
        client = store.client()
        if steps >= 1:
            client.put(_BLOCKS)
        if steps >= 2:
            daemon = Daemon(store)
            daemon.register({b"cold": b"c" * 5000})
            daemon.ready()
            store.drop(daemon)
        if steps >= 3:
            client.remove([b"key-1"], force=True)
            client.reserve([b"unfinished"], [4096])
        return _PATH.read_bytes()
    finally:
        store.close()
        _PATH.unlink()


def mutate(data: bytes, rng: random.Random) -> bytes:
    """A field of the header, of a state or of a slot; keys; with the right checksums."""
    raw = bytearray(data)
    geometry = decode_header(data[:HEADER_BYTES])
    chosen = rng.random()
    if chosen < 0.15:
        _edit(rng, raw, 0, HEADER_DTYPE)
    elif chosen < 0.35:
        for offset in STATE_OFFSETS if rng.random() < 0.7 else STATE_OFFSETS[:1]:
            _edit(random.Random(chosen), raw, offset, STATE_DTYPE)
    elif chosen < 0.85:
        first = geometry.slots_offset
        table = np.frombuffer(bytes(raw), SLOT_DTYPE, geometry.slot_count, first).copy()
        used = np.flatnonzero(table["state"]).tolist() or [0]
        for _ in range(rng.choice([1, 1, 2])):
            row = rng.choice(used)
            if rng.random() < 0.2:
                table[rng.randrange(len(table))] = table[row]
            change_record(rng, table[row : row + 1][0], spare=("slot_checksum", "reserved"))
        seal_slots(table)
        raw[first : first + table.nbytes] = table.tobytes()
    else:
        at = geometry.key_heap_offset + rng.randrange(8 * KEY_UNIT_BYTES)
        raw[at] ^= 1 << rng.randrange(8)
    return bytes(raw)


def _edit(rng: random.Random, raw: bytearray, offset: int, dtype: np.dtype[np.void]) -> None:
    end = offset + dtype.itemsize
    record = np.frombuffer(bytes(raw[offset:end]), dtype).copy()
    change_record(rng, record[0], spare=("checksum", "magic", "preamble_checksum"))
    if "preamble_checksum" in (dtype.names or ()):
        head = record.tobytes()[:12]
        record["preamble_checksum"] = xxhash.xxh3_64_intdigest(head) & 0xFFFFFFFF
    record["checksum"] = xxhash.xxh3_64_intdigest(record.tobytes()[:-8])
    raw[offset:end] = record.tobytes()


def check(data: bytes) -> None:
    """Adopt it. What is served then is right and apart; or there is a typed refusal."""
    _PATH.write_bytes(data)
    try:
        store = LocalStore(str(_PATH), **_SIZES)
    except (NewerFormatError, SegmentError, SettingError):
        return
    else:
        try:
            _check_store(store)
        finally:
            store.close()
    finally:
        for left in (_PATH, _PATH.with_name(_PATH.name + ".bad")):
            left.unlink(missing_ok=True)


def _check_store(store: LocalStore) -> None:
    slots: Slots = store.blocks.book.records
    state = store.blocks.book.state
    published = np.flatnonzero(state == SlotState.PUBLISHED)
    table = slots[published]
    assert bool(in_bounds(table, store.segment.geometry).all()), "a block lies outside"
    starts = table["extent"].astype(np.int64)
    ends = starts + -(-table["size"].astype(np.int64) // 4096)
    order = np.argsort(starts)
    assert bool((ends[order][:-1] <= starts[order][1:]).all()), "two blocks overlap"
    client = store.client()
    client.get(list(_BLOCKS))
    codes = client.put({b"new": b"n" * 3000})
    if codes[b"new"] == 0:
        assert client.get([b"new"]) == [b"n" * 3000], "a new block does not come back"
