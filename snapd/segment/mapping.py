"""`SegmentMapping`: a segment file in memory, its regions as arrays."""

from __future__ import annotations

import contextlib
import mmap
from typing import Any

import numpy as np
import numpy.typing as npt

from snapd.blocks.keys import I64, U8, KeyColumn, gather_ranges
from snapd.errors import CorruptError, SegmentError
from snapd.formats.segment import (
    HEADER_BYTES,
    HEAT_DTYPE,
    KEY_UNIT_BYTES,
    SLOT_DTYPE,
    Geometry,
    HeaderState,
    Slots,
    decode_state,
)
from snapd.segment.pages import populate


class SegmentMapping:
    """The whole file mapped shared and writable; every attribute is a view of it.

    The mapping holds the open file, and so every lock taken on it, until the last view is gone.
    """

    def __init__(self, descriptor: int, geometry: Geometry) -> None:
        """Map. Raises SegmentError if there is not enough address space."""
        self.geometry = geometry
        try:
            self._memory = mmap.mmap(descriptor, geometry.file_bytes)
        except (OSError, ValueError, OverflowError) as error:
            raise SegmentError(f"cannot map {geometry.file_bytes} bytes: {error}") from error
        self.data = memoryview(self._memory)
        count = geometry.slot_count
        self.header: U8 = self._view(np.uint8, 0, HEADER_BYTES)
        self.slots: Slots = self._view(SLOT_DTYPE, geometry.slots_offset, count)
        self.heat: Slots = self._view(HEAT_DTYPE, geometry.heat_offset, count)
        self.key_heap: U8 = self._view(np.uint8, geometry.key_heap_offset, geometry.key_heap_bytes)

    def _view(self, dtype: Any, offset: int, count: int) -> npt.NDArray[Any]:
        return np.frombuffer(self._memory, dtype, count, offset)

    def read_state(self) -> HeaderState:
        """The header's mutable part as it is now. Raises CorruptError if no copy is valid."""
        return decode_state(self.header.tobytes())

    def populate(self, offset: int, length: int) -> None:
        """Fill the page table for page-aligned bytes of the file."""
        populate(self.header.ctypes.data + offset, length)

    def keys_of(self, slots: Slots) -> KeyColumn:
        """The keys of these records. Raises CorruptError if one lies outside the key heap."""
        starts: I64 = slots["key_offset"].astype(np.int64) * KEY_UNIT_BYTES
        lengths: I64 = slots["key_length"].astype(np.int64)
        if len(slots) and int((starts + lengths).max()) > self.geometry.key_heap_bytes:
            raise CorruptError("a slot names a key outside the key heap")
        return KeyColumn.from_lengths(gather_ranges(self.key_heap, starts, lengths), lengths)

    def close(self) -> None:
        """Drop the views; the memory goes when nobody else holds one. Idempotent."""
        for name in ("header", "slots", "heat", "key_heap"):
            self.__dict__.pop(name, None)
        self.data.release()
        with contextlib.suppress(BufferError):
            self._memory.close()
