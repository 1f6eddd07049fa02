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
    with open_disk(settings) as disk:
        try:
            repository = Repository.open(
                disk,
                read_only=read_only,
                retain=settings.retain,
                codec=_CODECS[settings.codec],
                pack_bytes_max=settings.pack_bytes_max,
            )
        except NothingThereError as error:
            raise NothingThereError(_missing(settings)) from error
        with repository:
            yield repository


@contextmanager
def open_disk(settings: Settings) -> Iterator[PosixDisk]:
    """The directory `persistent_path`, closed at the end of the context. Raises NothingThereError
    when there is none, or DiskError."""
    try:
        disk = PosixDisk(settings.persistent_path)
    except DiskError as error:
        if error.errno in {errno.ENOENT, errno.ENOTDIR}:
            raise NothingThereError(_missing(settings)) from error
        raise
    try:
        yield disk
    finally:
        disk.close()


def _missing(settings: Settings) -> str:
    return f"no repository at {settings.persistent_path}: name the right --persistent-path"
