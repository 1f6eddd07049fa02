"""What was in a directory before a restore, and what it knows to have ended since the backup."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from snapd.blocks import BlockTable
from snapd.blocks.keys import I64, Bools
from snapd.disk import Disk, DiskFile, DiskLock, DiskUsage
from snapd.errors import DiskError, NothingThereError
from snapd.formats.removals import Removals
from snapd.formats.tables import Incarnation
from snapd.repository.catalog import Catalog, RowState
from snapd.repository.journal import Journal
from snapd.repository.layout import read_identity
from snapd.repository.manifests import read_manifest
from snapd.repository.names import (
    DIRECTORIES,
    JOURNAL,
    MANIFESTS,
    PACKS,
    REPOSITORY_FILE,
    pack_name,
    parse_journal,
    parse_manifest,
    parse_pack,
)
from snapd.repository.recovery import Recovered, load_pack, recover_state

_PARSERS = {PACKS: parse_pack, MANIFESTS: parse_manifest, JOURNAL: parse_journal}


class AsideDisk:
    """The directory `aside-<n>`, to which files were moved from their directories, as the
    repository that they were. For reading."""

    def __init__(self, disk: Disk, aside: str) -> None:
        self._disk = disk
        self._aside = aside

    def open(self, name: str, mode: str, *, direct: bool = False) -> DiskFile:
        """Open a file for reading; see `Disk.open`."""
        if mode != "r":
            raise DiskError(f"{self._aside} is only read")
        return self._disk.open(f"{self._aside}/{name.rpartition('/')[2]}", mode, direct=direct)

    def list(self, name: str) -> Sequence[str]:
        """Names in a directory of the repository."""
        names = self._disk.list(self._aside)
        if not name:
            return sorted({*DIRECTORIES, *(one for one in names if one == REPOSITORY_FILE)})
        parse = _PARSERS.get(name)
        return [one for one in names if parse(one) is not None] if parse is not None else []

    def usage(self) -> DiskUsage:
        """See `Disk.usage`."""
        return self._disk.usage()

    def make_directory(self, name: str) -> None:
        """Refused."""
        raise DiskError(f"{self._aside} is only read")

    def rename(self, source: str, target: str) -> None:
        """Refused."""
        raise DiskError(f"{self._aside} is only read")

    def remove(self, name: str) -> None:
        """Refused."""
        raise DiskError(f"{self._aside} is only read")

    def sync_directory(self, name: str) -> None:
        """Refused."""
        raise DiskError(f"{self._aside} is only read")

    def lock(self, name: str, *, shared: bool = False) -> DiskLock:
        """Refused."""
        raise DiskError(f"{self._aside} is only read")


def carry_removals(disk: Disk, before: Disk, repository_id: bytes) -> tuple[int, list[str]]:
    """Journal in the restored repository what `before` knows to have ended: versions that were
    removed, superseded, or are of an epoch that was ended since. Returns how many live blocks that
    ends, and what could not be found out.

    Only if both are the same repository: in another one versions mean something else. Where the two
    went separate ways since the backup (an earlier restore), numbers of segments were given out
    twice, and what is newer cannot be told; then every block that both know goes.

    Raises DiskError.
    """
    try:
        if read_identity(before) != repository_id:
            return 0, ["what was here before is another repository: its removals mean nothing here"]
    except NothingThereError:
        return 0, ["what was here before cannot be read: keys that were removed may be back"]
    old, new = recover_state(before, repository_id), recover_state(disk, repository_id)
    catalog = new.state.catalog
    live = catalog.live_rows()
    blocks = catalog.take(live)
    epoch = old.state.epoch if old.state.epoch > new.state.epoch else None
    if _went_separate_ways(old, new):
        incarnations: tuple[Incarnation, ...] = ()
        ended = old.state.catalog.find(blocks.keys, blocks.key_hash) >= 0
    else:
        incarnations = tuple(sorted(old.state.incarnations.values()))
        ended = _unknown(before, old, new, blocks) | _ended(before, old, blocks)
    removals = Removals.of_blocks(blocks.take(ended))
    journal = Journal(disk, repository_id, new.journal.sequence_last, new.journal.taken)
    try:
        journal.append(removals, epoch, incarnations)
    finally:
        journal.close()
    catalog.remove(removals)
    if epoch is not None:
        catalog.remove_all(epoch)
    return len(live) - len(catalog.live_rows()), _doubts(old)


def _doubts(old: Recovered) -> list[str]:
    found = old.recovery
    doubts = [*found.unreadable_manifests, *found.unreadable_packs, *found.journal_findings]
    if found.source != "manifest":
        doubts.append("what was here before has no whole snapshot: removed keys may be back")
    return doubts


def _ended(before: Disk, old: Recovered, blocks: BlockTable) -> Bools:
    """Which of these blocks are dead as far as `old` knows, bool [n].

    They enter the old catalog as one more pack. What has a newer version there is superseded, what
    is of an earlier epoch is removed, and all removals are applied once more. A version that the
    old repository has itself, and not live, has ended as well, unless it was only evicted.
    """
    catalog = old.state.catalog
    rows = catalog.find_versions(blocks)
    known = np.flatnonzero(rows >= 0)
    dead = np.zeros(len(blocks), np.bool_)
    dead[known] = _is_dead(catalog, rows[known])
    added = catalog.add(blocks).rows
    catalog.remove(old.journal.removals)
    for pack in old.state.packs.values():
        _, index = load_pack(before, old.state.repository_id, pack.name)
        catalog.remove(index.removals)
    return dead | _is_dead(catalog, catalog.newest_copies(added))


def _unknown(before: Disk, old: Recovered, new: Recovered, blocks: BlockTable) -> Bools:
    """Which of these blocks an intact old repository knows nothing of, bool [n].

    Who says that a version ended stays as long as the pack that holds it (`Pruner`). So when the
    pack is gone and nothing is known of the version, the block was evicted or removed, and nobody
    can tell which: it goes. That an older version of its key is known says nothing: after a restore
    of an older backup that is all there is. Not so where the old repository lost files and knows
    less than it should.
    """
    if old.recovery.source != "manifest":
        return np.zeros(len(blocks), np.bool_)
    manifest, _ = read_manifest(before, old.state.repository_id, old.recovery.generation)
    kept = {pack_name(pack.sequence, pack.pack_id) for pack in manifest.packs}
    kept |= {f"{PACKS}/{name}" for name in before.list(PACKS)}
    gone = [pack.sequence for pack in new.state.packs.values() if pack.name not in kept]
    unknown = old.state.catalog.find_versions(blocks) < 0
    result: Bools = unknown & np.isin(blocks.pack, gone)
    return result


def _is_dead(catalog: Catalog, rows: I64) -> Bools:
    states = catalog.state_of(rows)
    dead: Bools = (states != RowState.LIVE) & (states != RowState.EVICTED)
    return dead


def _went_separate_ways(old: Recovered, new: Recovered) -> bool:
    """Whether an ordinal stands for two segments."""
    ordinals = {one.ordinal: one.segment_id for one in old.state.incarnations.values()}
    return any(
        ordinals.get(one.ordinal, one.segment_id) != one.segment_id
        for one in new.state.incarnations.values()
    )
