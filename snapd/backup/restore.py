"""`Restore`: from a backup to a repository, all at once or not at all.

The file `restoring` is there from the first step to the last, and nobody opens a repository while
it is. So whatever happens in between, nothing of the restore is visible, and it can be run again:
files that are whole stay. Removing that one file makes everything appear.

A target that is not empty is refused. With `force` its files are moved to `aside-<n>` first, never
deleted; and if it was the same repository, what it knows to have ended since the backup (removed,
replaced, of an earlier epoch) stays so.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import msgspec
import xxhash

from snapd.backup.aside import AsideDisk, carry_removals
from snapd.backup.format import CHUNK_BYTES, Contents, FileEntry, Plan
from snapd.backup.pace import Pace
from snapd.backup.places import FileSource
from snapd.backup.stream import ArchiveReader, Member
from snapd.disk import Disk
from snapd.errors import CorruptError, DiskError, RefusedError, SnapdError
from snapd.repository.files import discard, opened, publish, write_durably
from snapd.repository.layout import check_versions
from snapd.repository.names import (
    ASIDE,
    DIRECTORIES,
    JOURNAL,
    LOCK_FILE,
    MANIFESTS,
    PACKS,
    PINS_FILE,
    REPOSITORY_FILE,
    RESTORE_FILE,
    TEMPORARY,
)
from snapd.repository.recovery import recover_state

_RESTORED = (PACKS, MANIFESTS, JOURNAL)
_NOT_OURS = {LOCK_FILE, PINS_FILE, "lost+found"}
_MARKER_BYTES_MAX = 4096

Progress = Callable[[int, int], None]


class Marker(msgspec.Struct, frozen=True, kw_only=True):
    """Contents of `restoring`."""

    archive: str
    """Id of the archive that is restored."""
    step: str
    """`aside`: what was here before is being moved; `drop`: what an unfinished restore of another
    backup brought is being deleted; `copy`: files come in."""
    aside: str
    """Directory that holds what was here before; empty if nothing was."""


@dataclass(frozen=True, slots=True)
class RestoreOptions:
    """How to restore."""

    force: bool = False
    dry_run: bool = False
    pace: Pace = lambda amount: None
    progress: Progress = lambda done, total: None


@dataclass(slots=True)
class RestoreResult:
    """What was restored, or would be."""

    repository_id: str
    generation: int
    created_at: float
    """Seconds since 1970-01-01 UTC at which the backup was made."""
    blocks: int
    """Live blocks of the backup."""
    bytes: int
    files: int = 0
    file_bytes: int = 0
    files_there: int = 0
    """Files that an earlier, unfinished run had brought."""
    blocks_ended: int = 0
    """Blocks that were removed or replaced since, as what was here before knew."""
    aside: str = ""
    """Directory that holds what was here before."""
    findings: list[str] = field(default_factory=list)


class Restore:
    """One restore into one directory. `begin`, `receive` for each archive, `finish`."""

    def __init__(self, disk: Disk, options: RestoreOptions) -> None:
        self._disk = disk
        self._options = options
        self._digests: dict[str, str] = {}
        self._resumes = False
        self._marker = Marker(archive="", step="copy", aside="")
        self._plan: Plan | None = None
        self._done_bytes = 0
        self._files_there = 0

    def begin(self, reader: ArchiveReader) -> None:
        """Make the target ready for this archive. The caller holds the writer's lock.

        Raises RefusedError, NewerFormatError (the target is newer), or DiskError, also when there
        is too little room.
        """
        self._plan = reader.plan
        self._marker = self._next_marker(reader.header.archive_id.hex())
        self._check_room(reader.plan)
        if self._options.dry_run:
            return
        self._write_marker()
        for name in DIRECTORIES:
            self._disk.make_directory(name)
        self._disk.sync_directory("")
        if self._marker.step != "copy":
            self._clear()
            self._marker = msgspec.structs.replace(self._marker, step="copy")
            self._write_marker()

    def receive(self, reader: ArchiveReader, wanted: FileEntry | None = None) -> Contents:
        """Take the files of an archive; `wanted` is the one that a part must hold. Raises
        CorruptError, DiskError, and what the reader raises."""
        digests: dict[str, str] = {}
        for member in reader.members():
            if wanted is not None and (member.name, member.size) != (wanted.name, wanted.bytes):
                raise CorruptError(f"the part for {wanted.name} holds something else")
            if member.name in self._digests or member.name in digests:
                raise CorruptError(f"the backup holds {member.name} twice")
            digests[member.name] = self._take(member)
        inside = {entry.name: entry.digest for entry in reader.contents.files if not entry.part}
        if inside != digests or (wanted is not None and digests != {wanted.name: wanted.digest}):
            raise CorruptError("the backup does not hold the files that its contents say")
        self._digests |= digests
        return reader.contents

    def finish(self, contents: Contents) -> RestoreResult:
        """Check that everything is there, and make it visible. Raises CorruptError or DiskError.

        Crash argument: up to the removal of the marker nobody opens the directory; all names in it
        are durable by then, so what appears is everything.
        """
        assert self._plan is not None
        missing = {entry.name for entry in contents.files} - set(self._digests)
        if missing:
            raise CorruptError(f"the backup lacks {min(missing)}")
        result = self._result(contents)
        if self._options.dry_run:
            return result
        self._remove_others({entry.name for entry in contents.files})
        for name in ("", *DIRECTORIES):
            self._disk.sync_directory(name)
        self._check_recovery()
        if self._marker.aside:
            before = AsideDisk(self._disk, self._marker.aside)
            result.blocks_ended, result.findings = carry_removals(
                self._disk, before, bytes.fromhex(self._plan.repository_id)
            )
            self._disk.sync_directory(JOURNAL)
        self._disk.remove(RESTORE_FILE)
        self._disk.sync_directory("")
        return result

    # --- the target ---------------------------------------------------------------------------

    def _next_marker(self, archive: str) -> Marker:
        """The marker of this run. Raises RefusedError or NewerFormatError."""
        found = self._read_marker()
        if found is not None and found.archive == archive:
            self._resumes = found.step == "copy"
            return found
        force = self._options.force
        if found is not None:
            if not force:
                raise RefusedError(
                    "a restore of another backup into this directory is not finished: finish it "
                    "from that one, or give it up with --force"
                )
            step = "aside" if found.step == "aside" else "drop"
            return Marker(archive=archive, step=step, aside=found.aside)
        if self._is_empty():
            return Marker(archive=archive, step="copy", aside="")
        if not force:
            raise RefusedError(
                "the target is not empty: name another one with --persistent-path, or say --force "
                "to move what is there aside first"
            )
        # What a newer snapd knows to be removed nobody could honour.
        check_versions(self._disk)
        return Marker(archive=archive, step="aside", aside=self._free_aside())

    def _read_marker(self) -> Marker | None:
        if RESTORE_FILE not in self._disk.list(""):
            return None
        with opened(self._disk, RESTORE_FILE) as file:
            raw = FileSource(file).read(_MARKER_BYTES_MAX)
        try:
            marker = msgspec.json.decode(raw, type=Marker)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise CorruptError(
                f"{RESTORE_FILE} is damaged ({error}): empty the directory, and restore again"
            ) from error
        number = marker.aside.removeprefix(ASIDE)
        if marker.aside and (not marker.aside.startswith(ASIDE) or not number.isdecimal()):
            raise CorruptError(f"{RESTORE_FILE} makes no sense: empty the directory first")
        return marker

    def _write_marker(self) -> None:
        """Crash argument: the new marker takes the place of the old one in one step."""
        with suppress(DiskError):
            self._disk.remove(RESTORE_FILE + TEMPORARY)
        write_durably(self._disk, RESTORE_FILE, "", [msgspec.json.encode(self._marker)])

    def _is_empty(self) -> bool:
        """Nothing but locks and empty directories of ours."""
        names = set(self._disk.list("")) - _NOT_OURS
        names.discard(RESTORE_FILE + TEMPORARY)
        return names <= set(DIRECTORIES) and not any(self._disk.list(name) for name in names)

    def _free_aside(self) -> str:
        numbers = [
            int(text)
            for name in self._disk.list("")
            if (text := name.removeprefix(ASIDE)).isdecimal() and name.startswith(ASIDE)
        ]
        return f"{ASIDE}{max(numbers, default=0) + 1}"

    def _clear(self) -> None:
        """Move or delete what is there, so that nothing of it is taken for a part of the backup.
        Each file is in one of two places at any time, so this can be run again."""
        pins = self._disk.lock(PINS_FILE)
        try:
            self._clear_pinned(moves=self._marker.step == "aside")
        finally:
            pins.release()

    def _clear_pinned(self, *, moves: bool) -> None:
        if moves:
            self._disk.make_directory(self._marker.aside)
            self._disk.sync_directory("")
        names = [f"{one}/{name}" for one in _RESTORED for name in self._disk.list(one)]
        if REPOSITORY_FILE in self._disk.list(""):
            names.append(REPOSITORY_FILE)
        for name in names:
            if moves and not name.endswith(TEMPORARY):
                self._disk.rename(name, f"{self._marker.aside}/{name.rpartition('/')[2]}")
            else:
                self._disk.remove(name)
        for name in ("", *_RESTORED, *([self._marker.aside] if moves else [])):
            self._disk.sync_directory(name)

    def _check_room(self, plan: Plan) -> None:
        free = self._disk.usage().free_bytes
        there = sum(self._length(f"{PACKS}/{one}") for one in self._packs_there())
        if plan.file_bytes - there > free:
            raise DiskError(
                f"the backup needs {plan.file_bytes - there} bytes and the target has {free} free",
                errno.ENOSPC,
            )

    def _packs_there(self) -> list[str]:
        return list(self._disk.list(PACKS)) if self._resumes else []

    def _length(self, name: str) -> int:
        with opened(self._disk, name) as file:
            return file.size()

    # --- files --------------------------------------------------------------------------------

    def _take(self, member: Member) -> str:
        """Take a file; returns its digest."""
        directory, _, leaf = member.name.rpartition("/")
        there = self._resumes and leaf in self._disk.list(directory)
        if self._options.dry_run:
            return self._drain(member)
        if there and self._length(member.name) == member.size:
            digest = self._drain(member)
            if self._digest_of(member.name) == digest:
                self._files_there += 1
                return digest
            self._disk.remove(member.name)
            self._disk.sync_directory(directory)
            raise CorruptError(
                f"{member.name} is not as an earlier run wrote it; it was removed: restore again"
            )
        if there:
            self._disk.remove(member.name)
        return self._write(member, directory)

    def _write(self, member: Member, directory: str) -> str:
        """Crash argument: as for every file, see `publish`."""
        with suppress(DiskError):
            self._disk.remove(member.name + TEMPORARY)
        state = xxhash.xxh3_128()
        file = self._disk.open(member.name + TEMPORARY, "x")
        try:
            offset = 0
            for chunk in member.chunks:
                self._moved(chunk.nbytes)
                state.update(chunk)
                file.write([chunk], offset)
                offset += chunk.nbytes
            publish(self._disk, file, member.name, directory)
        except SnapdError:
            discard(self._disk, file, member.name)
            raise
        return state.hexdigest()

    def _drain(self, member: Member) -> str:
        state = xxhash.xxh3_128()
        for chunk in member.chunks:
            self._moved(chunk.nbytes)
            state.update(chunk)
        return state.hexdigest()

    def _digest_of(self, name: str) -> str:
        state = xxhash.xxh3_128()
        with opened(self._disk, name) as file:
            source = FileSource(file)
            while piece := source.read(CHUNK_BYTES):
                state.update(piece)
        return state.hexdigest()

    def _moved(self, amount: int) -> None:
        assert self._plan is not None
        self._options.pace(amount)
        self._done_bytes += amount
        self._options.progress(self._done_bytes, max(self._plan.file_bytes, self._done_bytes))

    # --- the end ------------------------------------------------------------------------------

    def _remove_others(self, names: set[str]) -> None:
        """Remove what an unfinished run left that is not of the backup: a journal that it was
        writing, or a file under its temporary name."""
        for directory in _RESTORED:
            for leaf in self._disk.list(directory):
                if f"{directory}/{leaf}" not in names:
                    self._disk.remove(f"{directory}/{leaf}")

    def _check_recovery(self) -> None:
        """Whether what came in is a repository, and the one that the plan says."""
        assert self._plan is not None
        recovered = recover_state(self._disk, bytes.fromhex(self._plan.repository_id))
        found = recovered.recovery
        problems = [
            *recovered.newer,
            *found.unreadable_manifests,
            *found.unreadable_packs,
            *found.journal_findings,
        ]
        if problems:
            raise CorruptError(f"the backup is no whole repository: {problems[0]}")
        said = (self._plan.generation, self._plan.blocks, self._plan.bytes)
        if said != (found.generation, found.blocks, found.bytes):
            raise CorruptError("the backup is of another generation than its plan says")

    def _result(self, contents: Contents) -> RestoreResult:
        assert self._plan is not None
        return RestoreResult(
            repository_id=self._plan.repository_id,
            generation=self._plan.generation,
            created_at=self._plan.created_ns / 1e9,
            blocks=self._plan.blocks,
            bytes=self._plan.bytes,
            files=len(contents.files),
            file_bytes=sum(entry.bytes for entry in contents.files),
            files_there=self._files_there,
            aside=self._marker.aside,
        )
