"""Return codes of the store, with Mooncake's numbers (`mooncake-store/include/types.h`)."""

from __future__ import annotations

from enum import IntEnum


class ReturnCode(IntEnum):
    """0 is success; gets return bytes read; negative numbers are errors."""

    OK = 0
    INTERNAL_ERROR = -1
    BUFFER_OVERFLOW = -10
    NO_AVAILABLE_HANDLE = -200
    """No space left after eviction."""
    INVALID_KEY = -400
    WRITE_FAIL = -500
    """A removal or replacement is in memory, and not on disk; or a block's slot was damaged."""
    INVALID_PARAMS = -600
    INVALID_WRITE = -700
    INVALID_READ = -701
    REPLICA_IS_NOT_READY = -703
    OBJECT_NOT_FOUND = -704
    OBJECT_ALREADY_EXISTS = -705
    OBJECT_HAS_LEASE = -706
    LEASE_EXPIRED = -707
    TRANSFER_FAIL = -800
    RPC_FAIL = -900
    """The store could not be reached."""
