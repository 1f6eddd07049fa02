"""Repositories to back up, and backups in memory, for the tests of both."""

from __future__ import annotations

import io
from collections.abc import Iterable

from repository_kit import content, contents_of, put, remove

from snapd.backup import (
    BackupKey,
    BackupResult,
    DirectoryPlace,
    RestoreOptions,
    RestoreResult,
    SaveOptions,
    captured,
    load_place,
    load_stream,
    save_place,
    save_stream,
)
from snapd.disk import Disk
from snapd.disk.simulated import SimulatedDisk
from snapd.repository import Repository

KEY = BackupKey(bytes(range(32)))
OTHER_KEY = BackupKey(bytes(range(1, 33)))
SEGMENT_ID = b"\x07" * 16


def opened(disk: Disk) -> Repository:
    """A repository for writing, recovered, that knows its segment."""
    repository = Repository.open(disk)
    repository.recover()
    repository.incarnation(SEGMENT_ID)
    return repository


def blocks(keys: Iterable[bytes], sequence: int) -> dict[bytes, bytes]:
    """Blocks whose bytes follow from key and version."""
    return {key: content(key, sequence) for key in keys}


def build(disk: Disk) -> dict[bytes, bytes]:
    """A small repository: snapshots, a newer version, a removal in a pack and one in the journal
    alone, a pack that no snapshot names. Returns what is live."""
    with opened(disk) as repository:
        put(repository, blocks([b"a", b"b", b"c"], 1), sequence=1)
        repository.commit()
        put(repository, blocks([b"b", b"d"], 2), sequence=2)
        remove(repository, [b"a"], sequence=3)
        repository.commit()
        put(repository, blocks([b"e", b"f"], 4), sequence=4)
        remove(repository, [b"f"], sequence=5)
    return {
        b"b": content(b"b", 2),
        b"c": content(b"c", 1),
        b"d": content(b"d", 2),
        b"e": content(b"e", 4),
    }


def live(disk: Disk) -> dict[bytes, bytes]:
    """What a daemon would serve from here."""
    with Repository.open(disk) as repository:
        repository.recover()
        return contents_of(repository)


def live_from_packs(disk: Disk) -> dict[bytes, bytes]:
    """The same, from packs and journals alone."""
    with Repository.open(disk) as repository:
        repository.rebuild()
        return contents_of(repository)


def archive_of(disk: Disk, key: BackupKey | None = None, level: int = 1) -> bytes:
    """A backup as one archive."""
    out = bytearray()

    def sink(data: object) -> None:
        out.extend(memoryview(data))  # type: ignore[arg-type]

    with captured(disk) as capture:
        save_stream(disk, capture, sink, SaveOptions(key=key, level=level))
    return bytes(out)


def restore_archive(
    disk: Disk,
    archive: bytes,
    key: BackupKey | None = None,
    *,
    force: bool = False,
    dry_run: bool = False,
) -> RestoreResult:
    """Restore one archive."""
    options = RestoreOptions(force=force, dry_run=dry_run)
    return load_stream(disk, io.BytesIO(archive), key, options)


def save_to(
    disk: Disk, place_disk: Disk, key: BackupKey | None = None, **options: object
) -> BackupResult:
    """A backup into a directory."""
    with captured(disk) as capture:
        chosen = SaveOptions(key=key, **options)  # type: ignore[arg-type]
        return save_place(disk, capture, DirectoryPlace(place_disk), chosen)


def restore_from(
    place_disk: Disk,
    key: BackupKey | None = None,
    *,
    number: int | None = None,
    onto: Disk | None = None,
    force: bool = False,
) -> dict[bytes, bytes]:
    """What a restore from a directory brings."""
    target = SimulatedDisk() if onto is None else onto
    options = RestoreOptions(force=force)
    load_place(target, DirectoryPlace(place_disk), key, options, number=number)
    return live(target)
