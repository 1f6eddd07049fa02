"""The tables of `docs/format.md`, made of the same constants that encode and decode.

In the document a table stands between `<!-- table: NAME -->` and `<!-- end -->`.
`python -m snapd.formats.describe docs/format.md` writes the tables anew; a test fails while the
document differs from the code.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Protocol

import numpy as np

from snapd.blocks import Codec, Pin
from snapd.formats import journal, manifest, pack, sealed, sections, segment, tables

_MARKED = re.compile(r"(<!-- table: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


class FieldLike(Protocol):
    """A described field of a record, whichever module defines it."""

    @property
    def name(self) -> str:
        """Name in the dtype."""

    @property
    def type(self) -> str:
        """NumPy type."""

    @property
    def description(self) -> str:
        """Meaning."""


def record_table(dtype: np.dtype[np.void], record: Sequence[FieldLike]) -> str:
    """Offset, size, field, type and meaning of each field of a record."""
    offsets = {name: entry[1] for name, entry in (dtype.fields or {}).items()}
    rows = [
        (
            str(offsets[one.name]),
            str(dtype[one.name].itemsize),
            f"`{one.name}`",
            _type_name(one.type),
            one.description,
        )
        for one in record
    ]
    note = f"\n{dtype.itemsize} bytes.\n"
    return _table(("offset", "bytes", "field", "type", "meaning"), rows) + note


def sections_table(kinds: type[IntEnum], types: dict[int, str]) -> str:
    """Number, name and item type of each section of a file."""
    rows = [
        (str(kind.value), f"`{kind.name}`", _type_name(types[kind]) if kind in types else "record")
        for kind in kinds
    ]
    return _table(("kind", "section", "items"), rows)


def enum_table(kinds: type[IntEnum]) -> str:
    """Values of an enumeration."""
    return _table(
        ("value", "name"), [(str(kind.value), f"`{kind.name.lower()}`") for kind in kinds]
    )


def constants_table(values: Iterable[tuple[str, object, str]]) -> str:
    """Named constants."""
    return _table(
        ("constant", "value", "meaning"),
        [(f"`{name}`", f"`{value}`", meaning) for name, value, meaning in values],
    )


def render(text: str, makers: Mapping[str, Callable[[], str]] | None = None) -> str:
    """The document with every table made anew, of those here unless others are named. Raises
    KeyError for a table that nobody makes."""
    known = TABLES if makers is None else makers
    return _MARKED.sub(lambda found: found[1] + "\n" + known[found[2]]() + "\n" + found[3], text)


def tables_in(text: str) -> list[str]:
    """Names of the tables in a document, in order."""
    return [found[2] for found in _MARKED.finditer(text)]


def _type_name(name: str) -> str:
    """`uint64` for `<u8`; `uint8[16]` for `16u1`."""
    if name.endswith("u1") and name != "u1":
        return f"uint8[{name[:-2]}]"
    return np.dtype(name).name


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _pack_sections() -> str:
    plain: dict[int, str] = {int(kind): name for kind, name in pack.COLUMN_TYPES.items()}
    reserved = [(str(kind), use) for kind, use in pack.RESERVED_SECTIONS.items()]
    kept = _table(("kind", "kept for"), reserved)
    return sections_table(pack.PackSection, plain) + "\nReserved:\n\n" + kept


def _constants() -> str:
    return constants_table(
        [
            ("FORMAT_VERSION", sealed.FORMAT_VERSION, "of every file in a repository"),
            ("PAGE_BYTES", sealed.PAGE_BYTES, "header, trailer, and alignment of everything"),
            ("REQUIRED", sections.REQUIRED, "flag of a section that a reader must know"),
            ("RAW_BYTES_MAX", sections.RAW_BYTES_MAX, "all sections of a file, decompressed"),
            ("SECTIONS_MAX", sections.SECTIONS_MAX, "sections in a file"),
            ("BLOCK_BYTES_MAX", pack.BLOCK_BYTES_MAX, "size of a block"),
            ("REMOVALS_MAX", pack.REMOVALS_MAX, "removals in a pack"),
            ("RECORD_ROWS_MAX", journal.RECORD_ROWS_MAX, "removals in a journal record"),
            ("LAYOUT_VERSION", segment.LAYOUT_VERSION, "of a segment"),
        ]
    )


TABLES: dict[str, Callable[[], str]] = {
    "constants": _constants,
    "codec": lambda: enum_table(Codec),
    "pin": lambda: enum_table(Pin),
    "header": lambda: record_table(sealed.HEADER_DTYPE, sealed.HEADER_FIELDS),
    "trailer": lambda: record_table(sealed.TRAILER_DTYPE, sealed.TRAILER_FIELDS),
    "sections-head": lambda: record_table(sections.HEAD_DTYPE, sections.HEAD_FIELDS),
    "sections-entry": lambda: record_table(sections.ENTRY_DTYPE, sections.ENTRY_FIELDS),
    "encoding": lambda: enum_table(sections.Encoding),
    "incarnation": lambda: record_table(tables.INCARNATION_DTYPE, tables.INCARNATION_FIELDS),
    "fingerprint": lambda: record_table(tables.FINGERPRINT_DTYPE, tables.FINGERPRINT_FIELDS),
    "pack-meta": lambda: record_table(pack.PACK_META_DTYPE, pack.PACK_META_FIELDS),
    "pack-sections": _pack_sections,
    "manifest-meta": lambda: record_table(
        manifest.MANIFEST_META_DTYPE, manifest.MANIFEST_META_FIELDS
    ),
    "manifest-sections": lambda: sections_table(
        manifest.ManifestSection,
        {manifest.ManifestSection.LIVE: "u1", manifest.ManifestSection.HEAT: "u1"},
    ),
    "manifest-pack": lambda: record_table(manifest.PACK_ROW_DTYPE, manifest.PACK_ROW_FIELDS),
    "journal-record": lambda: record_table(journal.RECORD_DTYPE, journal.RECORD_FIELDS),
    "journal-kinds": lambda: enum_table(journal.RecordKind),
    "segment-header": lambda: record_table(segment.HEADER_DTYPE, segment.HEADER_FIELDS),
    "segment-state": lambda: record_table(segment.STATE_DTYPE, segment.STATE_FIELDS),
    "segment-tally": lambda: record_table(segment.TALLY_DTYPE, segment.TALLY_FIELDS),
    "segment-slot": lambda: record_table(segment.SLOT_DTYPE, segment.SLOT_FIELDS),
    "segment-slot-states": lambda: enum_table(segment.SlotState),
    "segment-heat": lambda: record_table(segment.HEAT_DTYPE, segment.HEAT_FIELDS),
}
"""Every table, by the name that the document uses."""


def main() -> None:
    """Write the tables of the document that is named on the command line anew."""
    path = Path(sys.argv[1])
    path.write_text(render(path.read_text()))


if __name__ == "__main__":
    main()
