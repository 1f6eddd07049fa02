"""A listening Unix socket, and the descriptors for those who connect."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import socket
import stat
from pathlib import Path

BACKLOG = 512
"""Connections that wait to be accepted; who comes after them waits in his `connect`."""


def bind_socket(path: Path, *, group_shared: bool = False, peer: str = "store") -> socket.socket:
    """A listening socket at `path`, mode 0600 in a directory that only we can enter; with
    `group_shared` 0660 and 0770.

    A socket file that nobody answers is a leftover: the caller is the only one who may listen here
    (the store holds the segment's lock, a store service its port).
    Raises OSError, or FileExistsError when somebody answers.
    """
    try:
        path.parent.mkdir(mode=0o770 if group_shared else 0o700, parents=True, exist_ok=True)
    except FileExistsError as error:  # not to be taken for a store that answers
        raise NotADirectoryError(errno.ENOTDIR, "Not a directory", str(path.parent)) from error
    with (
        socket.socket(socket.AF_UNIX) as probe,
        contextlib.suppress(ConnectionRefusedError, FileNotFoundError),
    ):
        probe.settimeout(1.0)
        probe.connect(str(path))
        raise FileExistsError(f"another {peer} answers at {path}")
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(f"{path} is no socket")
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        mask = os.umask(0o117 if group_shared else 0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(mask)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def allow_descriptors(wanted: int) -> None:
    """Raise this process's limit of open descriptors to `wanted`, or as far as it may go.

    Where that is too few, connections wait to be accepted until others end.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    ceiling = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < ceiling:
        resource.setrlimit(resource.RLIMIT_NOFILE, (ceiling, hard))
