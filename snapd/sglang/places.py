"""A place on disk for each rank that no other can have: where the wheel offloads to.

Every rank embeds a client of its own, and Mooncake's names of files are unique within a process
only: two ranks in one directory would overwrite each other's files in silence.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from snapd.disk import DiskLock, PosixDisk
from snapd.errors import LockHeldError

CLAIM_SECONDS_MAX = 10.0
"""A rank that was just killed may hold its claim until the kernel has taken its memory apart."""

_CLAIMS = ".snapd-claims"
_POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class RankName:
    """Which rank, as SGLang names its directory."""

    dp: int
    tp: int
    pp: int
    cp: int

    def __str__(self) -> str:
        return f"rank_{self.dp}_{self.tp}_{self.pp}_{self.cp}"


@dataclass(frozen=True, slots=True)
class RankPlace:
    """A directory that this process has to itself until `release` or its end."""

    path: str
    lock: DiskLock

    def release(self) -> None:
        """Give it up; idempotent."""
        self.lock.release()


def claim_place(root: str, rank: RankName, *, wait_seconds: float = CLAIM_SECONDS_MAX) -> RankPlace:
    """The directory of this rank below `root`, made if need be, and a lock that says so.

    The lock is the kernel's, on a file beside the directory, so that Mooncake does not find a file
    that is not its own; it goes with the process. Raises LockHeldError when another process keeps
    it for longer than `wait_seconds`, DiskError.
    """
    path = os.path.join(root, str(rank))
    PosixDisk(path, create=True).close()
    disk = PosixDisk(os.path.join(root, _CLAIMS, str(rank)), create=True)
    deadline = time.monotonic() + wait_seconds
    try:
        while True:
            try:
                return RankPlace(path, disk.lock("lock"))
            except LockHeldError as error:
                if time.monotonic() >= deadline:
                    raise LockHeldError(
                        f"ssd_offload_path = {root!r}: another process uses its {rank}; two that "
                        "share a directory overwrite each other's files, so give every SGLang "
                        "server of this host a path of its own"
                    ) from error
            time.sleep(_POLL_SECONDS)
    finally:
        disk.close()
