"""`save_stream` and `save_place`: write a backup, all in one archive or a pack at a time."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import xxhash

from snapd.backup.capture import Capture
from snapd.backup.format import CHUNK_BYTES, ID_BYTES, Contents, FileEntry, Plan
from snapd.backup.pace import Pace
from snapd.backup.places import PARTS, RECORDS, Place
from snapd.backup.sealing import BackupKey
from snapd.backup.stream import ArchiveReader, ArchiveWriter, Sink
from snapd.disk import Disk, DiskFile
from snapd.errors import CorruptError, DiskError, NothingThereError, RefusedError, SnapdError
from snapd.formats.sealed import PAGE_BYTES
from snapd.repository.files import aligned_buffer, opened
from snapd.repository.layout import DAMAGE_ERRNOS
from snapd.repository.state import PackInfo

RECORD_NAME = re.compile(r"(\d{10})\.snapbackup", re.ASCII)
_PART_NAME = re.compile(r"(\d{10}-[0-9a-f]{32})-([0-9a-f]{32})\.snapbackup", re.ASCII)

Progress = Callable[[int, int], None]
"""progress(done, total): bytes of files so far, and in all."""


@dataclass(slots=True)
class BackupResult:
    """What was backed up."""

    generation: int
    blocks: int
    bytes: int
    """Sizes of the live blocks added up."""
    files: int
    file_bytes: int
    """Lengths of all files of the backup added up."""
    name: str = ""
    """Of the archive that lists the backup, where that is in a directory or a bucket."""
    packs_copied: int = 0
    packs_there: int = 0
    """Packs that an earlier backup brought already."""
    bytes_written: int = 0
    """Compressed, and encrypted."""
    removed: int = 0
    """Archives of older backups that were removed."""
    key_id: str = ""
    findings: list[str] = field(default_factory=list)
    """What could not be read: the backup is of the rest."""


@dataclass(frozen=True, slots=True)
class SaveOptions:
    """How to back up."""

    key: BackupKey | None = None
    level: int = 1
    """Of zstd; 0 for no compression."""
    pace: Pace = lambda amount: None
    progress: Progress = lambda done, total: None
    reread: bool = False
    """Read what earlier backups brought, and copy it again where it is not what it should be."""
    keep: int = 0
    """Backups that stay, the new one included; 0: all."""
    dry_run: bool = False


class _Work:
    """One backup on its way."""

    def __init__(self, disk: Disk, capture: Capture, options: SaveOptions) -> None:
        self.disk = disk
        self.capture = capture
        self.options = options
        self.done_bytes = 0
        self.result = BackupResult(
            generation=capture.generation,
            blocks=capture.blocks,
            bytes=capture.block_bytes,
            files=len(capture.packs) + len(capture.small),
            file_bytes=capture.file_bytes,
            key_id=options.key.key_id.hex() if options.key is not None else "",
            findings=list(capture.findings),
        )

    def plan(self, files: int, file_bytes: int) -> Plan:
        """The plan of an archive with so many files."""
        capture = self.capture
        return Plan(
            repository_id=capture.repository_id.hex(),
            generation=capture.generation,
            created_ns=capture.created_ns,
            blocks=capture.blocks,
            bytes=capture.block_bytes,
            files=files,
            file_bytes=file_bytes,
        )

    def moved(self, amount: int) -> None:
        """So many bytes of files are done with."""
        self.done_bytes += amount
        self.options.progress(self.done_bytes, self.result.file_bytes)

    def put_small(self, writer: ArchiveWriter) -> list[FileEntry]:
        """Write the files that are not packs."""
        entries: list[FileEntry] = []
        for name, data in self.capture.small.items():
            writer.begin_file(name, len(data))
            writer.data(data)
            self.moved(len(data))
            digest = xxhash.xxh3_128_hexdigest(data)
            entries.append(FileEntry(name=name, bytes=len(data), digest=digest))
        return entries

    def put_pack(self, writer: ArchiveWriter, pack: PackInfo) -> FileEntry:
        """Write a pack, as it is on the medium. Raises DiskError or CorruptError."""
        writer.begin_file(pack.name, pack.file_bytes)
        digest = xxhash.xxh3_128()
        with opened(self.disk, pack.name, direct=True) as file:
            for piece in self._pages(file, pack):
                digest.update(piece)
                writer.data(piece)
                self.moved(piece.nbytes)
        self.result.packs_copied += 1
        return FileEntry(name=pack.name, bytes=pack.file_bytes, digest=digest.hexdigest())

    def _pages(self, file: DiskFile, pack: PackInfo) -> Iterator[memoryview]:
        buffer = aligned_buffer(CHUNK_BYTES)
        for offset in range(0, pack.file_bytes, CHUNK_BYTES):
            piece = buffer[: min(CHUNK_BYTES, pack.file_bytes - offset)]
            self.options.pace(piece.nbytes)
            bad = read_what_can_be(file, piece, offset)
            if bad:
                self.result.findings.append(
                    f"{pack.name}: {bad} pages cannot be read, their blocks are lost"
                )
            yield piece


def read_what_can_be(file: DiskFile, piece: memoryview, offset: int) -> int:
    """Fill `piece`; pages that the medium does not give are left as zeros, and counted. A block in
    them has no checksum any more, so whoever reads it will know. Raises DiskError for a reason that
    is not the medium's, and CorruptError if the file is shorter than it was."""
    try:
        got = file.read([piece], offset)
    except DiskError as error:
        if error.errno not in DAMAGE_ERRNOS:
            raise
        return sum(
            _read_page(file, piece[start : start + PAGE_BYTES], offset + start)
            for start in range(0, piece.nbytes, PAGE_BYTES)
        )
    if got != piece.nbytes:
        raise CorruptError("a pack is shorter than it was")
    return 0


def _read_page(file: DiskFile, page: memoryview, offset: int) -> bool:
    """Whether a page could not be read."""
    try:
        file.read([page], offset)
    except DiskError as error:
        if error.errno not in DAMAGE_ERRNOS:
            raise
        page[:] = bytes(page.nbytes)
        return True
    return False


def save_stream(disk: Disk, capture: Capture, sink: Sink, options: SaveOptions) -> BackupResult:
    """Write all of a backup into one archive. Raises DiskError, and then it has no end."""
    work = _Work(disk, capture, options)
    if options.dry_run:
        return work.result
    with ArchiveWriter(sink, options.key, level=options.level) as writer:
        writer.plan(work.plan(work.result.files, work.result.file_bytes))
        entries = work.put_small(writer)
        entries += [work.put_pack(writer, pack) for pack in capture.packs]
        writer.finish(Contents(files=tuple(entries)))
        work.result.bytes_written = writer.bytes_written
    return work.result


def save_place(disk: Disk, capture: Capture, place: Place, options: SaveOptions) -> BackupResult:
    """Write a backup into a place: each pack that is not there yet as an archive of its own, then
    the archive that lists all.

    Crash argument: an archive has its name only when it is whole, and the list comes after all that
    it names, so each list is of a backup that is complete. Archives of packs that no list names are
    used by the next backup. Older lists go, and then what only they named, after the new one is
    there for good.

    Raises RefusedError where the place has backups of another repository, and DiskError.
    """
    work = _Work(disk, capture, options)
    known = _known(place, capture.repository_id, options)
    parts = _parts(place)
    entries: list[FileEntry] = []
    for pack in capture.packs:
        entry = _usable(place, pack, known, parts, options)
        if entry is not None:
            work.result.packs_there += 1
            work.moved(pack.file_bytes)
        elif options.dry_run:
            work.result.packs_copied += 1
            continue
        else:
            entry = _put_part(work, place, pack)
        entries.append(entry)
    if options.dry_run:
        return work.result
    records = place.names(RECORDS)
    number = max([0, *(int(m[1]) for one in records if (m := RECORD_NAME.fullmatch(one)))]) + 1
    work.result.name = f"{RECORDS}/{number:010d}.snapbackup"

    def produce(sink: Sink) -> None:
        with ArchiveWriter(sink, options.key, level=options.level) as writer:
            writer.plan(work.plan(work.result.files, work.result.file_bytes))
            writer.finish(Contents(files=(*work.put_small(writer), *entries)))
            work.result.bytes_written += writer.bytes_written

    place.write(work.result.name, produce)
    if options.keep:
        work.result.removed = _forget_old(place, options)
    return work.result


def part_name(entry: FileEntry) -> str:
    """Where the archive of a pack lies. Its id is in the name: another copy never takes its
    place."""
    leaf = entry.name.rpartition("/")[2].removesuffix(".pack")
    return f"{PARTS}/{leaf}-{entry.part}.snapbackup"


def _put_part(work: _Work, place: Place, pack: PackInfo) -> FileEntry:
    """Write the archive of one pack. Its name is known before it is written."""
    options = work.options
    part = secrets.token_bytes(ID_BYTES)
    entry = FileEntry(name=pack.name, bytes=pack.file_bytes, digest="", part=part.hex())
    digest = ""

    def produce(sink: Sink) -> None:
        nonlocal digest
        with ArchiveWriter(sink, options.key, level=options.level, archive_id=part) as writer:
            writer.plan(work.plan(1, pack.file_bytes))
            inside = work.put_pack(writer, pack)
            writer.finish(Contents(files=(inside,)))
            digest = inside.digest
            work.result.bytes_written += writer.bytes_written

    place.write(part_name(entry), produce)
    return FileEntry(name=pack.name, bytes=pack.file_bytes, digest=digest, part=part.hex())


def _known(place: Place, repository_id: bytes, options: SaveOptions) -> dict[str, FileEntry]:
    """Packs in archives of their own that a list names, by name: the newest list counts. Lists that
    cannot be read, or not with this key, name nothing."""
    known: dict[str, FileEntry] = {}
    for name in place.names(RECORDS):
        if RECORD_NAME.fullmatch(name) is None:
            continue
        try:
            plan, contents = read_archive(place, f"{RECORDS}/{name}", options.key)
        except (DiskError, NothingThereError, RefusedError, CorruptError):
            continue
        if plan.repository_id != repository_id.hex():
            raise RefusedError(
                f"{name} is a backup of repository {plan.repository_id}, not of "
                f"{repository_id.hex()}: use a directory for each"
            )
        known |= {entry.name: entry for entry in contents.files if entry.part}
    return known


def _parts(place: Place) -> dict[str, list[str]]:
    """Ids of the archives of each pack, by `<sequence>-<id>`."""
    parts: dict[str, list[str]] = {}
    for name in place.names(PARTS):
        match = _PART_NAME.fullmatch(name)
        if match is not None:
            parts.setdefault(match[1], []).append(match[2])
    return parts


def _usable(
    place: Place,
    pack: PackInfo,
    known: dict[str, FileEntry],
    parts: dict[str, list[str]],
    options: SaveOptions,
) -> FileEntry | None:
    """The pack, as an earlier backup brought it. One that no list names, because its backup was
    killed, is read first."""
    found = parts.get(pack.name.rpartition("/")[2].removesuffix(".pack"), [])
    entry = known.get(pack.name)
    if entry is not None and entry.part in found and entry.bytes == pack.file_bytes:
        if not options.reread:
            return entry
        found = [entry.part]
    for part in found:
        wanted = FileEntry(name=pack.name, bytes=pack.file_bytes, digest="", part=part)
        try:
            _, contents = read_archive(place, part_name(wanted), options.key)
        except (DiskError, NothingThereError, RefusedError, CorruptError):
            continue
        one = contents.files[0]
        if (one.name, one.bytes) == (pack.name, pack.file_bytes) and (
            entry is None or entry.digest == one.digest
        ):
            return FileEntry(name=one.name, bytes=one.bytes, digest=one.digest, part=part)
    return None


def read_archive(place: Place, name: str, key: BackupKey | None) -> tuple[Plan, Contents]:
    """Read an archive to its end, and check every digest of what is in it. Raises CorruptError and
    what `ArchiveReader` raises."""
    with place.reading(name) as source, ArchiveReader(source, key) as reader:
        digests: dict[str, str] = {}
        for member in reader.members():
            state = xxhash.xxh3_128()
            for chunk in member.chunks:
                state.update(chunk)
            digests[member.name] = state.hexdigest()
        check_digests(reader.contents, digests)
        return reader.plan, reader.contents


def check_digests(contents: Contents, digests: dict[str, str]) -> None:
    """Raises CorruptError unless these are the files that the contents say are in the archive."""
    said = {entry.name: entry.digest for entry in contents.files if not entry.part}
    if said != digests:
        odd = sorted(name for name, _ in said.items() ^ digests.items())
        raise CorruptError(f"{odd[0]} is not in the backup as its contents say")


def _forget_old(place: Place, options: SaveOptions) -> int:
    """Remove all but the newest lists, then the packs that no list names. Where a list cannot be
    read nobody knows what it names, so then no pack goes."""
    records = [one for one in place.names(RECORDS) if RECORD_NAME.fullmatch(one)]
    old = records[: -options.keep]
    for name in old:
        place.remove(f"{RECORDS}/{name}")
    named: set[str] = set()
    for name in records[-options.keep :]:
        try:
            _, contents = read_archive(place, f"{RECORDS}/{name}", options.key)
        except SnapdError:
            return len(old)
        named |= {part_name(entry) for entry in contents.files if entry.part}
    loose = [
        name
        for name in place.names(PARTS)
        if _PART_NAME.fullmatch(name) and f"{PARTS}/{name}" not in named
    ]
    for name in loose:
        place.remove(f"{PARTS}/{name}")
    return len(old) + len(loose)
