"""Backups: one consistent state of a repository, as a stream, a file, or parts in a place."""

from snapd.backup.capture import Capture, captured
from snapd.backup.load import load_place, load_stream
from snapd.backup.pace import RateLimit
from snapd.backup.places import DirectoryPlace, FileSink, FileSource, Place
from snapd.backup.restore import RestoreOptions, RestoreResult
from snapd.backup.save import BackupResult, SaveOptions, save_place, save_stream
from snapd.backup.sealing import BackupKey, parse_key

__all__ = [
    "BackupKey",
    "BackupResult",
    "Capture",
    "DirectoryPlace",
    "FileSink",
    "FileSource",
    "Place",
    "RateLimit",
    "RestoreOptions",
    "RestoreResult",
    "SaveOptions",
    "captured",
    "load_place",
    "load_stream",
    "parse_key",
    "save_place",
    "save_stream",
]
