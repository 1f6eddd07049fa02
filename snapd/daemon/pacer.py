"""`Pacer`: the clock and the waiting around a `TokenBucket`."""

from __future__ import annotations

import threading
import time

from snapd.plans import TokenBucket

_BURST_SECONDS = 0.25
"""Idle time that may be made up for at once."""

_IDLE_SECONDS_MAX = 60.0
"""Longest single wait; one block of 64 GiB at 1 MB/s is not worth more thought."""


class Pacer:
    """One limit on bytes a second, shared by all threads that write or read in the background."""

    def __init__(self, bytes_per_sec_max: int, stopping: threading.Event) -> None:
        self._bucket = TokenBucket.full(
            bytes_per_sec_max, bytes_per_sec_max * _BURST_SECONDS, time.monotonic()
        )
        self._lock = threading.Lock()
        self._stopping = stopping

    def configure(self, bytes_per_sec_max: int) -> None:
        """Another limit from now on."""
        with self._lock:
            if self._bucket.rate != bytes_per_sec_max:
                self._bucket = TokenBucket.full(
                    bytes_per_sec_max, bytes_per_sec_max * _BURST_SECONDS, time.monotonic()
                )

    def __call__(self, amount: int) -> None:
        """Wait until `amount` bytes may be moved; no longer once the daemon stops."""
        if self._stopping.is_set():
            return
        with self._lock:
            self._bucket, wait_seconds = self._bucket.take(amount, time.monotonic())
        if wait_seconds > 0:
            self._stopping.wait(min(wait_seconds, _IDLE_SECONDS_MAX))
