"""Open-file-description (OFD) locks on bytes of a file.

Unlike POSIX record locks they belong to the open file and not to the process: a `fork`ed child and
a memory mapping keep them alive, and the kernel drops them when the last of these is gone. That is
the proof that a writer can no longer write (see fcntl(2), "Open file description locks").
"""

from __future__ import annotations

import errno
import fcntl
import struct

_FLOCK = struct.Struct("@hhqqi4x")
"""struct flock with 64-bit offsets: type, whence, start, length, process (0 for OFD locks)."""


def _flock(kind: int, start: int, length: int) -> bytes:
    return _FLOCK.pack(kind, 0, start, length, 0)


def try_lock(descriptor: int, start: int) -> bool:
    """Take an exclusive lock on one byte without waiting; False if another open file has it.

    Raises OSError if the file cannot be locked at all.
    """
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _flock(fcntl.F_WRLCK, start, 1))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def unlock(descriptor: int, start: int) -> None:
    """Give a lock on one byte up; without effect if it is not held. Raises OSError."""
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _flock(fcntl.F_UNLCK, start, 1))


def first_held(descriptor: int, start: int, length: int = 1) -> tuple[int, int] | None:
    """(start, length) of one lock that another open file holds in this range of bytes, or None.

    Raises OSError.
    """
    answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _flock(fcntl.F_WRLCK, start, length))
    kind, _, held_start, held_length, _ = _FLOCK.unpack(answer)
    return None if kind == fcntl.F_UNLCK else (held_start, held_length)
