"""What a repository has of Mooncake's keys, compared with the bytes that each key must have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mooncake_driver import WRONG, version_of

from snapd.disk.posix import PosixDisk
from snapd.repository import Repository
from snapd.repository.files import aligned_buffer

_ROWS_AT_A_TIME = 256


def packed_versions(
    repository: Path, versions: Sequence[int] = (1,), *, every_row: bool = False
) -> dict[str, int]:
    """The version of each live key on disk, WRONG where the bytes are none of `versions`.

    Beside a running daemon as well. `every_row` reads every block that any pack names, live or not;
    a key counts as WRONG then if any of its copies is.
    """
    disk = PosixDisk(str(repository))
    try:
        opened = Repository.open(disk, read_only=True)
        try:
            opened.recover()
            catalog = opened.catalog
            rows = catalog.live_rows()
            if every_row:
                every = np.arange(catalog.rows_end)
                rows = every[catalog.column("size", every) > 0]
            found: dict[str, int] = {}
            for at in range(0, len(rows), _ROWS_AT_A_TIME):
                part = rows[at : at + _ROWS_AT_A_TIME]
                table = catalog.take(part)
                buffers = [aligned_buffer(int(size)) for size in table.size]
                good = opened.read_newest(part, buffers)[0]
                for key, size, buffer, ok in zip(
                    table.keys.to_list(), table.size.tolist(), buffers, good, strict=True
                ):
                    name = key.decode()
                    version = version_of(name, bytes(buffer[:size]), list(versions))
                    bad = not ok or WRONG in (version, found.get(name))
                    found[name] = WRONG if bad else version
            return found
        finally:
            opened.close()
    finally:
        disk.close()
