"""Reading the journal files of a repository, whatever has become of them."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field

from snapd.disk import Disk, DiskFile
from snapd.errors import CorruptError, DiskError, NewerFormatError
from snapd.formats.journal import JournalContents, decode_records
from snapd.formats.removals import Removals
from snapd.formats.sealed import JOURNAL_MAGIC, PAGE_BYTES, FileHeader, decode_header
from snapd.formats.tables import Incarnation
from snapd.repository.files import opened
from snapd.repository.layout import DAMAGE_ERRNOS
from snapd.repository.names import JOURNAL, journal_name, parse_journal

FILE_BYTES_MAX = 1 << 28
"""So much of a file is read. None of ours comes near it: see `snapd.repository.journal`."""
_SECTOR_BYTES = 512
_TRIES = 3
"""How often a file is tried that the medium does not give."""
_RECORDS_STAY = "its records count as far as they are of this repository"


@dataclass(slots=True)
class JournalScan:
    """All journal files of a repository together."""

    sequence_last: int = 0
    """Highest number that a file's header confirms: a name alone is no proof."""
    taken: frozenset[int] = frozenset()
    """Numbers in the names of all files."""
    removals: Removals = field(default_factory=Removals.empty)
    epoch: int = 0
    incarnations: tuple[Incarnation, ...] = ()
    findings: tuple[str, ...] = ()
    """One sentence for each file that is damaged or cannot be read."""
    newer: tuple[str, ...] = ()
    """One sentence for each file that says something that only a newer version can read."""
    keep: frozenset[int] = frozenset()
    """Files that cannot be read, are newer, or are not ours: never deleted."""
    damaged: frozenset[int] = frozenset()
    """Files with damage: deleted only when a sealed pack covers them, like any."""
    unreadable: frozenset[int] = frozenset()
    """Files that the disk does not give, in a way that says that they are bad."""


@dataclass(frozen=True, slots=True)
class _FileScan:
    """One file."""

    contents: JournalContents
    confirmed: bool
    """Its header says that it is the file of its name."""
    foreign: bool
    """Its header says that it is another repository's."""
    problem: str


def scan_journal(disk: Disk, repository_id: bytes) -> JournalScan:
    """Read every journal file. Damage costs the damaged records, never the others, because removed
    must stay removed. Raises DiskError if the directory cannot be listed, and if a file cannot be
    read for a reason that passes, such as too many open files: what it removed would be back."""
    scan = JournalScan()
    removals: list[Removals] = []
    findings: list[str] = []
    newer: list[str] = []
    keep: set[int] = set()
    damaged: set[int] = set()
    scan.taken = journal_numbers(disk)
    for sequence in sorted(scan.taken):
        try:
            found = _read_patiently(disk, sequence, repository_id)
        except (DiskError, NewerFormatError) as error:
            if isinstance(error, DiskError):
                if error.errno not in DAMAGE_ERRNOS:
                    raise
                scan.unreadable |= {sequence}
            findings.append(_told(sequence, str(error)))
            keep.add(sequence)
            if isinstance(error, NewerFormatError):
                newer.append(findings[-1])
            continue
        if found.confirmed:
            scan.sequence_last = max(scan.sequence_last, sequence)
        contents = found.contents
        removals += contents.removals
        scan.epoch = max(scan.epoch, contents.epoch)
        scan.incarnations += tuple(contents.incarnations)
        if found.problem:
            damaged.add(sequence)
            findings.append(_told(sequence, found.problem))
        if found.foreign:
            keep.add(sequence)
        if contents.unknown:
            keep.add(sequence)
            newer.append(_told(sequence, f"{contents.unknown} records of kinds that are not known"))
            findings.append(newer[-1])
    scan.removals = Removals.concatenate(removals)
    scan.findings, scan.newer = tuple(findings), tuple(newer)
    scan.keep, scan.damaged = frozenset(keep), frozenset(damaged)
    return scan


def journal_numbers(disk: Disk) -> frozenset[int]:
    """Numbers in the names of all journal files. Raises DiskError."""
    found = (parse_journal(name) for name in disk.list(JOURNAL))
    return frozenset(sequence for sequence in found if sequence is not None)


def _told(sequence: int, problem: str) -> str:
    """The sentence about a file; it names the file once."""
    name = journal_name(sequence)
    return problem if name in problem else f"{name}: {problem}"


def _read_patiently(disk: Disk, sequence: int, repository_id: bytes) -> _FileScan:
    """`_read_file`, tried again where the medium failed: only what it never gives is lost."""
    for _ in range(_TRIES - 1):
        try:
            return _read_file(disk, sequence, repository_id)
        except DiskError as error:
            if error.errno == errno.ENOENT and sequence not in journal_numbers(disk):
                # A writer has just started: it wrote again what it read, and deleted the file.
                return _FileScan(JournalContents(), confirmed=False, foreign=False, problem="")
            if error.errno not in DAMAGE_ERRNOS:
                raise
    return _read_file(disk, sequence, repository_id)


def _read_file(disk: Disk, sequence: int, repository_id: bytes) -> _FileScan:
    """The records of a file, and what is wrong with it. Raises DiskError or NewerFormatError."""
    with opened(disk, journal_name(sequence)) as file:
        raw = bytearray(min(file.size(), FILE_BYTES_MAX))
        unreadable = _read_what_can_be(file, raw)
    # Records are bound to the repository by their seed, so a bad header is no reason to lose them.
    contents = decode_records(memoryview(raw)[PAGE_BYTES:], repository_id)
    problem = ""
    header: FileHeader | None = None
    try:
        header = decode_header(bytes(raw[:PAGE_BYTES]), JOURNAL_MAGIC)
    except CorruptError as error:
        if contents.durable or not _never_written(raw[:PAGE_BYTES]):
            problem = f"{error}; {_RECORDS_STAY}"
    if header is not None and header.repository_id != repository_id:
        problem = f"belongs to another repository; {_RECORDS_STAY}"
    elif header is not None and header.sequence != sequence:
        problem = f"has the header of journal file {header.sequence}; {_RECORDS_STAY}"
    return _FileScan(
        contents,
        confirmed=header is not None
        and (header.repository_id, header.sequence) == (repository_id, sequence),
        foreign=header is not None and header.repository_id != repository_id,
        problem="; ".join(filter(None, [unreadable, problem, _damage(contents)])),
    )


def _read_what_can_be(file: DiskFile, raw: bytearray) -> str:
    """Fill `raw` from a file. Where that fails, page by page: each batch is there twice, so a page
    that the medium gives no more is left as zeros, and the sentence that is returned says so.
    Raises DiskError if no page can be read, or for a reason that is not the medium's."""
    try:
        del raw[file.read([raw], 0) :]
        return ""
    except DiskError as error:
        if error.errno not in DAMAGE_ERRNOS:
            raise
        failed = error
    starts = range(0, len(raw), PAGE_BYTES)
    bad = 0
    for start in starts:
        try:
            file.read([memoryview(raw)[start : start + PAGE_BYTES]], start)
        except DiskError:
            bad += 1
    if bad == len(starts):
        raise failed
    return f"{bad} pages cannot be read" if bad else ""


def _damage(contents: JournalContents) -> str:
    """What is wrong with the records of a file, the worst first."""
    lost = contents.lost + contents.stretches_damaged
    parts = [
        f"{lost} records are lost in every copy: what they removed may come back" if lost else "",
        f"{contents.copies_damaged} records are damaged in one of their two copies, nothing is lost"
        if contents.copies_damaged
        else "",
    ]
    return "; ".join(filter(None, parts))


def _never_written(page: bytes | bytearray) -> bool:
    """Whether a header is what a crash left of the file's first write, rather than damage: it is
    not all there, or one of the two sectors that are not zero in a whole header still is."""
    short = len(page) < PAGE_BYTES
    return short or not any(page[:_SECTOR_BYTES]) or not any(page[-_SECTOR_BYTES:])
