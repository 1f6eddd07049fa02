"""The segment's bytes: what is written decodes, what is damaged is noticed."""

from __future__ import annotations

import numpy as np
import pytest

from snapd.errors import CorruptError, NewerFormatError, SegmentError
from snapd.formats import segment as layout
from snapd.formats.segment import Geometry, HeaderState, SlotState

SEED = 20260131


def _slots(count: int) -> layout.Slots:
    generator = np.random.default_rng(SEED)
    slots = np.frombuffer(generator.bytes(count * 64), layout.SLOT_DTYPE).copy()
    slots["state"] = SlotState.PUBLISHED
    layout.seal_slots(slots)
    return slots


def _header() -> bytearray:
    geometry = Geometry.plan(bytes(range(16)), 1 << 24, 1024)
    page = bytearray(layout.encode_header(geometry))
    for generation, offset in enumerate(layout.STATE_OFFSETS, start=7):
        state = HeaderState(generation, 4096, 1 << 20, b"b" * 16, 3, 9)
        page[offset : offset + 64] = layout.encode_state(state)
    return page


def test_any_single_flipped_bit_in_a_slot_is_caught() -> None:
    slots = _slots(40)
    assert layout.valid_slots(slots).all()
    raw = np.repeat(slots.view(np.uint8).reshape(40, 1, 64), 512, axis=1)
    for bit in range(512):
        raw[:, bit, bit // 8] ^= 1 << (bit % 8)
    flipped = np.ascontiguousarray(raw).view(layout.SLOT_DTYPE).reshape(-1)
    assert not layout.valid_slots(flipped).any()


def test_the_multipliers_make_a_single_flip_visible_by_arithmetic() -> None:
    for multiplier in layout.SLOT_MULTIPLIERS.tolist():
        assert multiplier % 2 == 1
        moves = [(multiplier << bit) % 2**64 for bit in range(64)]
        assert all(2**32 <= move <= 2**64 - 2**32 for move in moves)


def test_a_flipped_bit_never_makes_a_free_slot_live() -> None:
    for bit in range(512):
        raw = np.zeros(64, np.uint8)
        raw[bit // 8] ^= 1 << (bit % 8)
        slot = raw.view(layout.SLOT_DTYPE)
        assert not layout.valid_slots(slot)[0] or slot["state"][0] == SlotState.FREE


def test_slots_of_zeros_are_valid_and_free() -> None:
    assert layout.valid_slots(np.zeros(5, layout.SLOT_DTYPE)).all()


def test_header_round_trip() -> None:
    page = bytes(_header())
    assert layout.decode_header(page) == Geometry.plan(bytes(range(16)), 1 << 24, 1024)
    assert layout.decode_state(page).generation == 8


def test_any_flipped_bit_in_the_header_is_corrupt_and_never_taken_for_a_newer_version() -> None:
    page = _header()
    for bit in range(layout.HEADER_DTYPE.itemsize * 8):
        page[bit // 8] ^= 1 << (bit % 8)
        with pytest.raises(CorruptError):
            layout.decode_header(bytes(page))
        page[bit // 8] ^= 1 << (bit % 8)


def test_a_newer_layout_is_refused_by_name() -> None:
    geometry = Geometry.plan(bytes(16), 1 << 24, 1024)
    with pytest.raises(NewerFormatError, match="layout version 2"):
        layout.decode_header(layout.encode_header(geometry, layout_version=2))


def test_one_damaged_copy_of_the_state_falls_back_to_the_other_and_two_are_corrupt() -> None:
    page = _header()
    page[layout.STATE_OFFSETS[1] + 9] ^= 1
    assert layout.decode_state(bytes(page)).generation == 7
    page[layout.STATE_OFFSETS[0] + 9] ^= 1
    with pytest.raises(CorruptError):
        layout.decode_state(bytes(page))


def test_regions_are_aligned_and_do_not_overlap() -> None:
    for slots in (1, 1000, 1_000_000):
        geometry = Geometry.plan(bytes(16), 5 << 30, slots)
        ends = [
            layout.HEADER_BYTES,
            geometry.slots_offset + 64 * slots,
            geometry.heat_offset + 16 * slots,
            geometry.index_offset + 64 * geometry.index_buckets,
            geometry.displaced_offset + 4 * geometry.index_buckets,
            geometry.key_heap_offset + geometry.key_heap_bytes,
        ]
        starts = [
            geometry.slots_offset,
            geometry.heat_offset,
            geometry.index_offset,
            geometry.displaced_offset,
            geometry.key_heap_offset,
            geometry.data_offset,
        ]
        assert all(start % 4096 == 0 for start in starts)
        assert all(start >= end for start, end in zip(starts, ends, strict=True))


def test_a_segment_too_large_for_its_fields_is_refused() -> None:
    with pytest.raises(SegmentError, match="16 TiB"):
        Geometry.plan(bytes(16), 1 << 45, 1024)
    with pytest.raises(SegmentError):
        Geometry.plan(bytes(16), 1 << 30, 1 << 32)


def test_slots_that_point_outside_the_segment_are_out_of_bounds() -> None:
    geometry = Geometry.plan(bytes(16), 1 << 24, 1024)
    slots = np.zeros(6, layout.SLOT_DTYPE)
    slots["state"], slots["size"], slots["key_length"] = SlotState.PUBLISHED, 5000, 80
    slots["extent"][1] = geometry.data_units - 1
    slots["size"][2] = 2**63
    slots["key_offset"][3] = geometry.key_units - 1
    slots["key_length"][4] = 0
    slots["state"][5] = 9
    assert layout.in_bounds(slots, geometry).tolist() == [True] + [False] * 5
