"""`Ballast`: room for the journal on a disk that somebody else has filled."""

from __future__ import annotations

import errno
from contextlib import suppress

from snapd.disk import Disk, DiskFile
from snapd.errors import DiskError
from snapd.repository.names import BALLAST_FILE, JOURNAL, TEMPORARY

BALLAST_BYTES = 4 * 2**20
"""What a daemon keeps. A removal that comes alone takes two pages of the journal, so it is enough
for 500 of them, and for some ten thousand that come together."""
FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT})
"""What a file system says that has no room, or none for us."""

_BUDGET_SHARE = 64
"""It is at most this fraction of what the repository may take."""
_ROOM_TIMES = 4
"""It is made where so many times its length is free: not on a disk that is about to be full."""
_PIECE_BYTES = 2**20


def ballast_within(bytes_max: int) -> int:
    """Length of the ballast in bytes of a repository that may take `bytes_max`."""
    return min(BALLAST_BYTES, bytes_max // _BUDGET_SHARE)


class Ballast:
    """A file of zeros that holds nothing. On a full disk it becomes a journal file: its blocks are
    ours already, so that nobody who goes on filling the disk can take them in between.

    Where an overwrite takes new blocks nevertheless (file systems that copy on write), whoever
    failed to write to it deletes it, which frees room as well; one that also compresses zeros away
    leaves only what others leave.

    Crash argument: its bytes never count, under any name. One that was renamed and not yet written
    reads as a journal file that a crash left before its first write; what follows the last record
    is zeros, as after a torn tail that reached the medium as nothing. A crash while it is made
    leaves a temporary file, which the next start removes.
    """

    def __init__(self, disk: Disk, bytes_max: int) -> None:
        """`bytes_max` is its length; 0 is none."""
        self._disk = disk
        self.bytes_max = bytes_max

    @property
    def is_there(self) -> bool:
        """Whether there is one. Raises DiskError."""
        return BALLAST_FILE.rpartition("/")[2] in self._disk.list(JOURNAL)

    def become(self, name: str) -> DiskFile:
        """Give it up: it is the file `name` from now on, open for writing from its start; its new
        name is as durable as the next sync of the directory. Raises DiskError."""
        self._disk.rename(BALLAST_FILE, name)
        return self._disk.open(name, "a")

    def restore(self) -> bool:
        """Make it, if there is none and there is room; whether it was made. Failing to is no
        failure of anything else: the next commit tries again."""
        temporary = BALLAST_FILE + TEMPORARY
        try:
            free = self._disk.usage().free_bytes
            if not self.bytes_max or free < _ROOM_TIMES * self.bytes_max or self.is_there:
                return False
            with suppress(DiskError):
                self._disk.remove(temporary)
            self._write(temporary)
            self._disk.rename(temporary, BALLAST_FILE)
            self._disk.sync_directory(JOURNAL)
        except DiskError:
            with suppress(DiskError):
                self._disk.remove(temporary)
            return False
        return True

    def _write(self, name: str) -> None:
        """Written, not only made that long, and synced: only then its blocks are taken."""
        zeros = bytes(min(_PIECE_BYTES, self.bytes_max))
        file = self._disk.open(name, "x")
        try:
            for start in range(0, self.bytes_max, len(zeros)):
                file.write([zeros[: self.bytes_max - start]], start)
            file.sync()
        finally:
            file.close()
