"""Blocks whose bytes lie apart in the caller's memory: sources of a put, destinations of a get."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate, chain
from typing import Any

import numpy as np

from snapd.blocks.keys import U64
from snapd.client.arguments import as_sequence
from snapd.client.memory import POINTER_MAX, PartsHasher, as_unsigned_list, copy_memory
from snapd.client.transfer import clear_tail
from snapd.wire.codes import ReturnCode


class Parts:
    """The memory of n blocks, each a list of addresses and one of sizes (bytes).

    `sizes` has the sum of each block's parts. `broken` are the rows that no block can come from or
    go to: lists of different lengths (then it is not `even`), a null pointer to something, no bytes
    at all.
    """

    def __init__(self, all_buffer_ptrs: Any, all_sizes: Any, keep: Any = None) -> None:
        """From what callers give; `keep` is what keeps their memory alive.

        Lists for different numbers of blocks are no blocks. Raises TypeError for anything but two
        lists of lists, of addresses and of sizes.
        """
        addresses = _Flat("all_buffer_ptrs", all_buffer_ptrs)
        lengths = _Flat("all_sizes", all_sizes)
        if len(addresses.counts) != len(lengths.counts):
            addresses = lengths = _Flat("no blocks", [])
        self._addresses, self._lengths, self._keep = addresses, lengths, keep
        reached = list(accumulate(lengths.values, initial=0))
        ends = lengths.ends
        self.sizes = [reached[ends[row + 1]] - reached[ends[row]] for row in range(len(ends) - 1)]
        self.broken = {row for row, size in enumerate(self.sizes) if not 0 < size <= POINTER_MAX}
        self.even = addresses.counts == lengths.counts
        if not self.even:
            counts = enumerate(zip(addresses.counts, lengths.counts, strict=True))
            self.broken |= {row for row, (theirs, ours) in counts if theirs != ours}
        if 0 in addresses.values:
            rows = (row for row in range(len(self.sizes)) if row not in self.broken)
            self.broken |= {row for row in rows if any(n and not a for a, n in self.of(row))}

    def __len__(self) -> int:
        return len(self.sizes)

    def of(self, row: int) -> Iterable[tuple[int, int]]:
        """Address and size of each part of a row that is not broken."""
        return zip(self._addresses.of(row), self._lengths.of(row), strict=True)


class _Flat:
    """A list of lists of numbers as one list: row r is `values[ends[r] : ends[r + 1]]`."""

    def __init__(self, name: str, nested: Any) -> None:
        rows = as_sequence(nested, name)
        self.counts = [len(as_sequence(row, name)) for row in rows]
        self.ends = list(accumulate(self.counts, initial=0))
        self.values = as_unsigned_list(list(chain.from_iterable(rows)), name)

    def of(self, row: int) -> list[int]:
        return self.values[self.ends[row] : self.ends[row + 1]]


class PartSources:
    """`rows` of `parts` as blocks to put, their parts one after another."""

    def __init__(self, parts: Parts, rows: Sequence[int]) -> None:
        self._parts = parts
        self._rows = rows
        self.sizes = [parts.sizes[row] for row in rows]

    def unusable(self) -> set[int]:
        """See `Sources`."""
        broken = self._parts.broken
        return {at for at, row in enumerate(self._rows) if row in broken} if broken else set()

    def take(self, rows: Sequence[int]) -> PartSources:
        """See `Sources`."""
        return PartSources(self._parts, [self._rows[row] for row in rows])

    def copy_to(self, targets: Sequence[int]) -> U64:
        """See `Sources`."""
        checksums, hasher = [], PartsHasher()
        for target, row, total in zip(targets, self._rows, self.sizes, strict=True):
            reached = target
            for source, size in self._parts.of(row):
                hasher.update(source, size)
                copy_memory(reached, source, size)
                reached += size
            checksums.append(hasher.finish())
            clear_tail(target, total)
        return np.array(checksums, np.uint64)


class PartDestinations:
    """`rows` of `parts` as places for blocks, which have to fill them exactly."""

    def __init__(self, parts: Parts, rows: Sequence[int]) -> None:
        self._parts = parts
        self._rows = rows

    def refused(self, rows: Sequence[int], sizes: Sequence[int]) -> dict[int, ReturnCode]:
        """See `Destinations`: TRANSFER_FAIL where the parts would not be filled, as the wheel says;
        what lies in the rest of them would else pass for a part of the block."""
        codes = {}
        for at, (row, size) in enumerate(zip(rows, sizes, strict=True)):
            there = self._rows[row]
            if there in self._parts.broken or self._parts.sizes[there] < size:
                codes[at] = ReturnCode.INVALID_PARAMS
            elif self._parts.sizes[there] > size:
                codes[at] = ReturnCode.TRANSFER_FAIL
        return codes

    def deliver(self, rows: Sequence[int], sources: Sequence[int], sizes: Sequence[int]) -> U64:
        """See `Destinations`."""
        checksums, hasher = [], PartsHasher()
        for row, source in zip(rows, sources, strict=True):
            reached = source
            for target, size in self._parts.of(self._rows[row]):
                copy_memory(target, reached, size)
                hasher.update(target, size)
                reached += size
            checksums.append(hasher.finish())
        return np.array(checksums, np.uint64)

    def discard(self, row: int) -> None:
        """Leave the bytes: the caller is told by the return code."""
