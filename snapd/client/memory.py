"""Memory by address: views of it, copies that release the GIL, and the registry of buffers.

Callers name memory by raw pointers, as they do with the wheel. Nothing here can check that a
pointer is valid: a wrong one ends the process, as it does in C.
"""

from __future__ import annotations

import ctypes
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash
from typing_extensions import Buffer

from snapd.blocks.keys import U8

POINTER_MAX = 2**64 - 1
_READ = 0x100
"""PyBUF_READ of CPython's buffer interface."""

_memory_view: Callable[[int, int, int], memoryview] = ctypes.PYFUNCTYPE(
    ctypes.py_object, ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int
)(("PyMemoryView_FromMemory", ctypes.pythonapi))

copy_memory: Callable[[int, int, int], Any] = ctypes.memmove
"""`copy_memory(target, source, bytes)` between addresses; other threads run meanwhile."""

fill_memory: Callable[[int, int, int], Any] = ctypes.memset
"""`fill_memory(target, value, bytes)`."""


checksum: Callable[[Buffer], int] = xxhash.xxh3_64_intdigest
"""XXH3-64 of any bytes; releases the GIL for long ones."""


def checksum_memory(address: int, size: int) -> int:
    """XXH3-64 of `size` bytes at `address`."""
    return checksum(_memory_view(address, size, _READ))


class PartsHasher:
    """XXH3-64 of bytes that lie apart, one part after another."""

    def __init__(self) -> None:
        self._state = xxhash.xxh3_64()

    def update(self, address: int, size: int) -> None:
        """The next part; releases the GIL for long ones."""
        self._state.update(_memory_view(address, size, _READ))

    def finish(self) -> int:
        """The checksum of what came since the last one."""
        value: int = self._state.intdigest()
        self._state.reset()
        return value


def address_of(array: npt.NDArray[Any]) -> int:
    """Address of an array's first byte; valid as long as the array is."""
    return int(array.__array_interface__["data"][0])


def as_bytes_array(value: Any) -> U8:
    """The bytes of any object with the buffer interface, uint8 [bytes].

    Contiguous memory is not copied; anything else is, in C order. Raises TypeError for objects
    without that interface, `str` among them.
    """
    try:
        return np.frombuffer(value, np.uint8)
    except (ValueError, BufferError):
        return np.frombuffer(memoryview(value).tobytes(), np.uint8)


def as_unsigned(value: Any, name: str) -> int:
    """An address or a size. Raises TypeError unless it is a whole number of 64 bits, as the wheel
    does; NumPy's integers count, floats and negative numbers do not."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an int, not {type(value).__name__}") from None
    if not 0 <= number <= POINTER_MAX:
        raise TypeError(f"{name} must be from 0 to 2**64 - 1, not {number}")
    return number


def as_unsigned_list(values: Sequence[Any], name: str) -> list[int]:
    """`as_unsigned` of many."""
    try:
        numbers = list(map(operator.index, values))
    except TypeError:
        numbers = []
    if len(numbers) == len(values) and (
        not numbers or (min(numbers) >= 0 and max(numbers) <= POINTER_MAX)
    ):
        return numbers
    return [as_unsigned(value, name) for value in values]


class BufferRegistry:
    """Registered memory: a book of addresses that answers as the wheel's does.

    A transport would pin what is registered; copies inside one machine need nothing of the kind,
    and so, as with the wheel over TCP, transfers do not ask whether their memory is registered.
    """

    def __init__(self) -> None:
        self._sizes: dict[int, int] = {}

    def register(self, address: int, size: int) -> bool:
        """Note a range. False if it is empty, null, or overlaps one that is registered."""
        if address == 0 or size == 0:
            return False
        for start, length in tuple(self._sizes.items()):  # other threads may register meanwhile
            if address < start + length and start < address + size:
                return False
        self._sizes[address] = size
        return True

    def bytes_from(self, address: int) -> int:
        """How much registered memory there is from `address` on; 0 where it is not registered."""
        for start, length in tuple(self._sizes.items()):
            if start <= address < start + length:
                return start + length - address
        return 0

    def unregister(self, address: int) -> bool:
        """Forget the range that starts at `address`. False if none does."""
        return self._sizes.pop(address, None) is not None
