"""Where backups lie: a place holds archives by name, each whole or not there."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Protocol

from typing_extensions import Buffer

from snapd.backup.stream import Sink, Source
from snapd.disk import Disk, DiskFile
from snapd.errors import DiskError, NothingThereError
from snapd.repository.files import discard, opened, publish
from snapd.repository.names import TEMPORARY

RECORDS, PARTS = "backups", "packs"


class Place(Protocol):
    """Archives by name: `backups/<name>` and `packs/<name>`. Every method raises DiskError."""

    def names(self, directory: str) -> list[str]:
        """Names in a directory, sorted; none if there is no such directory."""

    def reading(self, name: str) -> AbstractContextManager[Source]:
        """An archive's bytes. Raises NothingThereError if there is none of that name."""

    def write(self, name: str, produce: Callable[[Sink], None]) -> None:
        """Have `produce` write an archive, which is there afterwards, for good; if it raises,
        nothing is."""

    def remove(self, name: str) -> None:
        """Remove an archive."""


class DirectoryPlace:
    """A directory, through the disk port."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    def names(self, directory: str) -> list[str]:
        """See `Place`. Unfinished files are not among them."""
        return [one for one in self._disk.list(directory) if not one.endswith(TEMPORARY)]

    @contextmanager
    def reading(self, name: str) -> Iterator[Source]:
        """See `Place`."""
        try:
            with opened(self._disk, name) as file:
                yield FileSource(file)
        except DiskError as error:
            if error.errno != errno.ENOENT:
                raise
            raise NothingThereError(str(error)) from error

    def write(self, name: str, produce: Callable[[Sink], None]) -> None:
        """See `Place`. Crash argument: as for every file, see `publish`."""
        directory = name.rpartition("/")[0]
        if directory:
            self._disk.make_directory(directory)
            self._disk.sync_directory("")
        with suppress(DiskError):
            self._disk.remove(name + TEMPORARY)  # what a backup before left that was killed
        file = self._disk.open(name + TEMPORARY, "x")
        try:
            produce(FileSink(file))
            publish(self._disk, file, name, directory)
        except BaseException:
            discard(self._disk, file, name)
            raise

    def remove(self, name: str) -> None:
        """See `Place`."""
        self._disk.remove(name)
        self._disk.sync_directory(name.rpartition("/")[0])


class FileSource:
    """A file from its beginning."""

    def __init__(self, file: DiskFile) -> None:
        self._file = file
        self._offset = 0

    def read(self, length: int) -> bytes | bytearray:
        """See `Source`."""
        buffer = bytearray(length)
        got = self._file.read([buffer], self._offset)
        self._offset += got
        del buffer[got:]
        return buffer


class FileSink:
    """Writes a file from its beginning."""

    def __init__(self, file: DiskFile) -> None:
        self._file = file
        self._offset = 0

    def __call__(self, data: Buffer) -> None:
        """See `Sink`."""
        self._file.write([data], self._offset)
        self._offset += memoryview(data).nbytes
