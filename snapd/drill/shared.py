"""What the drill's processes share: a lock, tickets for requests, and records of what happened."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

RECORD_DTYPE = np.dtype(
    [
        ("fired", np.float64),
        ("ended", np.float64),
        ("late_s", np.float32),
        ("fetch_s", np.float32),
        ("blocks", np.uint32),
        ("hits", np.uint32),
        ("overdue", np.uint32),
        ("wrong_blocks", np.uint32),
        ("wrong_bytes", np.uint64),
        ("puts", np.uint32),
        ("puts_failed", np.uint32),
    ]
)
"""One request. `fired` and `ended` (of its fetch) are seconds of the monotonic clock, 0 if it has
not run; `hits` are the blocks that came back right within the deadline, `overdue` those that came
back right after it."""

Records = npt.NDArray[np.void]

SURVIVING_FILE = "surviving.npy"
RESTORED_FILE = "restored.npy"
"""Columns that go to and from an auditor in a process of its own."""


class FileLock:
    """An exclusive lock between processes; the kernel releases it when its holder dies."""

    def __init__(self, path: Path) -> None:
        """Open the lock file, and make it if it is missing."""
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def __enter__(self) -> None:
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    def __exit__(self, *exception: object) -> None:
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


class Tickets:
    """Hands every request to one client, in order, and counts the clients that have arrived."""

    def __init__(self, path: Path, lock: FileLock) -> None:
        """Map tickets that `create` made."""
        self._fields = np.memmap(path, np.int64, mode="r+", shape=(2,))
        self._lock = lock

    @classmethod
    def create(cls, path: Path, lock: FileLock) -> Tickets:
        """Tickets from 0."""
        np.zeros(2, np.int64).tofile(path)
        return cls(path, lock)

    def take(self) -> int:
        """The next request's number."""
        with self._lock:
            self._fields[0] += 1
            return int(self._fields[0]) - 1

    def arrive(self) -> None:
        """Say that a client is connected and waits for the clock."""
        with self._lock:
            self._fields[1] += 1

    @property
    def arrived(self) -> int:
        """Clients that wait or have begun."""
        return int(self._fields[1])


def create_records(path: Path, requests: int) -> Records:
    """A mapped file of records that say that nothing has run."""
    np.zeros(requests, RECORD_DTYPE).tofile(path)
    return open_records(path)


def open_records(path: Path) -> Records:
    """Map the file that `create_records` made, `RECORD_DTYPE` [requests]."""
    records: np.memmap[Any, np.dtype[np.void]] = np.memmap(path, RECORD_DTYPE, mode="r+")
    return records
