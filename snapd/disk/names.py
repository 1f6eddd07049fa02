"""Names on a disk: relative, without tricks."""

from __future__ import annotations

import errno
import os

from snapd.errors import DiskError

NAME_BYTES_MAX = 255
"""Longest component of a name, in bytes (NAME_MAX of ext4 and XFS)."""


def split_name(name: str) -> tuple[str, ...]:
    """The components of a relative name; the empty name is the root and has none.

    Raises DiskError (EINVAL) for an absolute name, an empty or overlong component, `.`, `..` and
    NUL, so that no name leads out of the root or means two things.
    """
    if not name:
        return ()
    parts = tuple(name.split("/"))
    for part in parts:
        if part in {"", ".", ".."} or "\0" in part or len(os.fsencode(part)) > NAME_BYTES_MAX:
            raise DiskError(f"{name!r} is not a plain name below the root", errno.EINVAL)
    return parts
