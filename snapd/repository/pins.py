"""A reader's pin: while one is held, nothing is deleted."""

from __future__ import annotations

import time

from snapd.disk import Disk, DiskLock
from snapd.errors import LockHeldError
from snapd.repository.names import PINS_FILE

_PIN_SECONDS = 10.0
"""How long a reader waits for pruning to end."""


def pin(disk: Disk) -> DiskLock:
    """A reader's pin, once whoever prunes is done. Raises LockHeldError or DiskError."""
    deadline = time.monotonic() + _PIN_SECONDS
    while True:
        try:
            return disk.lock(PINS_FILE, shared=True)
        except LockHeldError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.05)
