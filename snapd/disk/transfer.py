"""Whole transfers out of system calls that may stop anywhere.

`pwritev` and `preadv` may move fewer bytes than they were given: a signal, a full disk, a bad
sector, or no reason at all. The port promises whole transfers, so both disks go through here, and
the simulated one tests what the real one runs.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence

from typing_extensions import Buffer

from snapd.disk.port import DISK_ALIGNMENT

VECTORS_MAX = 1024
"""Buffers in one system call (IOV_MAX on Linux)."""

Move = Callable[[list[memoryview], int], int]
"""One system call: moves bytes of the views, from their start, at an offset; says how many."""


def write_whole(move: Move, buffers: Sequence[Buffer], offset: int, *, direct: bool) -> None:
    """Write all buffers one after another at `offset`. Raises OSError.

    Direct I/O cannot go on from the middle of a page, so there a page that was written in part is
    written again.
    """
    for group in _groups(buffers):
        left = group
        while left:
            written = _whole_pages(move(left, offset)) if direct else move(left, offset)
            if written <= 0:
                raise OSError(errno.EIO, "no progress")
            offset += written
            left = _advance(left, written)


def read_whole(
    move: Move,
    buffers: Sequence[Buffer],
    offset: int,
    *,
    direct: bool,
    size: Callable[[], int],
) -> int:
    """Fill the buffers from `offset`; returns the bytes read, fewer only at the end of the file,
    which is where `size` says. Raises OSError, also when a direct read stops for good before it: a
    bad sector must not look like a shorter file.
    """
    done = 0
    for group in _groups(buffers):
        left = group
        while left:
            got = move(left, offset + done)
            if got == 0:
                return done
            if direct and got % DISK_ALIGNMENT:
                if offset + done + got >= size():
                    return done + got
                got = _whole_pages(got)
                if got == 0:
                    raise OSError(errno.EIO, "the read stopped before the end of the file")
            done += got
            left = _advance(left, got)
    return done


def _whole_pages(count: int) -> int:
    return count - count % DISK_ALIGNMENT


def _groups(buffers: Sequence[Buffer]) -> Iterator[list[memoryview]]:
    """The buffers as byte views, in lists that one system call takes; empty ones left out."""
    for first in range(0, len(buffers), VECTORS_MAX):
        views = [memoryview(buffer).cast("B") for buffer in buffers[first : first + VECTORS_MAX]]
        filled = [view for view in views if view.nbytes]
        if filled:
            yield filled


def _advance(group: list[memoryview], count: int) -> list[memoryview]:
    """What is left of `group` after its first `count` bytes."""
    for at, view in enumerate(group):
        if count < view.nbytes:
            return [view[count:], *group[at + 1 :]]
        count -= view.nbytes
    return []
