"""`populate_file`: fill the page tables of a mounted file before anybody waits for it.

A store service maps a segment's file when it mounts it, and pays for each page at its first touch:
a first pass over a segment ran at a tenth of the speed of the next one (docs/decisions/0016). After
a death the master keeps nothing alive for some seconds in which nothing can be put back: that is
when there is time for it.
"""

from __future__ import annotations

import logging
import os
import threading
import time

from snapd.config import event
from snapd.segment.pages import populate

_PIECE_BYTES = 16 * 2**20
"""Filled at a time, so that nobody waits long for the mapping's lock."""

_MAPS = "/proc/self/maps"
_logger = logging.getLogger(__name__)


def populate_file(path: str) -> None:
    """Fill the page tables of this process's mappings of a file, in a thread of its own.

    It only asks the kernel to look at pages: bytes are not changed, and a mapping that goes
    meanwhile is passed over.
    """
    threading.Thread(target=_populate, args=(path,), name="populate", daemon=True).start()


def mappings_of(path: str) -> list[tuple[int, int]]:
    """Address and length of each mapping of a file in this process."""
    wanted = os.path.realpath(path)
    found = []
    with open(_MAPS, encoding="utf-8", errors="surrogateescape") as maps:
        for line in maps:
            fields = line.rstrip("\n").split(maxsplit=5)
            if len(fields) == 6 and fields[5] == wanted:
                first, _, last = fields[0].partition("-")
                found.append((int(first, 16), int(last, 16) - int(first, 16)))
    return found


def _populate(path: str) -> None:
    started, total = time.monotonic(), 0
    for address, length in mappings_of(path):
        for offset in range(0, length, _PIECE_BYTES):
            populate(address + offset, min(_PIECE_BYTES, length - offset))
        total += length
    event(
        _logger,
        logging.INFO,
        "filled page tables",
        file=path,
        bytes=total,
        seconds=time.monotonic() - started,
    )
