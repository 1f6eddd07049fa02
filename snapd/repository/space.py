"""How much of the disk a repository takes, and what of that could go."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from snapd.blocks.keys import I64
from snapd.disk import Disk
from snapd.errors import DiskError
from snapd.formats.pack import padded_sizes
from snapd.plans.space import LiveRows, PackSpace
from snapd.repository.names import (
    ASIDE,
    BALLAST_FILE,
    DIRECTORIES,
    JOURNAL,
    MANIFESTS,
    PACKS,
    TEMPORARY,
    manifest_name,
)
from snapd.repository.state import RepositoryState


@dataclass(frozen=True, slots=True)
class SpaceUse:
    """Bytes of a repository's files."""

    packs: int
    """Readable packs."""
    writing: int
    """Packs that are being written, so far."""
    manifests: int
    other: int
    """Journals, the quarantine, files that cannot be read, and what was moved aside."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.packs + self.writing + self.manifests + self.other


@dataclass(frozen=True, slots=True)
class SpaceColumns:
    """What `snapd.plans.space` decides over."""

    sequence: I64
    """Pack of each row of `packs`, int64 [m], rising."""
    packs: PackSpace
    row: I64
    """Catalog row of each row of `rows`, int64 [n]."""
    rows: LiveRows


class SpaceBook:
    """Knows the lengths of files that it has looked at: all but journals never change."""

    def __init__(self, disk: Disk, ballast_bytes: int = 0) -> None:
        """`ballast_bytes`: what the journal's ballast takes, which counts while it is given up, so
        that there is room when it is made again."""
        self._disk = disk
        self._ballast_bytes = ballast_bytes
        self._bytes_of: dict[str, int] = {}
        self._data_bytes: dict[int, int] = {}
        """Blocks of each pack in whole pages."""

    def use(self, state: RepositoryState, writing: int) -> SpaceUse:
        """Look at everything that is there. Raises DiskError if a directory cannot be listed."""
        with state.catalog.lock:
            packs = {pack.name: pack.file_bytes for pack in state.packs.values()}
            manifests = {manifest_name(one): size for one, size in state.manifest_bytes.items()}
        found: dict[str, int] = {}
        other = 0
        for name in self._names():
            if name in packs or name in manifests or name.endswith(TEMPORARY):
                continue
            known = None if name.startswith(f"{JOURNAL}/") else self._bytes_of.get(name)
            found[name] = _length(self._disk, name) if known is None else known
            other += found[name]
        self._bytes_of = found
        other += max(0, self._ballast_bytes - found.get(BALLAST_FILE, 0))
        return SpaceUse(sum(packs.values()), writing, sum(manifests.values()), other)

    def columns(self, state: RepositoryState, named: Collection[int]) -> SpaceColumns:
        """Packs and live rows as columns; `named` are the packs that older manifests keep."""
        catalog = state.catalog
        with catalog.lock:
            infos = list(state.packs.values())
            sequence = np.array([pack.sequence for pack in infos], np.int64)
            self._data_bytes = {
                pack.sequence: self._data_of(state, pack.sequence) for pack in infos
            }
            row = catalog.live_rows()
            place = np.searchsorted(sequence, catalog.column("pack", row).astype(np.int64))
            rows = LiveRows(
                pack=place.astype(np.int64),
                stored_bytes=padded_sizes(catalog.column("stored_size", row)).astype(np.int64),
                heat=catalog.column("heat", row),
                age_order=catalog.column("sequence", row),
                key_hash=catalog.column("key_hash", row),
                parent=catalog.column("parent", row),
            )
        packs = PackSpace(
            file_bytes=np.array([pack.file_bytes for pack in infos], np.int64),
            data_bytes=np.array([self._data_bytes[one] for one in sequence.tolist()], np.int64),
            named=np.array([one in named for one in sequence.tolist()], np.bool_),
        )
        return SpaceColumns(sequence, packs, row, rows)

    def _data_of(self, state: RepositoryState, sequence: int) -> int:
        known = self._data_bytes.get(sequence)
        if known is not None:
            return known
        rows = state.packs[sequence].rows
        return int(padded_sizes(state.catalog.column("stored_size", rows)).sum())

    def _names(self) -> list[str]:
        top = self._disk.list("")
        below = [*DIRECTORIES, *(name for name in top if name.startswith(ASIDE))]
        return [f"{directory}/{name}" for directory in below for name in self._disk.list(directory)]


def leftover_bytes(disk: Disk) -> int:
    """Bytes of files that a dead writer left unfinished: written, and on no other account.
    Raises DiskError if a directory cannot be listed."""
    return sum(
        _length(disk, f"{directory}/{name}")
        for directory in (PACKS, MANIFESTS)
        for name in disk.list(directory)
        if name.endswith(TEMPORARY)
    )


def journal_bytes(disk: Disk) -> int:
    """Bytes of all journals. Raises DiskError if they cannot be listed."""
    names = (f"{JOURNAL}/{name}" for name in disk.list(JOURNAL))
    return sum(_length(disk, name) for name in names if name != BALLAST_FILE)


def _length(disk: Disk, name: str) -> int:
    """A file's length; 0 for what is gone by now, or is no file that can be opened."""
    try:
        file = disk.open(name, "r")
        try:
            return file.size()
        finally:
            file.close()
    except DiskError:
        return 0
