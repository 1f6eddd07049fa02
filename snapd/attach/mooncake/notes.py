"""`MountNotes`: which segments are ours, on the disk, for a daemon that finds no shared memory.

A file in shared memory says as which segments it is mounted. Where it is lost with the node, and
the node is back before the master has noticed, the dead segments are listed still and the keys in
them with them: as if they lived on another host. A note beside the packs tells the difference.

The note is a text with a checksum, replaced as a whole. It only ever makes the daemon wait: where
it is lost, old or not readable, keys in a dead segment count as somebody else's, and are not put
back.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated

import msgspec
import xxhash

from snapd.attach.mooncake.master import MasterSegment
from snapd.attach.mooncake.service import SegmentId
from snapd.config import event
from snapd.disk import Disk
from snapd.errors import CorruptError, DiskError
from snapd.repository.files import opened, write_durably
from snapd.repository.names import TEMPORARY

NOTES_FILE = "mooncake.json"
NOTED_SECONDS_MAX = 60.0
"""A noted segment that is listed for longer is not dead: another daemon has a copy of our note, or
Mooncake's client_ttl is longer than anybody should have it."""
_VERSION = 1
_NOTE_BYTES_MAX = 1 << 20
_Url = Annotated[str, msgspec.Meta(max_length=512)]
_Ids = Annotated[tuple[SegmentId, ...], msgspec.Meta(max_length=4096)]
_Stores = Annotated[dict[_Url, _Ids], msgspec.Meta(max_length=1024)]
_logger = logging.getLogger(__name__)


class _Note(msgspec.Struct, frozen=True, kw_only=True):
    version: int
    segments: _Stores
    """Of each store service, by its URL: ids of the segments that it has or had mounted of ours,
    as far as the master listed them."""
    checksum: str
    """XXH3-64 of the JSON of `segments`, keys in order, as 16 hexadecimal digits."""


class MountNotes:
    """The note of one repository. For one thread."""

    def __init__(self, disk: Disk, clock: Callable[[], float] = time.monotonic) -> None:
        """Nothing is read yet. `clock` is monotonic, in seconds."""
        self._disk = disk
        self._clock = clock
        self._written: Mapping[str, tuple[str, ...]] | None = None
        self._awaited: frozenset[str] = frozenset()
        self._since = 0.0

    def read(self) -> Mapping[str, tuple[str, ...]]:
        """Segment ids by store URL, as the daemon before wrote them; nothing where there is no note
        or it is not to be used."""
        try:
            with opened(self._disk, NOTES_FILE) as file:
                size = file.size()
                raw = bytearray(min(size, _NOTE_BYTES_MAX))
                file.read([raw], 0)
            note = _decode(bytes(raw))
        except DiskError as error:
            if error.errno != errno.ENOENT:
                event(_logger, logging.WARNING, "cannot read the note of segments", error=error)
            return {}
        except CorruptError as error:
            event(_logger, logging.WARNING, "passed over the note of segments", error=error)
            return {}
        self._written = note
        return note

    def write(self, segments: Mapping[str, Iterable[str]]) -> None:
        """Replace the note, if it says anything else. Raises DiskError.

        Killed before the rename the old note stands, which does not name what was mounted last:
        that is not waited for then.
        """
        note = {url: tuple(sorted(ids)) for url, ids in sorted(segments.items())}
        if note == self._written:
            return
        with contextlib.suppress(DiskError):
            self._disk.remove(NOTES_FILE + TEMPORARY)  # of a daemon that was killed
        write_durably(self._disk, NOTES_FILE, "", [_encode(note)])
        self._written = note

    # --- noted segments that are listed still ---------------------------------------------------

    def wait_for(self, segment_ids: Iterable[str]) -> None:
        """From now on these, which the daemon before noted, are waited for."""
        self._awaited, self._since = frozenset(segment_ids), self._clock()

    def outlived(self, listed: Iterable[MasterSegment]) -> frozenset[str]:
        """Those that are listed for too long to be dead, each once: they are somebody else's."""
        if not self._awaited or self._clock() - self._since < NOTED_SECONDS_MAX:
            return frozenset()
        alive = self._awaited & {one.segment_id for one in listed}
        self._awaited = frozenset()
        return alive


def _encode(segments: Mapping[str, tuple[str, ...]]) -> bytes:
    note = _Note(version=_VERSION, segments=dict(segments), checksum=_checksum(segments))
    return msgspec.json.format(msgspec.json.encode(note), indent=2) + b"\n"


def _decode(raw: bytes) -> Mapping[str, tuple[str, ...]]:
    """Raises CorruptError."""
    try:
        note = msgspec.json.decode(raw, type=_Note)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptError(f"{NOTES_FILE}: {error}") from error
    if note.version != _VERSION:
        raise CorruptError(
            f"{NOTES_FILE} is of version {note.version}, this snapd reads {_VERSION}"
        )
    if note.checksum != _checksum(note.segments):
        raise CorruptError(f"{NOTES_FILE} does not have its checksum")
    return note.segments


def _checksum(segments: Mapping[str, tuple[str, ...]]) -> str:
    return xxhash.xxh3_64_hexdigest(msgspec.json.encode(dict(sorted(segments.items()))))
