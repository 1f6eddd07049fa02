"""Where bytes come from and go to: sources of a put, destinations of a get."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import xxhash

from snapd.blocks.keys import U8, U64
from snapd.client.memory import (
    address_of,
    checksum_memory,
    copy_memory,
    fill_memory,
    view_memory,
)
from snapd.formats.segment import DATA_UNIT_BYTES


class Sources:
    """n blocks to put: `addresses` and `sizes` (bytes), and what keeps their memory alive."""

    def __init__(self, addresses: Sequence[int], sizes: Sequence[int], keep: Any = None) -> None:
        self.addresses = addresses
        self.sizes = sizes
        self._keep = keep

    @classmethod
    def of_arrays(cls, arrays: Sequence[U8]) -> Sources:
        """The bytes of these arrays, uint8 [bytes] each."""
        return cls([address_of(array) for array in arrays], [len(a) for a in arrays], arrays)

    def take(self, rows: Sequence[int]) -> Sources:
        """The sources of `rows`, in that order."""
        addresses, sizes = self.addresses, self.sizes
        return Sources([addresses[r] for r in rows], [sizes[r] for r in rows], self._keep)

    def copy_to(self, targets: Sequence[int]) -> U64:
        """Copy each block to its target address; returns checksums, uint64 [n].

        The checksum is of the source, taken before the copy, and the only one that a block ever
        gets: should the source change under the copy, the block fails its first verification and
        is a miss. The rest of the last unit is zeroed, so that no older bytes go to disk with it.
        """
        checksums = np.empty(len(targets), np.uint64)
        for row, (target, source, size) in enumerate(
            zip(targets, self.addresses, self.sizes, strict=True)
        ):
            checksums[row] = checksum_memory(source, size)
            copy_memory(target, source, size)
            fill_memory(target + size, 0, -size % DATA_UNIT_BYTES)
        return checksums


class Destinations(Protocol):
    """Where blocks go, by row."""

    def fits(self, row: int, size: int) -> bool:
        """Whether a block of `size` bytes can be delivered."""

    def deliver(self, row: int, address: int, size: int) -> int:
        """Copy a block out of the mapping; returns XXH3-64 of the copy."""

    def discard(self, row: int) -> None:
        """The copy turned out to be wrong: it must not reach the caller as a value."""


class PointerDestinations:
    """Memory of the caller's: `addresses` and `capacities` (bytes)."""

    def __init__(self, addresses: Sequence[int], capacities: Sequence[int]) -> None:
        self._addresses = addresses
        self._capacities = capacities

    def fits(self, row: int, size: int) -> bool:
        """See `Destinations`."""
        return size <= self._capacities[row] and self._addresses[row] != 0

    def deliver(self, row: int, address: int, size: int) -> int:
        """See `Destinations`."""
        copy_memory(self._addresses[row], address, size)
        return int(xxhash.xxh3_64_intdigest(view_memory(self._addresses[row], size)))

    def discard(self, row: int) -> None:
        """Leave the bytes: the caller is told by the return code."""


class BytesDestinations:
    """New `bytes` objects in `values`; b"" where nothing was delivered."""

    def __init__(self, count: int) -> None:
        self.values = [b""] * count

    def fits(self, row: int, size: int) -> bool:
        """See `Destinations`: everything fits."""
        return True

    def deliver(self, row: int, address: int, size: int) -> int:
        """See `Destinations`."""
        value = ctypes.string_at(address, size)
        self.values[row] = value
        return int(xxhash.xxh3_64_intdigest(value))

    def discard(self, row: int) -> None:
        """See `Destinations`."""
        self.values[row] = b""
