"""`Staging`: memory that the daemon shares with a putter, as the putter maps it."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import stat

import numpy as np

from snapd.blocks.keys import U64, Bools
from snapd.errors import ProtocolError


class Staging:
    """A mapped anonymous file. Its pages can be read as long as this object lives: a file that can
    shrink is refused, because touching a page that is gone would kill the store service."""

    def __init__(self, descriptor: int, size_bytes: int) -> None:
        """Map; `descriptor` stays the caller's. Raises ProtocolError if it is not what it should
        be, OSError if it cannot be mapped."""
        self.size_bytes = size_bytes
        self._check(descriptor)
        # Writable, because some transports refuse to register memory that is not.
        self._memory = mmap.mmap(descriptor, size_bytes)
        self._bytes = np.frombuffer(self._memory, np.uint8)
        self.address: int = self._bytes.ctypes.data

    def contains(self, offsets: U64, sizes: U64) -> Bools:
        """Which ranges lie inside, and hold at least one byte, bool [n]."""
        end = np.uint64(self.size_bytes)
        # In this order no sum can wrap around.
        inside: Bools = (sizes > 0) & (sizes <= end) & (offsets <= end - np.minimum(sizes, end))
        return inside

    def close(self) -> None:
        """Unmap; nobody may read any more. Idempotent."""
        self._bytes = np.empty(0, np.uint8)
        with contextlib.suppress(BufferError):
            self._memory.close()

    def _check(self, descriptor: int) -> None:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ProtocolError("staging memory is not a regular file")
        try:
            seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
        except OSError as error:
            raise ProtocolError(f"staging memory cannot be sealed: {error}") from error
        if not seals & fcntl.F_SEAL_SHRINK:
            raise ProtocolError("staging memory is not sealed against shrinking")
        if status.st_size < self.size_bytes:
            raise ProtocolError(f"staging memory has {status.st_size} bytes, not {self.size_bytes}")
