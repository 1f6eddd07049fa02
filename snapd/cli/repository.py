"""Opening the repository from a command, beside a running daemon or without one."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from snapd.blocks import Codec
from snapd.config import Settings
from snapd.disk.posix import PosixDisk
from snapd.errors import DiskError, NothingThereError
from snapd.repository import Repository

_CODECS = {"none": Codec.RAW, "zstd": Codec.ZSTD}


@contextmanager
def open_repository(settings: Settings, *, read_only: bool = True) -> Iterator[Repository]:
    """The repository at `persistent_path`, closed at the end of the context.

    For reading it is pinned against pruning, not locked. Raises NothingThereError when there is
    none, LockHeldError when it is to be changed and a daemon has it, NewerFormatError, DiskError.
    """
    missing = f"no repository at {settings.persistent_path}: name the right --persistent-path"
    try:
        disk = PosixDisk(settings.persistent_path)
    except DiskError as error:
        if error.errno in {errno.ENOENT, errno.ENOTDIR}:
            raise NothingThereError(missing) from error
        raise
    try:
        try:
            repository = Repository.open(
                disk,
                read_only=read_only,
                retain=settings.retain,
                codec=_CODECS[settings.codec],
                pack_bytes_max=settings.pack_bytes_max,
            )
        except NothingThereError as error:
            raise NothingThereError(missing) from error
        with repository:
            yield repository
    finally:
        disk.close()
