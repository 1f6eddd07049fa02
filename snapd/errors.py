"""The error tree. Every error that snapd raises on purpose derives from `SnapdError`.

Code below the command line raises or handles, it never logs and raises. Only `snapd.cli` turns an
error into an exit code, by reading `exit_code` off the class. A message names the thing, the value
and the way out, because it is printed as it stands.
"""

from __future__ import annotations

from typing import ClassVar


class SnapdError(Exception):
    """Something snapd could not do. Exit code 1."""

    exit_code: ClassVar[int] = 1


class SettingError(SnapdError):
    """A setting or an argument is unknown or has a value that cannot be used. Exit code 2."""

    exit_code = 2


class NothingThereError(SnapdError):
    """There is no snapshot, no daemon or no store to do it on. Exit code 3."""

    exit_code = 3


class IntegrityError(SnapdError):
    """Bytes are not what was written. Exit code 4."""

    exit_code = 4


class RefusedError(SnapdError):
    """A lock is held, a target is not empty, or a format is newer than ours. Exit code 5."""

    exit_code = 5


class LockHeldError(RefusedError):
    """Another process holds the lock on a repository or a segment."""


class NewerFormatError(RefusedError):
    """A file or a segment was written by a newer format version; it is left as it is."""


class UnfinishedRestoreError(RefusedError):
    """A restore into the repository was begun and not finished; nobody uses what is there."""


class CorruptError(IntegrityError):
    """A file, an index, a header or a slot failed its checks; the message says which and how."""


class DiskError(SnapdError):
    """A file system call failed. `errno` holds the system's number (0 where there is none)."""

    def __init__(self, message: str, errno: int = 0) -> None:
        super().__init__(message)
        self.errno = errno


class ProtocolError(SnapdError):
    """A peer sent bytes that are not a valid message; its connection is closed."""


class StoreUnavailableError(SnapdError):
    """The store did not answer within the deadline, or its connection broke."""


class SegmentError(SnapdError):
    """A segment cannot be created, mapped or adopted."""


class SegmentFullError(SegmentError):
    """No extent, slot or key space is left after eviction."""
