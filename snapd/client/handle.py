"""`BufferHandle`: a value in memory of its own, which the handle keeps."""

from __future__ import annotations

import numpy as np

from snapd.client.memory import address_of


class BufferHandle(bytearray):
    """What `get_buffer` gives. Its bytes are a copy: they stay when the key is removed.

    `memoryview`, `bytes` and `len` work on it, as on the wheel's. It is a `bytearray`, because
    before Python 3.12 no class written in Python can lend its memory in another way.
    """

    __slots__ = ()

    def ptr(self) -> int:
        """Address of the first byte, valid as long as the handle is and keeps its length."""
        return address_of(np.frombuffer(self, np.uint8))

    def size(self) -> int:
        """Bytes."""
        return len(self)
