"""`PosixDisk`: the disk port over a real directory.

Every name is resolved component by component from a descriptor of the root, never through a
symbolic link, so that nobody who can write into the directory can lead a write out of it.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from typing_extensions import Buffer

from snapd.disk.names import split_name
from snapd.disk.port import DiskUsage
from snapd.disk.transfer import read_whole, write_whole
from snapd.errors import DiskError, LockHeldError

_log = logging.getLogger(__name__)

_FILE_MODE, _DIRECTORY_MODE = 0o600, 0o700
_BASE_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_OPEN_FLAGS = {
    "r": os.O_RDONLY,
    "x": os.O_RDWR | os.O_CREAT | os.O_EXCL,
    "a": os.O_RDWR | os.O_CREAT,
}
_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class PosixDisk:
    """A directory tree below `root`. Safe to use from several threads."""

    def __init__(self, root: Path | str, *, create: bool = False) -> None:
        """Open `root`, which must be a directory; `create` makes it and its parents, mode 0700.

        Raises DiskError.
        """
        self.root = Path(root)
        try:
            if create:
                self.root.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)
            # The root itself may be reached through links: the operator named it.
            self._root = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise self._failure("open directory", "", error) from error
        self._direct_refused = threading.Event()
        self._writer: PosixLock | None = None

    def close(self) -> None:
        """Close the root; files and locks that are open stay so. Idempotent."""
        root, self._root = self._root, -1
        if root >= 0:
            os.close(root)

    def open(self, name: str, mode: str, *, direct: bool = False) -> PosixFile:
        """Open a file, see `Disk.open`."""
        flags = _OPEN_FLAGS[mode] | _BASE_FLAGS
        with self._parent(name, "open") as (parent, leaf):
            descriptor = -1
            if direct and not self._direct_refused.is_set():
                descriptor = self._open_direct(leaf, flags, parent)
            is_direct = descriptor >= 0
            if not is_direct:
                descriptor = os.open(leaf, flags, _FILE_MODE, dir_fd=parent)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise DiskError(f"{self.root / name} is not a regular file", errno.EINVAL)
        return PosixFile(descriptor, str(self.root / name), direct=is_direct)

    def list(self, name: str) -> Sequence[str]:
        """Names in a directory, sorted; none if it does not exist."""
        try:
            with self._directory(name, "list") as descriptor:
                return sorted(os.listdir(descriptor))
        except DiskError as error:
            if error.errno == errno.ENOENT:
                return ()
            raise

    def make_directory(self, name: str) -> None:
        """Make a directory unless it is there, mode 0700."""
        with self._parent(name, "make directory") as (parent, leaf):
            try:
                os.mkdir(leaf, _DIRECTORY_MODE, dir_fd=parent)
            except FileExistsError:
                # Something else of that name, a link included, is refused here.
                os.close(os.open(leaf, _DIRECTORY_FLAGS, dir_fd=parent))

    def rename(self, source: str, target: str) -> None:
        """Rename a file, replacing the target."""
        with (
            self._parent(source, "rename") as (source_parent, source_leaf),
            self._parent(target, "rename to") as (target_parent, target_leaf),
        ):
            os.rename(source_leaf, target_leaf, src_dir_fd=source_parent, dst_dir_fd=target_parent)

    def remove(self, name: str) -> None:
        """Remove a file."""
        with self._parent(name, "remove") as (parent, leaf):
            os.unlink(leaf, dir_fd=parent)

    def sync_directory(self, name: str) -> None:
        """Make the names in a directory durable."""
        with self._directory(name, "sync directory") as descriptor:
            os.fsync(descriptor)

    def usage(self) -> DiskUsage:
        """Capacity and free space of the file system."""
        try:
            found = os.fstatvfs(self._root)
        except OSError as error:
            raise self._failure("stat file system of", "", error) from error
        unit = found.f_frsize
        reserved = max(0, found.f_bfree - found.f_bavail)
        return DiskUsage(found.f_blocks * unit, found.f_bavail * unit, reserved * unit)

    def lock(self, name: str, *, shared: bool = False) -> PosixLock:
        """Lock a file with `flock`, which the kernel releases with the last descriptor.

        A file can be deleted, and then the next process locks another one of the same name. So who
        first takes a lock alone, which is the writer's, locks the root directory itself as well.
        """
        flags = os.O_RDWR | os.O_CREAT | _BASE_FLAGS
        with self._parent(name, "open lock") as (parent, leaf):
            try:
                descriptor = os.open(leaf, flags, _FILE_MODE, dir_fd=parent)
            except OSError as error:
                # A reader on a read-only mount can still pin what it reads.
                if not shared or error.errno not in {errno.EROFS, errno.EACCES}:
                    raise
                descriptor = os.open(leaf, os.O_RDONLY | _BASE_FLAGS, dir_fd=parent)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise DiskError(f"{self.root / name} is not a regular file", errno.EINVAL)
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise LockHeldError(
                f"{self.root / name} is locked by another process: stop that process "
                "(`fuser` names it), or use another directory"
            ) from error
        except OSError as error:
            os.close(descriptor)
            raise self._failure("lock", name, error) from error
        if shared or (self._writer is not None and self._writer.is_held):
            return PosixLock(descriptor)
        try:
            self._writer = PosixLock(descriptor, *self._lock_root())
        except LockHeldError:
            os.close(descriptor)
            raise
        return self._writer

    def _lock_root(self) -> tuple[int, ...]:
        """A descriptor that holds the root directory's lock; none where directories have no locks
        (a network file system, say). Raises LockHeldError."""
        descriptor = -1
        try:
            descriptor = os.open(".", _DIRECTORY_FLAGS, dir_fd=self._root)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise LockHeldError(
                f"{self.root} is locked by another process, though its lock file is not: stop that "
                "process (`fuser` names it), or use another directory"
            ) from error
        except OSError:
            if descriptor >= 0:
                os.close(descriptor)
            return ()
        return (descriptor,)

    def _open_direct(self, leaf: str, flags: int, parent: int) -> int:
        """A descriptor with O_DIRECT, or -1 where the file system has none (warned of once)."""
        try:
            return os.open(leaf, flags | os.O_DIRECT, _FILE_MODE, dir_fd=parent)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        self._direct_refused.set()
        _log.warning("event=direct_io_unavailable path=%s effect=buffered_writes", self.root)
        if flags & os.O_EXCL:
            # Some file systems create the name before they refuse the flag.
            with suppress(FileNotFoundError):
                os.unlink(leaf, dir_fd=parent)
        return -1

    @contextmanager
    def _directory(self, name: str, action: str) -> Iterator[int]:
        """A descriptor of a directory; every OSError inside becomes a DiskError."""
        descriptor = -1
        try:
            descriptor = os.open(".", _DIRECTORY_FLAGS, dir_fd=self._root)
            for part in split_name(name):
                inner = os.open(part, _DIRECTORY_FLAGS, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = inner
            yield descriptor
        except OSError as error:
            raise self._failure(action, name, error) from error
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    @contextmanager
    def _parent(self, name: str, action: str) -> Iterator[tuple[int, str]]:
        """A descriptor of the directory that holds `name`, and its last component."""
        parts = split_name(name)
        if not parts:
            raise DiskError(f"cannot {action} the root itself", errno.EINVAL)
        with self._directory("/".join(parts[:-1]), action) as descriptor:
            try:
                yield descriptor, parts[-1]
            except OSError as error:
                raise self._failure(action, name, error) from error

    def _failure(self, action: str, name: str, error: OSError) -> DiskError:
        path = self.root / name if name else self.root
        return DiskError(f"cannot {action} {path}: {error.strerror}", error.errno or 0)


class PosixFile:
    """An open file. Reads may run in several threads at once; writes come from one."""

    def __init__(self, descriptor: int, path: str, *, direct: bool) -> None:
        self._descriptor = descriptor
        self._path = path
        self._poison: str | None = None
        self.direct = direct

    def write(self, buffers: Sequence[Buffer], offset: int) -> None:
        """Write all buffers at `offset`, whole."""
        self._check()
        try:
            write_whole(self._pwritev, buffers, offset, direct=self.direct)
        except OSError as error:
            raise self._poisoned("write", error) from error

    def read(self, buffers: Sequence[Buffer], offset: int) -> int:
        """Fill the buffers from `offset`; fewer bytes only at the end of the file."""
        self._check()
        try:
            return read_whole(self._preadv, buffers, offset, direct=self.direct, size=self.size)
        except OSError as error:
            # A failed read says nothing about what was written: no poison.
            raise self._failure("read", error) from error

    def sync(self) -> None:
        """fsync; a failure poisons, because the kernel may have dropped the dirty pages."""
        self._check()
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise self._poisoned("sync", error) from error

    def size(self) -> int:
        """Length in bytes."""
        self._check()
        try:
            return os.fstat(self._descriptor).st_size
        except OSError as error:
            raise self._failure("stat", error) from error

    def close(self) -> None:
        """Close; idempotent."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _pwritev(self, group: list[memoryview], offset: int) -> int:
        return os.pwritev(self._descriptor, group, offset)

    def _preadv(self, group: list[memoryview], offset: int) -> int:
        return os.preadv(self._descriptor, group, offset)

    def _check(self) -> None:
        if self._descriptor < 0:
            raise DiskError(f"{self._path} is closed", errno.EBADF)
        if self._poison is not None:
            raise DiskError(f"{self._path} is given up: {self._poison}", errno.EIO)

    def _failure(self, action: str, error: OSError) -> DiskError:
        return DiskError(f"cannot {action} {self._path}: {error.strerror}", error.errno or 0)

    def _poisoned(self, action: str, error: OSError) -> DiskError:
        failure = self._failure(action, error)
        self._poison = str(failure)
        return failure


class PosixLock:
    """A held lock; the kernel releases it when the process dies."""

    def __init__(self, *descriptors: int) -> None:
        self._descriptors = list(descriptors)

    @property
    def is_held(self) -> bool:
        """Until `release`."""
        return bool(self._descriptors)

    def release(self) -> None:
        """Give it up; idempotent."""
        while self._descriptors:
            os.close(self._descriptors.pop())
