"""The tables of `docs/backup.md`: `python -m snapd.backup.describe docs/backup.md`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from snapd.backup import format as archive
from snapd.formats.describe import constants_table, enum_table, record_table, render


def _constants() -> str:
    return constants_table(
        [
            ("FORMAT_VERSION", archive.FORMAT_VERSION, "of an archive"),
            ("CHUNK_BYTES", archive.CHUNK_BYTES, "content of a chunk, at most"),
            ("SEAL_BYTES", archive.SEAL_BYTES, "seal behind a chunk"),
            ("NAME_BYTES_MAX", archive.NAME_BYTES_MAX, "name of a file"),
            ("FILE_BYTES_MAX", archive.FILE_BYTES_MAX, "a file"),
            ("DOCUMENT_BYTES_MAX", archive.DOCUMENT_BYTES_MAX, "plan, or contents"),
        ]
    )


TABLES: dict[str, Callable[[], str]] = {
    "archive-constants": _constants,
    "archive-header": lambda: record_table(archive.HEADER_DTYPE, archive.HEADER_FIELDS),
    "archive-chunk": lambda: record_table(archive.CHUNK_DTYPE, archive.CHUNK_FIELDS),
    "archive-record": lambda: record_table(archive.RECORD_DTYPE, archive.RECORD_FIELDS),
    "archive-cipher": lambda: enum_table(archive.Cipher),
}
"""Every table, by the name that the document uses."""


def main() -> None:
    """Write the tables of the document that is named on the command line anew."""
    path = Path(sys.argv[1])
    path.write_text(render(path.read_text(), TABLES))


if __name__ == "__main__":
    main()
