"""Where bytes come from and go to: sources of a put, destinations of a get."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from snapd.blocks.keys import U8, U64
from snapd.client.handle import BufferHandle
from snapd.client.memory import (
    address_of,
    checksum,
    checksum_memory,
    copy_memory,
    fill_memory,
)
from snapd.formats.segment import DATA_UNIT_BYTES
from snapd.wire.codes import ReturnCode

Value = TypeVar("Value")


class Sources(Protocol):
    """n blocks to put."""

    @property
    def sizes(self) -> Sequence[int]:
        """Bytes of each block."""

    def unusable(self) -> set[int]:
        """Rows whose memory cannot be a block: nothing in it, or a null pointer."""

    def take(self, rows: Sequence[int]) -> Sources:
        """The sources of `rows`, which ascend."""

    def copy_to(self, targets: Sequence[int]) -> U64:
        """Copy each block to its target address; returns checksums, uint64 [n].

        The checksum is of the source, taken before the copy, and the only one that a block ever
        gets: should the source change under the copy, the block fails its first verification and
        is a miss. The rest of the last unit is zeroed, so that no older bytes go to disk with it.
        """


class PointerSources:
    """Blocks at `addresses` of `sizes` (bytes), and what keeps their memory alive."""

    def __init__(self, addresses: Sequence[int], sizes: Sequence[int], keep: Any = None) -> None:
        self._addresses = addresses
        self.sizes = sizes
        self._keep = keep

    @classmethod
    def of_arrays(cls, arrays: Sequence[U8]) -> PointerSources:
        """The bytes of these arrays, uint8 [bytes] each."""
        return cls([address_of(array) for array in arrays], [len(a) for a in arrays], arrays)

    def unusable(self) -> set[int]:
        """See `Sources`."""
        if 0 not in self.sizes and 0 not in self._addresses:
            return set()
        pairs = enumerate(zip(self._addresses, self.sizes, strict=True))
        return {row for row, pair in pairs if not all(pair)}

    def take(self, rows: Sequence[int]) -> PointerSources:
        """See `Sources`."""
        if len(rows) == len(self.sizes):
            return self
        addresses, sizes = self._addresses, self.sizes
        return PointerSources([addresses[r] for r in rows], [sizes[r] for r in rows], self._keep)

    def copy_to(self, targets: Sequence[int]) -> U64:
        """See `Sources`."""
        checksums = []
        blocks = zip(targets, self._addresses, self.sizes, strict=True)
        for target, source, size in blocks:
            checksums.append(checksum_memory(source, size))
            copy_memory(target, source, size)
            clear_tail(target, size)
        return np.array(checksums, np.uint64)


def clear_tail(target: int, size: int) -> None:
    """Zero the rest of the last unit of a block of `size` bytes at `target`."""
    if size % DATA_UNIT_BYTES:
        fill_memory(target + size, 0, -size % DATA_UNIT_BYTES)


class Destinations(Protocol):
    """Where blocks go, by row."""

    def refused(self, rows: Sequence[int], sizes: Sequence[int]) -> dict[int, ReturnCode]:
        """Which of `rows`, by position, cannot take a block of that many bytes, and the code to
        say so with; before anything is copied."""

    def deliver(self, rows: Sequence[int], sources: Sequence[int], sizes: Sequence[int]) -> U64:
        """Copy blocks from their addresses in the mapping; XXH3-64 of each copy, uint64 [m]."""

    def discard(self, row: int) -> None:
        """The copy turned out to be wrong: it must not reach the caller as a value."""


class PointerDestinations:
    """Memory of the caller's: `addresses` and `capacities` (bytes)."""

    def __init__(self, addresses: Sequence[int], capacities: Sequence[int]) -> None:
        self._addresses = addresses
        self._capacities = capacities

    def refused(self, rows: Sequence[int], sizes: Sequence[int]) -> dict[int, ReturnCode]:
        """See `Destinations`: what is too small, and null pointers."""
        addresses, capacities = self._addresses, self._capacities
        return {
            at: ReturnCode.INVALID_PARAMS
            for at, (row, size) in enumerate(zip(rows, sizes, strict=True))
            if size > capacities[row] or addresses[row] == 0
        }

    def deliver(self, rows: Sequence[int], sources: Sequence[int], sizes: Sequence[int]) -> U64:
        """See `Destinations`."""
        checksums = []
        for row, source, size in zip(rows, sources, sizes, strict=True):
            target = self._addresses[row]
            copy_memory(target, source, size)
            checksums.append(checksum_memory(target, size))
        return np.array(checksums, np.uint64)

    def discard(self, row: int) -> None:
        """Leave the bytes: the caller is told by the return code."""


class ValueDestinations(Generic[Value]):
    """New Python objects in `values`, and `nothing` where nothing was delivered."""

    def __init__(self, count: int, nothing: Value) -> None:
        self.values = [nothing] * count
        self._nothing = nothing

    def refused(self, rows: Sequence[int], sizes: Sequence[int]) -> dict[int, ReturnCode]:
        """See `Destinations`: everything fits."""
        return {}

    def deliver(self, rows: Sequence[int], sources: Sequence[int], sizes: Sequence[int]) -> U64:
        """See `Destinations`."""
        checksums = []
        for row, source, size in zip(rows, sources, sizes, strict=True):
            self.values[row], hashed = self._copy(source, size)
            checksums.append(hashed)
        return np.array(checksums, np.uint64)

    def discard(self, row: int) -> None:
        """See `Destinations`."""
        self.values[row] = self._nothing

    def _copy(self, source: int, size: int) -> tuple[Value, int]:
        """An object with a copy of these bytes, and the checksum of the copy."""
        raise NotImplementedError


class BytesDestinations(ValueDestinations[bytes]):
    """`bytes`; b"" where nothing was delivered."""

    def __init__(self, count: int) -> None:
        super().__init__(count, b"")

    def _copy(self, source: int, size: int) -> tuple[bytes, int]:
        value = ctypes.string_at(source, size)
        return value, checksum(value)


class HandleDestinations(ValueDestinations[BufferHandle | None]):
    """Buffers; None where nothing was delivered."""

    def __init__(self, count: int) -> None:
        super().__init__(count, None)

    def _copy(self, source: int, size: int) -> tuple[BufferHandle, int]:
        handle = BufferHandle(size)
        copy_memory(handle.ptr(), source, size)
        return handle, checksum(handle)
