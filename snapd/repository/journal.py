"""`Journal`: what is durable before the next pack is sealed. Removals, epochs, incarnations."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import numpy as np

from snapd.disk import Disk, DiskFile
from snapd.errors import DiskError
from snapd.formats.journal import (
    RECORD_ROWS_MAX,
    RecordPlace,
    encode_batch,
    encode_incarnation,
    encode_remove_all,
    encode_removed,
)
from snapd.formats.removals import Removals
from snapd.formats.sealed import (
    ID_BYTES,
    JOURNAL_MAGIC,
    FileHeader,
    encode_header,
)
from snapd.formats.tables import Incarnation
from snapd.repository.ballast import FULL_ERRNOS, Ballast
from snapd.repository.names import (
    JOURNAL,
    SEQUENCE_MAX,
    journal_name,
    next_number,
)
from snapd.repository.scan import JournalScan, journal_numbers, scan_journal

_FILE_BYTES = 32 * 2**20
"""Length at which a file is left for the next one."""
_SYNC_BYTES = 8 * 2**20
"""Records are written and synced together up to this many bytes and one record more."""

Record = Callable[[RecordPlace, bytes], bytes]
"""Encodes a record, given its place and the repository's id."""


@dataclass(frozen=True, slots=True)
class _Batch:
    """Removals that are in the journal file `sequence` and in no sealed pack that counts yet."""

    sequence: int
    removals: Removals


class Journal:
    """The journal files of one repository, for its one writer. Safe to use from several threads.

    Each life of the writer starts a file of its own, and so does each failure: a file that may have
    a torn tail is never written again. Files are named by rising sequence. `rotate` ends a file;
    those up to the one it returns are covered once a pack with their removals is sealed, and are
    deleted once a manifest says so.

    On a full disk it goes on in its ballast, so that removals stay durable for some hundreds of
    batches while nothing else can be written; see `_write_on_full_disk`.
    """

    def __init__(
        self,
        disk: Disk,
        repository_id: bytes,
        sequence_last: int,
        taken: frozenset[int] = frozenset(),
        *,
        ballast_bytes: int = 0,
    ) -> None:
        """New files get numbers above `sequence_last` that are not in `taken`."""
        self._disk = disk
        self._repository_id = repository_id
        self._sequence = sequence_last
        self._taken = taken
        self._bytes = 0
        self._renewed = False
        self._ballast = Ballast(disk, ballast_bytes)
        self._in_ballast = False
        """Whether the file in hand was the ballast."""
        self._file: DiskFile | None = None
        self._unconfirmed = False
        """Whether nothing in the file in hand was ever synced."""
        self._end = 0
        self._number = 0
        self._batches: list[_Batch] = []
        self._lock = threading.Lock()

    @property
    def pending(self) -> int:
        """Removals that are in no sealed pack yet."""
        with self._lock:
            return sum(len(batch.removals) for batch in self._batches)

    @property
    def bytes_pending(self) -> int:
        """Bytes written since the last sealed pack, about: what a recovery would have to read."""
        return self._bytes

    def renew(self, scan: JournalScan) -> None:
        """Take up what recovery read: write it to a file of our own, then delete the files it came
        from, except damaged ones and ones to keep.

        What was read may never have been on the medium: after a failed sync the page cache still
        shows what a power cut would take away. So nothing that was read counts before it was
        written again. If the disk refuses that, the removals hold in memory, as before the restart,
        and the old files stay.
        """
        removals = scan.removals
        try:
            self.append(removals, scan.epoch or None, scan.incarnations)
        except DiskError:
            if len(removals):
                self._batches.append(_Batch(scan.sequence_last, removals))
            return
        self._renewed = True
        with suppress(DiskError):
            self._delete(scan.taken - scan.keep - scan.damaged)

    def append(
        self,
        removals: Removals | None = None,
        epoch: int | None = None,
        incarnations: Sequence[Incarnation] = (),
    ) -> None:
        """Write records and sync them. Raises DiskError: then none of them counts.

        Crash argument: the header and the name of a new file are durable together with its first
        records before this returns. A crash before that leaves a part of the records, each whole or
        not at all: a removal that was asked for and not yet confirmed may have happened.
        """
        records: list[Record] = [partial(encode_incarnation, one) for one in incarnations]
        if epoch is not None:
            records.append(partial(encode_remove_all, epoch))
        if removals is not None:
            records += _removed_records(removals)
        if not records:
            return
        with self._lock:
            try:
                self._write(records)
            except DiskError as error:
                self._give_up_file()
                if error.errno not in FULL_ERRNOS or not self._ballast.is_there:
                    raise
                self._write_on_full_disk(records)
            if removals is not None and len(removals):
                # Covered when the last file that holds a part of it is.
                self._batches.append(_Batch(self._sequence, removals))

    def append_or_carry(self, removals: Removals) -> None:
        """Write removals that a sealed pack implies: if the disk refuses, the next pack says them
        nevertheless, and nothing is lost by the failure of a second line of defence."""
        try:
            self.append(removals)
        except DiskError:
            with self._lock:
                self._batches.append(_Batch(self._sequence, removals))

    def damaged_before(self) -> list[str]:
        """Names of the files from before this life of the writer that are damaged or foreign. Their
        removals were written again, so they may be moved; if that failed there are none."""
        if not self._renewed:
            return []
        scan = scan_journal(self._disk, self._repository_id)
        found = (scan.damaged | scan.unreadable) & self._taken
        return [journal_name(sequence) for sequence in sorted(found)]

    def rotate(self) -> tuple[int, Removals]:
        """End the file. Returns the last sequence, and every removal up to it that is in no sealed
        pack: the next pack must carry them.

        A file that was the ballast goes on, since the disk has no room for another one; what is in
        it is carried, and will be carried again.
        """
        with self._lock:
            through = self._sequence - 1 if self._in_ballast else self._sequence
            if not self._in_ballast:
                self._close()
            return through, Removals.concatenate([one.removals for one in self._batches])

    def sealed(self, through: int) -> None:
        """A pack is sealed that carries the removals of all files up to `through`."""
        with self._lock:
            self._batches = [batch for batch in self._batches if batch.sequence > through]
            self._bytes = self._end if self._file is not None else 0

    def delete(self, through: int, keep: frozenset[int]) -> int:
        """Delete files up to `through` but those in `keep`; returns how many. Raises DiskError."""
        return self._delete({one for one in journal_numbers(self._disk) if one <= through} - keep)

    def restore_ballast(self) -> None:
        """Make the ballast again, where it was given up and there is room. Never raises."""
        if self._ballast.restore():
            with self._lock:
                if self._in_ballast:
                    self._close()

    def close(self) -> None:
        """Close the file; idempotent."""
        with self._lock:
            self._close()

    def _delete(self, sequences: Collection[int]) -> int:
        for sequence in sorted(sequences):
            self._disk.remove(journal_name(sequence))
        if sequences:
            self._disk.sync_directory(JOURNAL)
        return len(sequences)

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
            self._in_ballast = False

    def _give_up_file(self) -> None:
        """Never write to the file again. One that never held anything goes at once: on a full disk
        each attempt would leave another, and the room that it took may be what is missing."""
        unconfirmed = self._file is not None and self._unconfirmed
        self._close()
        if unconfirmed:
            with suppress(DiskError):
                self._disk.remove(journal_name(self._sequence))

    def _write_on_full_disk(self, records: list[Record]) -> None:
        """Write records in the place of the ballast. Raises DiskError.

        Crash argument: the ballast holds nothing, and the file that failed says nothing that these
        records do not say again, so a crash between any two steps leaves what was confirmed, and
        of these records each whole or not at all.
        """
        try:
            self._use_ballast()
            self._write(records)
        except DiskError:
            # Overwriting may take new blocks. Then the file is gone now, and has left them.
            self._give_up_file()
            try:
                self._write(records)
            except DiskError:
                self._give_up_file()
                raise

    def _use_ballast(self) -> None:
        self._sequence = next_number(self._sequence, self._taken, SEQUENCE_MAX)
        self._file = self._ballast.become(journal_name(self._sequence))
        self._in_ballast = self._unconfirmed = True
        self._end = self._number = 0

    def _write(self, records: list[Record]) -> None:
        pieces: list[bytes] = []
        length = 0
        for record in records:
            if self._file is None:
                self._begin_file()
            at = RecordPlace(self._number, len(pieces) + 1)
            pieces.append(record(at, self._repository_id))
            self._number += 1
            length += len(pieces[-1])
            if length >= _SYNC_BYTES:
                self._flush(pieces)
                pieces, length = [], 0
        self._flush(pieces)

    def _begin_file(self) -> None:
        self._sequence = next_number(self._sequence, self._taken, SEQUENCE_MAX)
        self._file = self._disk.open(journal_name(self._sequence), "x")
        self._unconfirmed = True
        self._end = self._number = 0

    def _flush(self, records: list[bytes]) -> None:
        """Write records as a batch, twice, and sync it once; a new file gets its header and a
        durable name as well."""
        if self._file is None or not records:
            return
        pieces = encode_batch(records)
        is_new = self._end == 0
        if is_new:
            file_id = secrets.token_bytes(ID_BYTES)
            header = FileHeader(JOURNAL_MAGIC, self._repository_id, file_id, self._sequence)
            pieces = [encode_header(header), *pieces]
        self._file.write(pieces, self._end)
        written = sum(len(piece) for piece in pieces)
        self._end += written
        self._bytes += written
        self._file.sync()
        if is_new:
            self._disk.sync_directory(JOURNAL)
        self._unconfirmed = False
        if self._end > _FILE_BYTES:
            self._close()


def _removed_records(removals: Removals) -> list[Record]:
    parts = [
        removals.take(np.arange(first, min(first + RECORD_ROWS_MAX, len(removals))))
        for first in range(0, len(removals), RECORD_ROWS_MAX)
    ]
    return [partial(encode_removed, part) for part in parts]
