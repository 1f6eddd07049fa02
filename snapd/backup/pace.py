"""`RateLimit`: no more than so many bytes a second."""

from __future__ import annotations

import time
from collections.abc import Callable

from snapd.plans import TokenBucket

_BURST_SECONDS = 0.25


class RateLimit:
    """Waits so that the bytes it is told of stay under a limit. For one thread."""

    def __init__(self, bytes_per_sec_max: int) -> None:
        """0 is no limit."""
        self._bucket = TokenBucket.full(
            bytes_per_sec_max, bytes_per_sec_max * _BURST_SECONDS, time.monotonic()
        )
        self._is_limited = bytes_per_sec_max > 0

    def __call__(self, amount: int) -> None:
        """`amount` bytes are about to be read."""
        if self._is_limited:
            self._bucket, wait_seconds = self._bucket.take(amount, time.monotonic())
            time.sleep(wait_seconds)


Pace = Callable[[int], None]
"""pace(amount): waits until `amount` bytes may be read."""
