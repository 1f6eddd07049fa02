"""Ranges of values: `RangedRead` knows which are wanted, `RangeDestinations` copies them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from snapd.blocks.keys import U8, U64
from snapd.client.arguments import as_sequence, encode_keys_of
from snapd.client.memory import address_of, as_unsigned_list, checksum_memory, copy_memory
from snapd.wire.codes import ReturnCode

_INVALID_PARAMS = int(ReturnCode.INVALID_PARAMS)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Ranges of one value for one buffer: bytes `sizes[k]` from `sources[k]` of the value to
    `targets[k]` of the buffer, which has `capacity` bytes at `address`; codes go to `answers`."""

    address: int
    capacity: int
    targets: list[int]
    sources: list[int]
    sizes: list[int]
    answers: list[int]

    def fits(self, at: int, value_bytes: int) -> bool:
        """Whether a range lies inside the buffer, and inside a value of this size."""
        target, source, size = self.targets[at], self.sources[at], self.sizes[at]
        inside = target <= self.capacity and size <= self.capacity - target
        return inside and source <= value_bytes and size <= value_bytes - source


class RangedRead:
    """The ranges of one call, by buffer, key and range, and the answer to each."""

    def __init__(self, all_keys: Any, all_targets: Any, all_sources: Any, all_sizes: Any) -> None:
        """Raises TypeError unless these are lists as `get_into_ranges` takes them."""
        self._keys = [encode_keys_of(keys) for keys in as_sequence(all_keys, "all_keys")]
        self._targets = _numbers(all_targets, "all_dst_offsets")
        self._sources = _numbers(all_sources, "all_src_offsets")
        self._sizes = _numbers(all_sizes, "all_sizes")
        self._answers = [
            [
                [_INVALID_PARAMS] * len(targets[at]) if at < len(targets) else [_INVALID_PARAMS]
                for at in range(len(keys))
            ]
            for keys, targets in zip(self._keys, self._targets, strict=False)
        ]
        self._wanted: dict[bytes, list[_Wanted]] = {}
        self.names: list[bytes] = []
        """The keys to read, each once."""

    @property
    def buffers(self) -> int:
        """For how many buffers this is; -1 if the lists do not agree."""
        counts = {len(lists) for lists in (self._keys, self._targets, self._sources, self._sizes)}
        return counts.pop() if len(counts) == 1 else -1

    def plan(self, addresses: Sequence[int], capacities: Sequence[int]) -> None:
        """Where the buffers are, and how many bytes each has: 0 if it may not be written."""
        for at, (address, capacity) in enumerate(zip(addresses, capacities, strict=True)):
            columns = self._targets[at], self._sources[at], self._sizes[at]
            if capacity and all(len(column) == len(self._keys[at]) for column in columns):
                rows = zip(self._keys[at], *columns, self._answers[at], strict=True)
                for name, targets, sources, sizes, answers in rows:
                    if len(targets) == len(sources) == len(sizes):
                        wanted = _Wanted(address, capacity, targets, sources, sizes, answers)
                        self._wanted.setdefault(name, []).append(wanted)
        self.names = list(self._wanted)

    def copy(self, row: int, value: U8) -> None:
        """Copy what is wanted of the value of a key, uint8 [bytes]."""
        start = address_of(value)
        for wanted in self._wanted[self.names[row]]:
            for at, size in enumerate(wanted.sizes):
                if wanted.fits(at, len(value)):
                    target = wanted.address + wanted.targets[at]
                    copy_memory(target, start + wanted.sources[at], size)

    def answer(self, codes: Sequence[int]) -> None:
        """What came of the keys: bytes of each value, or its code."""
        for name, code in zip(self.names, codes, strict=True):
            for wanted in self._wanted[name]:
                for at, size in enumerate(wanted.sizes):
                    good = code >= 0 and wanted.fits(at, code)
                    wanted.answers[at] = size if good else min(code, _INVALID_PARAMS)

    def results(self, buffers: int) -> list[list[list[int]]]:
        """The answers for so many buffers, INVALID_PARAMS for those that the lists leave out."""
        missing = range(len(self._answers), buffers)
        return [*self._answers[:buffers], *([[_INVALID_PARAMS]] for _ in missing)]


class RangeDestinations:
    """What is wanted of the values of `rows` of a read.

    A block has one checksum, of all its bytes. So all of them are copied and hashed, and the ranges
    are taken from that copy: what is given out is what was verified.
    """

    def __init__(self, read: RangedRead, rows: Sequence[int]) -> None:
        self._read = read
        self._rows = rows

    def refused(self, rows: Sequence[int], sizes: Sequence[int]) -> dict[int, ReturnCode]:
        """See `Destinations`: ranges are refused one by one."""
        return {}

    def deliver(self, rows: Sequence[int], sources: Sequence[int], sizes: Sequence[int]) -> U64:
        """See `Destinations`."""
        checksums = []
        for row, source, size in zip(rows, sources, sizes, strict=True):
            value = np.empty(size, np.uint8)
            copy_memory(address_of(value), source, size)
            checksums.append(checksum_memory(address_of(value), size))
            self._read.copy(self._rows[row], value)
        return np.array(checksums, np.uint64)

    def discard(self, row: int) -> None:
        """Leave the bytes: the caller is told by the return codes."""


def _numbers(values: Any, name: str) -> list[list[list[int]]]:
    """Three levels of lists of numbers. Raises TypeError."""
    return [
        [as_unsigned_list(as_sequence(numbers, name), name) for numbers in as_sequence(lists, name)]
        for lists in as_sequence(values, name)
    ]
