"""`load_stream` and `load_place`: restore from one archive, or from a place of parts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from snapd.backup.places import RECORDS, Place
from snapd.backup.restore import Restore, RestoreOptions, RestoreResult
from snapd.backup.save import RECORD_NAME, part_name
from snapd.backup.sealing import BackupKey
from snapd.backup.stream import ArchiveReader, Source
from snapd.disk import Disk
from snapd.errors import CorruptError, NothingThereError
from snapd.repository.names import LOCK_FILE


def load_stream(
    disk: Disk, source: Source, key: BackupKey | None, options: RestoreOptions
) -> RestoreResult:
    """Restore a backup that is one archive.

    Raises CorruptError (also where the stream is cut off), RefusedError, NewerFormatError,
    DiskError and LockHeldError. The target has nothing of it then, and the same call goes on later.
    """
    with ArchiveReader(source, key) as reader, _locked(disk, options):
        restore = Restore(disk, options)
        restore.begin(reader)
        contents = restore.receive(reader)
        parts = [entry.name for entry in contents.files if entry.part]
        if parts:
            raise CorruptError(
                f"this archive only lists a backup: {parts[0]} is elsewhere. Name the directory "
                "that holds all of it"
            )
        return restore.finish(contents)


def load_place(
    disk: Disk,
    place: Place,
    key: BackupKey | None,
    options: RestoreOptions,
    *,
    number: int | None = None,
) -> RestoreResult:
    """Restore the newest backup of a place, or the one of this number. If the newest is damaged no
    older one is taken in its place: what was removed in between would be back.

    Raises NothingThereError, and as `load_stream`.
    """
    numbers = {int(m[1]) for one in place.names(RECORDS) if (m := RECORD_NAME.fullmatch(one))}
    if not numbers or number not in {None, *numbers}:
        what = f"no backup {number}" if number is not None else "no backup"
        raise NothingThereError(f"there is {what} here: the place holds {sorted(numbers)}")
    chosen = number if number is not None else max(numbers)
    name = f"{RECORDS}/{chosen:010d}.snapbackup"
    with (
        place.reading(name) as source,
        ArchiveReader(source, key) as reader,
        _locked(disk, options),
    ):
        restore = Restore(disk, options)
        restore.begin(reader)
        contents = restore.receive(reader)
        for entry in contents.files:
            if not entry.part:
                continue
            with (
                place.reading(part_name(entry)) as part_source,
                ArchiveReader(part_source, key) as part,
            ):
                if part.header.archive_id.hex() != entry.part:
                    raise CorruptError(f"the part for {entry.name} is another archive")
                restore.receive(part, entry)
        return restore.finish(contents)


@contextmanager
def _locked(disk: Disk, options: RestoreOptions) -> Iterator[None]:
    """The writer's lock of the target; none for a dry run, which makes no file."""
    if options.dry_run:
        yield
        return
    lock = disk.lock(LOCK_FILE)
    try:
        yield
    finally:
        lock.release()
