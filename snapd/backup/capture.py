"""`capture`: one consistent state of a repository, beside whoever writes it.

It is what a recovery would find now: the newest snapshot, the packs sealed since, and every removal
that was acknowledged before. Of that it makes a repository of its own: the packs that hold live
blocks, as they are; one new manifest that names them; and one journal that says what must not come
back, should that manifest ever be lost and packs have to do.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from snapd.disk import Disk
from snapd.errors import NewerFormatError, NothingThereError
from snapd.formats.journal import (
    RecordPlace,
    encode_batch,
    encode_incarnation,
    encode_remove_all,
    encode_removed,
)
from snapd.formats.removals import Removals
from snapd.formats.repository import encode_repository
from snapd.formats.sealed import ID_BYTES, JOURNAL_MAGIC, FileHeader, encode_header
from snapd.repository.catalog import RowState
from snapd.repository.layout import read_identity
from snapd.repository.manifests import encode_manifest_file, make_manifest
from snapd.repository.names import REPOSITORY_FILE, journal_name, manifest_name
from snapd.repository.pins import pin
from snapd.repository.recovery import recover_state
from snapd.repository.scan import JournalScan, journal_numbers, scan_journal
from snapd.repository.state import PackInfo, RepositoryState

_ROWS_PER_JOURNAL = 65_536
_SCANS = 10


@dataclass(frozen=True, slots=True)
class Capture:
    """What a backup consists of."""

    repository_id: bytes
    generation: int
    """Of the manifest that was made for the backup."""
    created_ns: int
    blocks: int
    block_bytes: int
    packs: list[PackInfo]
    small: dict[str, bytes]
    """The other files, by name: identity, manifest, journals."""
    findings: list[str] = field(default_factory=list)
    """What could not be read, one sentence each: the backup is of the rest."""

    @property
    def file_bytes(self) -> int:
        """Lengths of all files added up."""
        packs = sum(pack.file_bytes for pack in self.packs)
        return packs + sum(len(data) for data in self.small.values())


@contextmanager
def captured(disk: Disk) -> Iterator[Capture]:
    """The state now. Nothing that it names is deleted until the end of the context: it holds the
    same pin as `verify`.

    Raises NothingThereError, NewerFormatError, RefusedError, LockHeldError or DiskError.
    """
    read_identity(disk)  # before a file for the pin is made where no repository is
    lock = pin(disk)
    try:
        yield capture(disk)
    finally:
        lock.release()


def capture(disk: Disk) -> Capture:
    """As `captured`, for a caller who holds the pin, or the repository to himself."""
    repository_id = read_identity(disk)
    recovered = recover_state(disk, repository_id)
    state, recovery = recovered.state, recovered.recovery
    # Removals that came while the packs were read. A journal file is deleted by whoever prunes,
    # whom the pin keeps out, and by a daemon that starts, which has written it again before.
    scan = _scan_whole(disk, repository_id)
    newer = [*recovered.newer, *scan.newer]
    if newer:
        raise NewerFormatError(f"{newer[0]}. What it removed is not known: run the newer version")
    if not state.packs and recovery.source == "empty" and not recovery.unreadable_packs:
        raise NothingThereError("there is no snapshot in this repository")
    with state.catalog.lock:
        state.learn_incarnations(scan.incarnations)
        state.catalog.remove_all(scan.epoch)
        state.catalog.remove(scan.removals)
        return _capture(
            state,
            recovery.unreadable_manifests
            + recovery.unreadable_packs
            + list(dict.fromkeys([*recovery.journal_findings, *scan.findings])),
        )


def journal_files(
    repository_id: bytes, removals: Removals, state: RepositoryState
) -> dict[str, bytes]:
    """Journal files, from number 1 on, that say these removals, the epoch and the incarnations."""
    first = [
        encode_incarnation(one, RecordPlace(number, number + 1), repository_id)
        for number, one in enumerate(sorted(state.incarnations.values()))
    ]
    if state.epoch:
        at = RecordPlace(len(first), len(first) + 1)
        first.append(encode_remove_all(state.epoch, at, repository_id))
    batches = [first] if first else []
    for start in range(0, len(removals), _ROWS_PER_JOURNAL):
        part = removals.take(np.arange(start, min(start + _ROWS_PER_JOURNAL, len(removals))))
        batches.append([encode_removed(part, RecordPlace(0, 1), repository_id)])
    files: dict[str, bytes] = {}
    for sequence, records in enumerate(batches, start=1):
        file_id = secrets.token_bytes(ID_BYTES)
        header = FileHeader(JOURNAL_MAGIC, repository_id, file_id, sequence)
        files[journal_name(sequence)] = b"".join([encode_header(header), *encode_batch(records)])
    return files


def _capture(state: RepositoryState, findings: list[str]) -> Capture:
    created_ns = time.time_ns()
    manifest = make_manifest(state, pack_floor=state.pack_last, journal_floor=0, now_ns=created_ns)
    generation = state.next_generation()
    _, pieces = encode_manifest_file(state.repository_id, generation, manifest)
    packs = [state.packs[pack.sequence] for pack in manifest.packs]
    journals = journal_files(state.repository_id, _ended(state, packs), state)
    return Capture(
        repository_id=state.repository_id,
        generation=generation,
        created_ns=created_ns,
        blocks=manifest.blocks,
        block_bytes=manifest.bytes,
        packs=packs,
        small={
            REPOSITORY_FILE: encode_repository(state.repository_id),
            manifest_name(generation): b"".join(pieces),
            **journals,
        },
        findings=findings,
    )


def _ended(state: RepositoryState, packs: list[PackInfo]) -> Removals:
    """Every version in these packs that must never come back. What is dead only because its own
    copy took over has the version of that copy, which lives."""
    catalog = state.catalog
    rows = [np.arange(pack.rows.start, pack.rows.stop) for pack in packs]
    known = np.concatenate([np.empty(0, np.int64), *rows])
    states = catalog.state_of(catalog.newest_copies(known))
    ended = known[(states != RowState.LIVE) & (states != RowState.EVICTED)]
    return Removals.of_blocks(catalog.take(ended))


def _scan_whole(disk: Disk, repository_id: bytes) -> JournalScan:
    """A scan during which no journal file went away: a daemon that starts writes them again under
    another name, which a list made before does not have."""
    for _ in range(_SCANS):
        scan = scan_journal(disk, repository_id)
        if scan.taken <= journal_numbers(disk):
            break
    return scan
