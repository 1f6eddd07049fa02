"""Copies of blocks that failed verification: bounded, for a look by people."""

from __future__ import annotations

from contextlib import suppress

from snapd.blocks import BlockTable
from snapd.disk import Disk
from snapd.errors import DiskError
from snapd.formats.sealed import padded
from snapd.repository.files import aligned_buffer, opened, write_durably
from snapd.repository.names import QUARANTINE
from snapd.repository.reader import PackFiles

QUARANTINE_BYTES_MAX = 64 * 2**20
"""Most bytes in the quarantine; what comes when it is full is only counted."""
QUARANTINE_FILES_MAX = 256


def copy_to_quarantine(
    disk: Disk, files: PackFiles, names: dict[int, str], blocks: BlockTable
) -> int:
    """Copy the stored bytes of blocks to `quarantine/<pack>-<offset>.block` while there is room.

    Returns how many were copied. A disk that fails here changes nothing: the copies are a help for
    people, and the blocks are out of the live set already.
    """
    copied = 0
    try:
        present = set(disk.list(QUARANTINE))
        used = sum(_length(disk, f"{QUARANTINE}/{name}") for name in sorted(present))
        for row in range(len(blocks)):
            pack, offset = int(blocks.pack[row]), int(blocks.pack_offset[row])
            stored = int(blocks.stored_size[row])
            name = f"{pack:010d}-{offset:016x}.block"
            if pack not in names or name in present:
                continue
            if len(present) >= QUARANTINE_FILES_MAX:
                break
            if used + stored > QUARANTINE_BYTES_MAX:
                continue
            buffer = aligned_buffer(stored)[: padded(stored)]
            with files.use(names[pack]) as file:
                got = min(file.read([buffer], offset), stored)
            write_durably(disk, f"{QUARANTINE}/{name}", QUARANTINE, [buffer[:got]])
            present.add(name)
            used += got
            copied += 1
    except DiskError:
        return copied
    return copied


def quarantine_use(disk: Disk) -> tuple[int, int]:
    """Files in the quarantine and their bytes; what cannot be looked at counts as empty."""
    try:
        names = disk.list(QUARANTINE)
    except DiskError:
        return 0, 0
    size = 0
    for name in names:
        with suppress(DiskError):
            size += _length(disk, f"{QUARANTINE}/{name}")
    return len(names), size


def _length(disk: Disk, name: str) -> int:
    with opened(disk, name) as file:
        return file.size()
