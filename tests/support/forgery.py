"""Files of a repository changed by somebody who knows the format: every checksum is right again.

`edit_header`, `edit_trailer`, `edit_sections` and `edit_directory` change one thing in a file and
then recompute what covers it: the digest of the index, the checksums of header and trailer, and on
demand the digest by which manifests name a pack. `journal_records` and `write_journal` do the same
for a journal's records.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from snapd.formats.journal import RECORD_DTYPE, RECORD_MAGIC
from snapd.formats.manifest import MANIFEST_META_DTYPE, PACK_ROW_DTYPE, ManifestSection
from snapd.formats.pack import PACK_META_DTYPE, PackSection
from snapd.formats.sealed import HEADER_DTYPE, PAGE_BYTES, TRAILER_DTYPE, index_digest
from snapd.formats.sections import ENTRY_DTYPE, HEAD_DTYPE, Sections, encode_sections
from snapd.formats.tables import FINGERPRINT_DTYPE, INCARNATION_DTYPE

Columns = dict[int, np.ndarray]
RECORD_SECTIONS = {
    "pack": {
        int(PackSection.META): PACK_META_DTYPE,
        int(PackSection.INCARNATIONS): INCARNATION_DTYPE,
        int(PackSection.FINGERPRINTS): FINGERPRINT_DTYPE,
    },
    "manifest": {
        int(ManifestSection.META): MANIFEST_META_DTYPE,
        int(ManifestSection.PACKS): PACK_ROW_DTYPE,
        int(ManifestSection.INCARNATIONS): INCARNATION_DTYPE,
        int(ManifestSection.FINGERPRINTS): FINGERPRINT_DTYPE,
    },
}
"""Sections whose items are records; the others are plain columns."""


@dataclass(slots=True)
class Sealed:
    """A sealed file in its parts."""

    header: np.ndarray
    data: bytes
    index: bytes
    trailer: np.ndarray

    @classmethod
    def read(cls, path: Path) -> Sealed:
        raw = path.read_bytes()
        trailer = np.frombuffer(bytearray(raw[-PAGE_BYTES:]), TRAILER_DTYPE)
        start = int(trailer["index_offset"][0])
        return cls(
            np.frombuffer(bytearray(raw[:PAGE_BYTES]), HEADER_DTYPE),
            raw[PAGE_BYTES:start],
            raw[start:-PAGE_BYTES],
            trailer,
        )

    def set_index(self, index: bytes, raw_bytes: int | None = None) -> None:
        """Another index, at the same place, with the lengths and the digest that belong to it."""
        self.index = index
        self.trailer["index_bytes"] = len(index)
        self.trailer["index_digest"] = np.frombuffer(index_digest(index), np.uint8)
        if raw_bytes is not None:
            self.trailer["raw_bytes"] = raw_bytes

    def write(self, path: Path) -> None:
        """Write with the right checksums of header and trailer."""
        pages = [sealed_page(self.header.tobytes()), sealed_page(self.trailer.tobytes())]
        path.write_bytes(pages[0] + self.data + self.index + pages[1])


def sealed_page(page: bytes) -> bytes:
    """A header or a trailer with its right checksum."""
    body = page[: PAGE_BYTES - 8]
    return body + xxhash.xxh3_64_intdigest(body).to_bytes(8, "little")


def kind_of(path: Path) -> str:
    """`pack`, `manifest` or `journal`."""
    return path.suffix[1:]


def columns_of(index: bytes, kind: str) -> Columns:
    """All sections of an index, decompressed and writable, by kind."""
    head = np.frombuffer(index[: HEAD_DTYPE.itemsize], HEAD_DTYPE)[0]
    first = HEAD_DTYPE.itemsize
    entries = np.frombuffer(
        index[first : first + int(head["sections"]) * ENTRY_DTYPE.itemsize], ENTRY_DTYPE
    )
    numbers = [int(number) for number in entries["kind"]]
    sections = Sections(index, numbers)
    found: Columns = {}
    for number, entry in zip(numbers, entries, strict=True):
        width = int(entry["item_bytes"])
        dtype = RECORD_SECTIONS[kind].get(number) or np.dtype(f"<u{width}")
        found[number] = sections.column(number, dtype, int(entry["raw_bytes"]) // width).copy()
    return found


def edit_header(path: Path, field: str, value: int | bytes) -> None:
    """Another value in a header."""
    raw = bytearray(path.read_bytes())
    header = np.frombuffer(raw[:PAGE_BYTES], HEADER_DTYPE).copy()
    set_field(header[0], field, value)
    raw[:PAGE_BYTES] = sealed_page(header.tobytes())
    path.write_bytes(raw)


def edit_trailer(path: Path, field: str, value: int | bytes) -> None:
    """Another value in a trailer."""
    raw = bytearray(path.read_bytes())
    trailer = np.frombuffer(raw[-PAGE_BYTES:], TRAILER_DTYPE).copy()
    set_field(trailer[0], field, value)
    raw[-PAGE_BYTES:] = sealed_page(trailer.tobytes())
    path.write_bytes(raw)


def edit_sections(
    path: Path,
    edit: Callable[[Columns], None],
    *,
    manifests_follow: bool = True,
    optional: Collection[int] = (),
) -> None:
    """Change the decoded sections of a file and encode them again; all required but `optional`."""
    sealed = Sealed.read(path)
    columns = columns_of(sealed.index, kind_of(path))
    edit(columns)
    sealed.set_index(
        encode_sections(columns, optional), sum(one.nbytes for one in columns.values())
    )
    _write(path, sealed, manifests_follow=manifests_follow)


def edit_directory(path: Path, edit: Callable[[bytearray], None]) -> None:
    """Change the bytes of an index as they are stored: its directory or its sections."""
    sealed = Sealed.read(path)
    index = bytearray(sealed.index)
    edit(index)
    sealed.set_index(bytes(index))
    _write(path, sealed, manifests_follow=True)


def replace_index(path: Path, index: bytes, raw_bytes: int, rows: int | None = None) -> None:
    """Give a file a whole other index."""
    sealed = Sealed.read(path)
    sealed.set_index(index, raw_bytes)
    if rows is not None:
        sealed.trailer["rows"] = rows
    _write(path, sealed, manifests_follow=True)


def set_field(record: np.ndarray, field: str, value: int | bytes) -> None:
    """Set a field of a record: a number, or all bytes of an array of bytes."""
    record[field] = np.frombuffer(value, np.uint8) if isinstance(value, bytes) else value


def _write(path: Path, sealed: Sealed, *, manifests_follow: bool) -> None:
    sealed.write(path)
    if kind_of(path) == "pack" and manifests_follow:
        digest = sealed.trailer["index_digest"][0]
        rows = int(sealed.trailer["rows"][0])
        pack_id = sealed.header["file_id"][0].tobytes()
        for manifest in sorted((path.parent.parent / "manifests").glob("*.manifest")):
            edit_sections(manifest, lambda one: _rename(one, pack_id, digest, rows))


def _rename(columns: Columns, pack_id: bytes, digest: np.ndarray, rows: int) -> None:
    """Let a manifest name a pack by its new digest, where it has the rows that it had."""
    for pack in columns[ManifestSection.PACKS]:
        if pack["pack_id"].tobytes() == pack_id and int(pack["rows"]) == rows:
            pack["index_digest"] = digest


def journal_records(raw: bytes) -> Iterator[tuple[int, int]]:
    """Start and end of each record behind a journal's header, as they follow each other."""
    at = PAGE_BYTES
    while (at := raw.find(RECORD_MAGIC, at)) >= 0:
        head = np.frombuffer(raw[at : at + RECORD_DTYPE.itemsize], RECORD_DTYPE)[0]
        payload = int(head["payload_bytes"])
        end = at + RECORD_DTYPE.itemsize + payload + -payload % 8
        yield at, end
        at = end


def edit_record(path: Path, start: int, end: int, edit: Callable[[bytearray], bytes]) -> None:
    """Change one record of a journal, both its copies (`edit` may change its length), and give it
    its checksum."""
    raw = path.read_bytes()
    record = raw[start:end]
    path.write_bytes(raw.replace(record, sealed_record(edit(bytearray(record)), raw[16:32])))


def sealed_record(record: bytes, repository_id: bytes) -> bytes:
    """A record with its right checksum."""
    seed = int.from_bytes(repository_id[:8], "little")
    checksum = xxhash.xxh3_64_intdigest(bytes(record[16:]), seed=seed)
    return bytes(record[:8]) + checksum.to_bytes(8, "little") + bytes(record[16:])


def telling_values(current: int, width_bytes: int) -> list[int]:
    """Values that break things in a field of this width, none of them `current`."""
    bits = 8 * width_bytes
    found = [
        0,
        1,
        current + 1,
        current - 1,
        current + PAGE_BYTES,
        current - PAGE_BYTES,
        1 << (bits - 1),
        (1 << (bits - 1)) - 1,
        (1 << bits) - 1,
        (1 << bits) - PAGE_BYTES,
        1 << 31,
        (1 << 31) + PAGE_BYTES,
        1 << 32,
        1 << 40,
    ]
    unique = dict.fromkeys(value for value in found if 0 <= value < 1 << bits)
    unique.pop(current, None)
    return list(unique)
