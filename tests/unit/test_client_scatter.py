"""Blocks in several places, ranges of blocks, options of puts: the parts that need no store."""

from __future__ import annotations

import ctypes
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import xxhash
from hypothesis import example, given, settings
from hypothesis import strategies as st

from snapd.blocks import Pin
from snapd.client import ReplicateConfig, SoftPinAction
from snapd.client import parts as parts_module
from snapd.client.handle import BufferHandle
from snapd.client.memory import BufferRegistry, PartsHasher
from snapd.client.options import SOFT_PIN_MS_MAX, put_options
from snapd.client.parts import PartDestinations, Parts, PartSources
from snapd.client.ranges import RangeDestinations, RangedRead
from snapd.client.transfer import HandleDestinations
from snapd.wire.codes import ReturnCode

INVALID, TRANSFER_FAIL = ReturnCode.INVALID_PARAMS, ReturnCode.TRANSFER_FAIL

layouts = st.lists(
    st.lists(st.tuples(st.integers(0, 300), st.integers(0, 50)), max_size=6), max_size=5
)
"""Blocks as lists of parts: bytes of each, and the gap before it."""


def laid_out(layout: list[list[tuple[int, int]]]) -> tuple[Any, list[list[int]], list[list[int]]]:
    """Memory full of different bytes, and addresses and sizes of the parts in it."""
    total = 1 + sum(size + gap for block in layout for size, gap in block)
    memory = np.random.default_rng(total).integers(0, 256, total, np.uint8)
    reached, addresses, sizes = memory.ctypes.data, [], []
    for block in layout:
        addresses.append([])
        sizes.append([size for size, _ in block])
        for size, gap in block:
            addresses[-1].append(reached + gap)
            reached += size + gap
    return memory, addresses, sizes


@settings(max_examples=40)
@given(layout=layouts)
def test_parts_are_copied_one_after_another_and_hashed_as_one(
    layout: list[list[tuple[int, int]]],
) -> None:
    _, addresses, sizes = laid_out(layout)
    parts = Parts(addresses, sizes)
    empty = {row for row, block in enumerate(sizes) if not sum(block)}
    assert parts.broken == empty
    assert PartSources(parts, range(len(parts))).unusable() == empty
    rows = [row for row in range(len(parts)) if row not in empty]
    sources = PartSources(parts, range(len(parts))).take(rows)
    targets = [np.full(4096, 0xEE, np.uint8) for _ in rows]
    checksums = sources.copy_to([target.ctypes.data for target in targets])
    for row, target, checksum in zip(rows, targets, checksums.tolist(), strict=True):
        places = zip(addresses[row], sizes[row], strict=True)
        value = b"".join(ctypes.string_at(place, size) for place, size in places)
        assert target.tobytes() == value.ljust(4096, b"\0"), "the rest of the unit is zeroed"
        assert checksum == xxhash.xxh3_64_intdigest(value)


@settings(max_examples=40)
@given(layout=layouts)
def test_a_block_fills_its_parts_and_nothing_beside_them(
    layout: list[list[tuple[int, int]]],
) -> None:
    memory, addresses, sizes = laid_out(layout)
    before = memory.tobytes()
    parts = Parts(addresses, sizes)
    rows = [row for row in range(len(parts)) if row not in parts.broken]
    values = [np.random.default_rng(row).bytes(sum(sizes[row])) for row in rows]
    blocks = [np.frombuffer(value, np.uint8) for value in values]
    destinations = PartDestinations(parts, rows)
    here = list(range(len(rows)))
    assert destinations.refused(here, list(map(len, values))) == {}
    checksums = destinations.deliver(
        here, [block.ctypes.data for block in blocks], list(map(len, values))
    )
    assert checksums.tolist() == [xxhash.xxh3_64_intdigest(value) for value in values]
    expected = bytearray(before)
    for row, value in zip(rows, values, strict=True):
        rest = value
        for place, size in zip(addresses[row], sizes[row], strict=True):
            start = place - memory.ctypes.data
            expected[start : start + size], rest = rest[:size], rest[size:]
    assert memory.tobytes() == bytes(expected)


def test_a_part_is_hashed_before_it_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """What changes under the copy then fails its first verification."""
    memory, target = np.zeros(100, np.uint8), np.zeros(4096, np.uint8)
    base = memory.ctypes.data

    def copy(into: int, source: int, size: int) -> None:
        memory[:] = 7
        ctypes.memmove(into, source, size)

    monkeypatch.setattr(parts_module, "copy_memory", copy)
    sources = PartSources(Parts([[base, base + 50]], [[50, 50]]), [0])
    checksum = sources.copy_to([target.ctypes.data])[0]
    assert checksum != xxhash.xxh3_64_intdigest(target[:100].tobytes())


def test_parts_that_do_not_hold_exactly_the_block_are_refused() -> None:
    memory = np.zeros(64, np.uint8)
    base = memory.ctypes.data
    parts = Parts([[base, base + 8], [base], [0], [0, base]], [[4, 4], [8, 1], [8], [0, 8]])
    assert not parts.even
    assert parts.broken == {1, 2}
    destinations = PartDestinations(parts, range(4))
    assert destinations.refused([0, 1, 2, 3], [8, 8, 8, 8]) == {1: INVALID, 2: INVALID}
    assert destinations.refused([0, 3], [9, 7]) == {0: INVALID, 1: TRANSFER_FAIL}


def test_sizes_that_add_up_to_more_than_an_address_space_are_no_block() -> None:
    parts = Parts([[8, 8]], [[2**64 - 1, 2**64 - 1]])
    assert parts.broken == {0}


@pytest.mark.parametrize(
    ("addresses", "sizes"),
    [([1], [[1]]), ([[1]], [1]), ([[1.5]], [[1]]), ([[-1]], [[1]]), ("ab", [[1]]), ([{1}], [[1]])],
)
def test_parts_of_wrong_types_are_type_errors(addresses: Any, sizes: Any) -> None:
    with pytest.raises(TypeError):
        Parts(addresses, sizes)


def test_a_hasher_begins_anew_after_each_block() -> None:
    value = np.arange(1000, dtype=np.uint8)
    hasher = PartsHasher()
    for _ in range(2):
        hasher.update(value.ctypes.data, 300)
        hasher.update(value.ctypes.data + 300, 700)
        assert hasher.finish() == xxhash.xxh3_64_intdigest(value.tobytes())
    assert hasher.finish() == xxhash.xxh3_64_intdigest(b"")


# --- ranges ---------------------------------------------------------------------------------------

numbers = st.one_of(st.integers(0, 70), st.sampled_from([2**63, 2**64 - 1]))


@settings(max_examples=40)
@example(ranges=[(0, 8, 2), (0, 8, 3), (0, 10, 0), (0, 11, 0), (48, 0, 2), (48, 0, 3)], size=10)
@given(ranges=st.lists(st.tuples(numbers, numbers, numbers), max_size=8), size=st.integers(0, 64))
def test_no_range_leaves_its_value_or_its_buffer(
    ranges: list[tuple[int, int, int]], size: int
) -> None:
    value = np.random.default_rng(size).integers(1, 256, size, np.uint8)
    memory, capacity = np.zeros(100, np.uint8), 50
    columns = [[[list(column)]] for column in zip(*ranges, strict=True)] or [[[[]]]] * 3
    read = RangedRead([["k"]], *columns)
    read.plan([memory.ctypes.data], [capacity])
    assert read.names == [b"k"]
    checksums = RangeDestinations(read, [0]).deliver([0], [value.ctypes.data], [size])
    assert checksums[0] == xxhash.xxh3_64_intdigest(value.tobytes())
    read.answer([size])
    expected, codes = bytearray(100), []
    for target, source, count in ranges:
        good = target + count <= capacity and source + count <= size
        codes.append(count if good else int(INVALID))
        if good:
            expected[target : target + count] = value.tobytes()[source : source + count]
    assert read.results(1) == [[codes]]
    assert memory.tobytes() == bytes(expected)


def test_a_value_that_two_buffers_want_is_read_once() -> None:
    memory = np.zeros(16, np.uint8)
    read = RangedRead(
        [["k", "j"], ["k"]], [[[0], [1]], [[0]]], [[[0], [0]], [[3]]], [[[1]] * 2, [[2]]]
    )
    read.plan([memory.ctypes.data, memory.ctypes.data + 8], [8, 8])
    assert read.names == [b"k", b"j"]
    read.answer([10, int(ReturnCode.OBJECT_NOT_FOUND)])
    assert read.results(2) == [[[1], [-704]], [[2]]]


def test_registered_memory_counts_from_the_pointer_on() -> None:
    registry = BufferRegistry()
    registry.register(1000, 100)
    assert [registry.bytes_from(at) for at in (999, 1000, 1099, 1100)] == [0, 100, 1, 0]


# --- buffers --------------------------------------------------------------------------------------


def test_a_buffer_lends_its_memory() -> None:
    source = np.arange(8, dtype=np.uint8)
    destinations = HandleDestinations(2)
    checksums = destinations.deliver([1], [source.ctypes.data], [8])
    assert destinations.values[0] is None
    handle = destinations.values[1]
    assert isinstance(handle, BufferHandle)
    assert checksums[0] == xxhash.xxh3_64_intdigest(bytes(handle))
    assert (handle.size(), len(handle)) == (8, 8)
    assert ctypes.string_at(handle.ptr(), 8) == bytes(range(8)) == bytes(memoryview(handle))
    assert np.frombuffer(handle, np.uint8).ctypes.data == handle.ptr()
    destinations.discard(1)
    assert destinations.values == [None, None]


# --- options --------------------------------------------------------------------------------------


def config(**values: Any) -> ReplicateConfig:
    made = ReplicateConfig()
    for name, value in values.items():
        setattr(made, name, value)
    return made


def test_a_configuration_says_how_blocks_are_kept() -> None:
    plain = put_options(config(), 1, upsert=True)
    assert plain is not None
    assert (plain.upsert, plain.pin, plain.keep_pin, plain.groups) == (True, Pin.NONE, True, None)
    enable, disable = SoftPinAction.ENABLE, SoftPinAction.DISABLE
    made = [
        put_options(config(soft_pin_action=enable), 1, upsert=False),
        put_options(config(soft_pin_action=enable, soft_pin_ttl_ms=5), 1, upsert=False),
        put_options(config(soft_pin_action=enable, soft_pin_ttl_ms=0), 1, upsert=False),
        put_options(config(soft_pin_action=disable), 1, upsert=False),
        put_options(config(soft_pin_action=enable, with_hard_pin=True), 1, upsert=False),
    ]
    assert [(one.pin, one.soft_pin_ttl_ms, one.keep_pin) for one in made if one] == [
        (Pin.SOFT, 0, False),
        (Pin.SOFT, 5, False),
        (Pin.NONE, 0, False),
        (Pin.NONE, 0, False),
        (Pin.HARD, 0, False),
    ]


@pytest.mark.parametrize(
    "values",
    [
        {"replica_num": 0},
        {"soft_pin_ttl_ms": 5},
        {"soft_pin_action": SoftPinAction.DISABLE, "soft_pin_ttl_ms": 0},
        {"soft_pin_action": SoftPinAction.ENABLE, "soft_pin_ttl_ms": SOFT_PIN_MS_MAX + 1},
        {"group_ids": ["a"]},
        {"group_ids": []},
    ],
)
def test_configurations_that_the_wheel_refuses(values: dict[str, Any]) -> None:
    assert put_options(config(**values), 2, upsert=False) is None


def test_groups_have_numbers_by_name_and_follow_their_rows() -> None:
    options = put_options(config(group_ids=["a", "", "b", "a"]), 4, upsert=False)
    assert options is not None
    assert options.groups is not None
    a, none, b, again = options.groups.tolist()
    assert (none, again) == (0, a)
    assert len({0, a, b}) == 3
    picked = options.take([1, 2]).groups
    assert picked is not None
    assert picked.tolist() == [0, b]
    for first, last in pairwise([0, 2, 4]):
        part = options.take(slice(first, last)).groups
        assert part is not None
        assert part.tolist() == options.groups[first:last].tolist()
