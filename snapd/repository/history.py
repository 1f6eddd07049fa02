"""The snapshots that a repository has, for operators."""

from __future__ import annotations

from snapd.disk import Disk
from snapd.errors import NothingThereError, SnapdError
from snapd.formats.manifest import Manifest
from snapd.repository.manifests import read_manifest
from snapd.repository.names import MANIFESTS, parse_manifest
from snapd.repository.summary import Generation


def generations(disk: Disk, repository_id: bytes) -> list[Generation]:
    """Every manifest on disk, oldest first. Raises DiskError if they cannot be listed."""
    found = (parse_manifest(name) for name in disk.list(MANIFESTS))
    return [
        _generation(disk, repository_id, one)
        for one in sorted(one for one in found if one is not None)
    ]


def show(disk: Disk, repository_id: bytes, generation: int) -> Manifest:
    """One manifest. Raises NothingThereError, CorruptError, NewerFormatError or DiskError."""
    if generation not in [parse_manifest(name) for name in disk.list(MANIFESTS)]:
        raise NothingThereError(f"there is no generation {generation}: `list` shows them")
    return read_manifest(disk, repository_id, generation)[0]


def _generation(disk: Disk, repository_id: bytes, generation: int) -> Generation:
    try:
        manifest, file_bytes = read_manifest(disk, repository_id, generation)
    except SnapdError as error:
        return Generation(generation, None, 0, str(error))
    return Generation(generation, manifest, file_bytes, "")
