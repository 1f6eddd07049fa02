"""Standard input and output, and small secret files: what lies outside of any disk's root."""

from __future__ import annotations

import errno
import os
import stat

from typing_extensions import Buffer

from snapd.errors import DiskError, RefusedError, SettingError

_OTHERS = stat.S_IRWXG | stat.S_IRWXO


class StreamSource:
    """The bytes that come in through a descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def read(self, length: int) -> bytes:
        """Up to `length` bytes, none only at the end. Raises DiskError."""
        try:
            return os.read(self._descriptor, length)
        except OSError as error:
            raise DiskError(
                f"cannot read the stream: {error.strerror}", error.errno or 0
            ) from error


class StreamSink:
    """Writes to a descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __call__(self, data: Buffer) -> None:
        """Write all of `data`. Raises DiskError."""
        view = memoryview(data).cast("B")
        try:
            while view.nbytes:
                view = view[os.write(self._descriptor, view) :]
        except OSError as error:
            raise DiskError(
                f"cannot write the stream: {error.strerror}", error.errno or 0
            ) from error


def read_secret(path: str, bytes_max: int) -> bytes:
    """The bytes of a file that only its owner, who is us or root, may read.

    Raises RefusedError if others may read it, SettingError if there is no such file or it is longer
    than `bytes_max`, and DiskError.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise SettingError(f"cannot read the key file {path}: {error.strerror}") from error
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_size > bytes_max:
            raise SettingError(f"{path} is no key file")
        if found.st_mode & _OTHERS or found.st_uid not in {0, os.geteuid()}:
            raise RefusedError(
                f"the key file {path} can be read by others: `chmod 600` it, as its owner"
            )
        return os.read(descriptor, bytes_max)
    except OSError as error:
        raise DiskError(
            f"cannot read {path}: {error.strerror}", error.errno or errno.EIO
        ) from error
    finally:
        os.close(descriptor)
