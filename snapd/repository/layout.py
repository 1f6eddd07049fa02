"""The directory itself: its identity, its subdirectories, leftovers, and what is moved aside."""

from __future__ import annotations

import contextlib
import errno
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TypeVar

from snapd.disk import Disk
from snapd.errors import (
    CorruptError,
    DiskError,
    LockHeldError,
    NewerFormatError,
    NothingThereError,
    SnapdError,
    UnfinishedRestoreError,
)
from snapd.formats.repository import decode_repository, encode_repository
from snapd.formats.sealed import ID_BYTES, JOURNAL_MAGIC, MANIFEST_MAGIC, PACK_MAGIC
from snapd.repository.files import check_version, opened, read_header, write_durably
from snapd.repository.names import (
    ASIDE,
    DIRECTORIES,
    JOURNAL,
    MANIFESTS,
    PACKS,
    PINS_FILE,
    REPOSITORY_FILE,
    RESTORE_FILE,
    TEMPORARY,
    parse_journal,
    parse_manifest,
    parse_pack,
)

_REPOSITORY_BYTES_MAX = 65_536

T = TypeVar("T")


def read_identity(disk: Disk) -> bytes:
    """The repository's id, for a reader: from `repository.json`, or if that is damaged, from the
    files that repeat it.

    Raises NothingThereError, NewerFormatError, UnfinishedRestoreError or DiskError.
    """
    refuse_unfinished_restore(disk)
    try:
        return _believed(disk, _read_repository_file(disk))
    except CorruptError:
        found = _identity_of_files(disk)
    except DiskError as error:
        if error.errno != errno.ENOENT:
            raise
        found = _identity_of_files(disk)
    if found is None:
        raise NothingThereError("there is no repository here: check persistent_path")
    return found


def refuse_unfinished_restore(disk: Disk) -> None:
    """Refuse a directory that a restore has not finished: what is there is a part of a snapshot.

    The restore makes this file first and removes it last, so that all it brings appears in that
    one step. Raises UnfinishedRestoreError or DiskError.
    """
    if RESTORE_FILE in disk.list(""):
        raise UnfinishedRestoreError(
            "a restore into this directory is not finished: run the same `snapctl restore` again, "
            "which goes on where it was, or delete what is in the directory"
        )


def refuse_newer(problem: str) -> NewerFormatError:
    """The refusal of a writer, which names the file and the way out."""
    return NewerFormatError(
        f"{problem}. Nothing was changed. Run that snapd, or move the repository aside to start "
        "with an empty one"
    )


def check_versions(disk: Disk) -> None:
    """Refuse a repository in which any file is newer than this version.

    What such a file says is not known: that a key was removed, for one, or which of its versions is
    the newest. A writer that went on without it would serve what is gone, and its own files would
    bury what it could not read. So the whole repository waits for a snapd that can.

    Raises NewerFormatError; DiskError only if a directory cannot be listed.
    """
    found = [
        f"{MANIFESTS}/{name}" for name in disk.list(MANIFESTS) if parse_manifest(name) is not None
    ]
    named = dict.fromkeys(found, MANIFEST_MAGIC)
    found = [f"{JOURNAL}/{name}" for name in disk.list(JOURNAL) if parse_journal(name) is not None]
    named |= dict.fromkeys(found, JOURNAL_MAGIC)
    found = [f"{PACKS}/{name}" for name in disk.list(PACKS) if parse_pack(name) is not None]
    named |= dict.fromkeys(found, PACK_MAGIC)
    for name, magic in named.items():
        try:
            check_version(disk, name, magic)
        except NewerFormatError as error:
            raise refuse_newer(f"{name}: {error}") from error
        except DiskError:
            continue  # whoever needs the file finds out and says so


def prepare(disk: Disk) -> tuple[bytes, list[str]]:
    """Make the directory a repository for its writer: identity, subdirectories, no leftovers.

    Returns the repository's id and the files that were moved aside. The caller holds the lock.
    Raises NewerFormatError or UnfinishedRestoreError, before anything was changed, or DiskError.

    Crash argument: the subdirectories are durable before the identity is, and each step is left
    alone when it is done already, so a crash anywhere is repaired by the next start.
    """
    refuse_unfinished_restore(disk)
    with contextlib.suppress(CorruptError, DiskError):
        _read_repository_file(disk)  # that of a newer snapd is refused before anything is changed
    check_versions(disk)
    for name in DIRECTORIES:
        disk.make_directory(name)
    # There from the start, so that a reader who may not write here can pin what it reads.
    with contextlib.suppress(LockHeldError):
        disk.lock(PINS_FILE, shared=True).release()
    for directory in ("", *DIRECTORIES):
        _remove_leftovers(disk, directory)
        # A name that is seen may not be durable, if a writer failed just before it was. What is
        # built on it from now on must not be more durable than it is.
        disk.sync_directory(directory)
    moved: list[str] = []
    try:
        return _believed(disk, _read_repository_file(disk)), moved
    except CorruptError:
        moved = move_aside(disk, [REPOSITORY_FILE])
    except DiskError as error:
        if error.errno != errno.ENOENT:
            raise
    identity = _identity_of_files(disk) or secrets.token_bytes(ID_BYTES)
    write_durably(disk, REPOSITORY_FILE, "", [encode_repository(identity)])
    return identity, moved


_TRIES = 3
DAMAGE_ERRNOS = frozenset(
    {errno.EIO, errno.EUCLEAN, errno.EBADMSG, errno.ELOOP, errno.EISDIR, errno.EINVAL, errno.ENXIO}
)
"""What a file system says of a file that is bad, or that is no file at all; see open(2), read(2).
Others, such as EMFILE or ENOMEM, say something about us."""


def read_patiently(read: Callable[[], T]) -> T:
    """What `read` returns; it is called again where the medium failed, so that only what the medium
    does not give at all counts as lost. Raises what `read` raises."""
    for _ in range(_TRIES - 1):
        try:
            return read()
        except DiskError as error:
            if error.errno not in DAMAGE_ERRNOS:
                raise
    return read()


def will_pass(error: SnapdError) -> bool:
    """Whether an error says nothing about the file: too many open files, no memory, a server that
    does not answer. To go on without the file would make a loss of it, so whoever needs it fails,
    and is tried again. A file that is gone is gone."""
    return isinstance(error, DiskError) and error.errno not in DAMAGE_ERRNOS | {errno.ENOENT}


def is_damaged(read: Callable[[], object]) -> bool:
    """Whether what `read` reads is damaged for certain: not just newer, gone or unreachable, and
    not given by the medium at the first try only."""
    for _ in range(_TRIES):
        try:
            read()
        except CorruptError:
            continue
        except DiskError as error:
            if error.errno not in DAMAGE_ERRNOS:
                return False
        except NewerFormatError:
            return False
        else:
            return False
    return True


def told(name: str, error: SnapdError) -> str:
    """The sentence about a file; it names the file once."""
    return str(error) if name in str(error) else f"{name}: {error}"


def move_aside(disk: Disk, names: Iterable[str]) -> list[str]:
    """Move files into a new directory `aside-<n>`; returns their new names. Raises DiskError.

    Nothing is deleted. A crash in between leaves some files where they were: the next recovery
    finds them as bad as before.
    """
    taken = [name for name in disk.list("") if name.startswith(ASIDE)]
    numbers = [int(text) for name in taken if (text := name.removeprefix(ASIDE)).isdecimal()]
    newest = max(numbers, default=0)
    # One that an attempt before this made and could not fill is used, or each would leave another.
    if not newest or disk.list(f"{ASIDE}{newest}"):
        newest += 1
    aside = f"{ASIDE}{newest}"
    disk.make_directory(aside)
    disk.sync_directory("")
    moved: list[str] = []
    touched: set[str] = set()
    for name in names:
        target = f"{aside}/{name.rpartition('/')[2]}"
        disk.rename(name, target)
        moved.append(target)
        touched.add(name.rpartition("/")[0])
    disk.sync_directory(aside)
    for directory in sorted(touched):
        disk.sync_directory(directory)
    return moved


def identity_problem(disk: Disk, repository_id: bytes) -> str:
    """What is wrong with `repository.json` of a repository that is known by its other files; empty
    if nothing is."""
    try:
        found = _read_repository_file(disk)
    except SnapdError as error:
        return str(error)
    return "" if found == repository_id else "has the id of another repository than its files"


def _read_repository_file(disk: Disk) -> bytes:
    def read() -> bytes:
        with opened(disk, REPOSITORY_FILE) as file:
            raw = bytearray(min(file.size(), _REPOSITORY_BYTES_MAX))
            del raw[file.read([raw], 0) :]
        return bytes(raw)

    try:
        raw = read_patiently(read)
    except DiskError as error:
        if error.errno in DAMAGE_ERRNOS:  # a link, a directory, a device: no file of ours
            raise CorruptError(str(error)) from error
        raise
    return decode_repository(raw)


def _believed(disk: Disk, identity: bytes) -> bytes:
    """`identity`, unless there are manifests and packs and all of them are of other repositories.

    Then `repository.json` is the one that does not belong here; going by it would give up all that
    is there. Raises CorruptError then. Reads one header where all is well.
    """
    others = 0
    for found in _identities_of_files(disk):
        if found == identity:
            return identity
        others += 1
    if others:
        raise CorruptError("repository.json has the id of another repository than its files")
    return identity


def _identity_of_files(disk: Disk) -> bytes | None:
    """The id that most of the readable manifests and packs have."""
    votes = Counter(_identities_of_files(disk)).most_common(1)
    return votes[0][0] if votes else None


def _identities_of_files(disk: Disk) -> Iterator[bytes]:
    """The id in each readable manifest and pack, the newest manifest first. Raises DiskError where
    one cannot be read for a reason that passes: who believed that nothing is there would begin a
    new repository over all of it."""
    manifests = [
        f"{MANIFESTS}/{name}" for name in disk.list(MANIFESTS) if parse_manifest(name) is not None
    ]
    packs = [f"{PACKS}/{name}" for name in disk.list(PACKS) if parse_pack(name) is not None]
    found = [(name, MANIFEST_MAGIC) for name in manifests[::-1]]
    found += [(name, PACK_MAGIC) for name in packs[::-1]]
    for name, magic in found:
        try:
            yield read_patiently(partial(read_header, disk, name, magic)).repository_id
        except SnapdError as error:
            if will_pass(error):
                raise


def _remove_leftovers(disk: Disk, directory: str) -> None:
    """Remove files that a writer left unfinished: we hold the lock, so nobody writes them.

    At the root only ours: an operator may have chosen a directory that holds other things.
    """
    leftovers = [name for name in disk.list(directory) if name.endswith(TEMPORARY)]
    for name in leftovers:
        if not directory and name != REPOSITORY_FILE + TEMPORARY:
            continue
        try:
            disk.remove(f"{directory}/{name}" if directory else name)
        except DiskError as error:
            if error.errno not in {errno.EISDIR, errno.EPERM}:
                raise  # a directory of that name is none of our files, and in nobody's way
