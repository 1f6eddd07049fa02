"""What `backup` and `restore` name on the command line: a directory, a file, `-`, or a bucket."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import click

from snapd.backup import BackupKey, DirectoryPlace, Place, parse_key
from snapd.backup.sealing import load_extra
from snapd.config.load import parse_bytes
from snapd.disk import Disk
from snapd.disk.posix import PosixDisk
from snapd.disk.streams import read_secret

_KEY_FILE_BYTES_MAX = 128
_S3 = "s3://"

key_file_option = click.option(
    "--key-file",
    metavar="FILE",
    help="Encrypted, with the key in FILE (mode 0600): 32 bytes, or 64 hexadecimal digits.",
)
rate_limit_option = click.option(
    "--rate-limit",
    metavar="BYTES",
    help="Bytes a second at most, such as 200mb.",
    callback=lambda ctx, param, value: _rate(value),
)


@dataclass(frozen=True, slots=True)
class Target:
    """A destination or source, by its kind."""

    kind: Literal["stream", "file", "directory", "bucket"]
    text: str

    @classmethod
    def parse(cls, text: str) -> Target:
        """`-` is a stream, `s3://bucket/prefix` a bucket; a path that is a directory or ends in `/`
        is a directory, any other a file."""
        if text == "-":
            return cls("stream", text)
        if text.startswith(_S3):
            return cls("bucket", text)
        return cls("directory" if text.endswith("/") or Path(text).is_dir() else "file", text)

    @property
    def exists(self) -> bool:
        """Whether there is a directory or a file of that name."""
        return Path(self.text).exists()

    @contextmanager
    def place(self, *, create: bool) -> Iterator[Place]:
        """The directory or bucket. Raises DiskError or SettingError."""
        if self.kind == "bucket":
            bucket, _, prefix = self.text.removeprefix(_S3).partition("/")
            if not bucket:
                raise click.UsageError(f"{self.text!r} names no bucket")
            yield load_extra("snapd.backup.s3", "s3").S3Place(bucket, prefix)
            return
        with opened_disk(self.text, create=create) as disk:
            yield DirectoryPlace(disk)

    @contextmanager
    def file_place(self) -> Iterator[tuple[DirectoryPlace, str]]:
        """The directory that holds the file, and the file's name in it. Raises DiskError."""
        path = Path(self.text)
        with opened_disk(path.parent, create=False) as disk:
            yield DirectoryPlace(disk), path.name


@contextmanager
def opened_disk(path: Path | str, *, create: bool) -> Iterator[Disk]:
    """A directory, closed at the end. Raises DiskError."""
    disk = PosixDisk(path, create=create)
    try:
        yield disk
    finally:
        disk.close()


def read_key(path: str | None) -> BackupKey | None:
    """The key in a file. Raises SettingError, RefusedError or DiskError."""
    return parse_key(read_secret(path, _KEY_FILE_BYTES_MAX)) if path is not None else None


def refuse_terminal(stream: object, what: str) -> None:
    """Raises click.UsageError where a stream is a terminal."""
    if getattr(stream, "isatty", lambda: False)():
        raise click.UsageError(f"{what} is a terminal: name a file, or a pipe")


def stdout_descriptor() -> int:
    """Of standard output, with nothing in front of it that waits."""
    sys.stdout.flush()
    return sys.stdout.fileno()


def _rate(text: str | None) -> int:
    if text is None:
        return 0
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
