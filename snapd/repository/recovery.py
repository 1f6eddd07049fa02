"""Recovery: from the files of a repository to what is known about it. Reads no block's bytes."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np

from snapd.blocks import KEY_BYTES_MAX, BlockTable
from snapd.blocks.keys import Bools
from snapd.blocks.table import F32
from snapd.disk import Disk
from snapd.errors import CorruptError, DiskError, NewerFormatError, SnapdError
from snapd.formats.manifest import Manifest, ManifestPack
from snapd.formats.pack import ROW_BYTES_MIN, PackIndex, decode_pack_index
from snapd.formats.removals import Removals
from snapd.formats.sealed import PACK_MAGIC, PAGE_BYTES
from snapd.formats.sections import RAW_BYTES_MAX
from snapd.repository.files import SealedFile, read_index, read_sealed
from snapd.repository.layout import read_patiently, told, will_pass
from snapd.repository.manifests import read_manifest_file
from snapd.repository.names import (
    MANIFESTS,
    PACKS,
    QUARANTINE,
    manifest_name,
    pack_name,
    parse_manifest,
    parse_pack,
)
from snapd.repository.scan import JournalScan, scan_journal
from snapd.repository.state import PackInfo, RepositoryState

Source = Literal["manifest", "previous", "rebuilt", "empty"]


@dataclass(slots=True)
class Recovery:
    """What recovery found, and from where."""

    source: Source = "empty"
    """`manifest`: the newest one; `previous`: an older one, the newest cannot be read; `rebuilt`:
    from packs alone; `empty`: nothing."""
    generation: int = 0
    """Generation it started from; 0 without a manifest."""
    committed_at: float = 0.0
    """Seconds since 1970-01-01 UTC at which that generation was committed; 0 without one."""
    blocks: int = 0
    """Live blocks."""
    bytes: int = 0
    """Their sizes added up."""
    packs: int = 0
    epoch: int = 0
    blocks_lost: int = 0
    """Blocks that the generation had, in packs that are missing or cannot be read."""
    unreadable_manifests: list[str] = field(default_factory=list)
    """One sentence each. While there are any, nothing is pruned."""
    unreadable_packs: list[str] = field(default_factory=list)
    """One sentence each. The files are kept."""
    journal_findings: list[str] = field(default_factory=list)
    damaged_headers: list[str] = field(default_factory=list)
    """One sentence for each file whose header is bad. They are used all the same: what the header
    says is repeated at their end."""
    quarantine_files: int = 0
    """Copies of blocks that were found to be bad before, for a look by people."""
    moved_aside: list[str] = field(default_factory=list)
    """Files that could not be used and were moved, with where they are now."""
    write_debt_bytes: int = 0
    """Of the daily write budget: what the manifest says is owed, and what was written since."""


@dataclass(slots=True)
class Recovered:
    """The result of `recover_state`."""

    state: RepositoryState
    recovery: Recovery
    journal: JournalScan
    corrupt: list[str]
    """Names of manifests and packs that are certainly damaged, not just newer or unreachable."""
    newer: list[str] = field(default_factory=list)
    """One sentence for each file of a newer version: a writer must not go on without them."""

    def note_newer(self, sentence: str, error: SnapdError) -> None:
        """Note a file that a newer version wrote."""
        if isinstance(error, NewerFormatError):
            self.newer.append(sentence)


def recover_state(disk: Disk, repository_id: bytes, *, use_manifests: bool = True) -> Recovered:
    """The steps of recovery: the newest valid manifest and the packs sealed after it; else the one
    before it; else the packs alone; else nothing. Removals are applied in each.

    All packs on disk enter the catalog, those that only an older manifest names as dead rows:
    whoever prunes must see every version that is there.

    Raises DiskError if a directory cannot be listed, and if a file cannot be read for a reason that
    passes, such as too many open files: to go on without it would count its blocks as lost, or
    fall back to an older snapshot, and the next commit would make that final.
    """
    recovered = Recovered(
        RepositoryState(repository_id), Recovery(), scan_journal(disk, repository_id), []
    )
    manifest = _newest_manifest(disk, recovered, use_manifests=use_manifests)
    _load_packs(disk, recovered, manifest)
    state, recovery, journal = recovered.state, recovered.recovery, recovered.journal
    state.learn_incarnations(journal.incarnations)
    state.catalog.remove_all(journal.epoch)
    state.catalog.remove(journal.removals)
    recovery.journal_findings = list(journal.findings)
    recovery.quarantine_files = len(disk.list(QUARANTINE))
    recovered.newer += journal.newer
    recovery.blocks, recovery.bytes = state.catalog.live_totals()
    recovery.packs = len(state.packs)
    recovery.epoch = state.epoch
    if manifest is None and state.packs:
        recovery.source = "rebuilt"
    return recovered


def load_pack(disk: Disk, repository_id: bytes, name: str) -> tuple[SealedFile, PackIndex]:
    """A pack's verified index. Raises CorruptError, NewerFormatError or DiskError."""
    sealed, raw = read_index(disk, name, PACK_MAGIC, repository_id)
    if name != pack_name(sealed.header.sequence, sealed.header.file_id):
        raise CorruptError(f"{name} has the header of another pack")
    return sealed, decode_pack_index(raw, sealed.trailer)


def enter_pack(
    state: RepositoryState, sealed: SealedFile, index: PackIndex, live: Bools | None
) -> BlockTable:
    """Take a verified pack into the state; returns the versions that it superseded. The caller
    holds the catalog's lock. See `Catalog.add` for `live`."""
    moved = state.learn_fingerprints(index.fingerprints)
    blocks = index.blocks
    if moved:
        ids = np.arange(1 << 16, dtype=np.uint16)
        ids[list(moved)] = list(moved.values())
        blocks = blocks.with_columns(fingerprint=ids[blocks.fingerprint])
    state.learn_incarnations(index.incarnations)
    state.catalog.remove_all(index.epoch)
    added = state.catalog.add(blocks, live)
    first = int(added.rows[0]) if len(added.rows) else state.catalog.rows_end
    header = sealed.header
    state.packs[header.sequence] = PackInfo(
        sequence=header.sequence,
        pack_id=header.file_id,
        index_digest=sealed.trailer.index_digest,
        rows=slice(first, first + len(blocks)),
        file_bytes=sealed.file_bytes,
        epoch=index.epoch,
        removals=len(index.removals),
    )
    state.packs = dict(sorted(state.packs.items()))
    return state.catalog.take(added.superseded)


def _newest_manifest(disk: Disk, recovered: Recovered, *, use_manifests: bool) -> Manifest | None:
    """The newest manifest that can be read, taken into the state."""
    state, recovery = recovered.state, recovered.recovery
    generations = sorted(
        found for name in disk.list(MANIFESTS) if (found := parse_manifest(name)) is not None
    )
    state.generations_taken = frozenset(generations)
    if not use_manifests:
        return None
    for generation in reversed(generations):
        try:
            manifest, sealed = read_patiently(
                partial(read_manifest_file, disk, state.repository_id, generation)
            )
        except SnapdError as error:
            if will_pass(error):
                raise
            recovery.unreadable_manifests.append(told(manifest_name(generation), error))
            if isinstance(error, CorruptError):
                recovered.corrupt.append(manifest_name(generation))
            recovered.note_newer(recovery.unreadable_manifests[-1], error)
            continue
        if sealed.problem:
            recovery.damaged_headers.append(f"{sealed.name}: {sealed.problem}")
        state.generation, state.committed_ns = generation, manifest.committed_ns
        state.generation_last = state.generation_recovered = generation
        state.manifest_bytes[generation] = sealed.file_bytes
        state.pack_floor, state.pack_last = manifest.pack_floor, manifest.pack_last
        state.learn_incarnations(manifest.incarnations)
        state.learn_fingerprints(manifest.fingerprints)
        state.catalog.remove_all(manifest.epoch)
        recovery.source = "previous" if recovery.unreadable_manifests else "manifest"
        recovery.generation, recovery.committed_at = generation, manifest.committed_ns / 1e9
        recovery.write_debt_bytes = manifest.write_debt_bytes
        return manifest
    return None


def _load_packs(disk: Disk, recovered: Recovered, manifest: Manifest | None) -> None:
    """Load every readable pack in the order of sequences, then apply all removals they carry."""
    state, recovery = recovered.state, recovered.recovery
    named = _Named(manifest)
    names = sorted(f"{PACKS}/{name}" for name in disk.list(PACKS) if parse_pack(name) is not None)
    for missing in sorted(named.names() - set(names)):
        recovery.unreadable_packs.append(f"{missing} is missing")
    _reserve(disk, state, names)
    removals: list[Removals] = []
    loaded: set[str] = set()
    for name in names:
        identity = parse_pack(name.removeprefix(f"{PACKS}/"))
        sequence = identity[0] if identity else 0
        try:
            if sequence in state.packs or named.another(sequence, name):
                raise CorruptError(f"{name} has the number of another pack")
            sealed, index = read_patiently(partial(load_pack, disk, state.repository_id, name))
            live = named.live(sealed)
            enter_pack(state, sealed, index, live)
        except (CorruptError, NewerFormatError, DiskError) as error:
            if will_pass(error):
                raise
            recovery.unreadable_packs.append(told(name, error))
            if isinstance(error, CorruptError):
                recovered.corrupt.append(name)
            recovered.note_newer(recovery.unreadable_packs[-1], error)
            state.unreadable_packs[name] = sequence
            continue
        if sealed.problem:
            recovery.damaged_headers.append(f"{name}: {sealed.problem}")
        loaded.add(name)
        if live is None:
            recovery.write_debt_bytes += sealed.file_bytes
        else:
            rows = np.flatnonzero(live) + state.packs[sequence].rows.start
            state.catalog.set_heat(rows, named.heat(name))
        removals.append(index.removals)
    state.catalog.remove(Removals.concatenate(removals))
    recovery.blocks_lost = named.blocks_outside(loaded)


class _Named:
    """The packs that a manifest names, by file name; none without a manifest."""

    def __init__(self, manifest: Manifest | None) -> None:
        self._manifest = manifest
        self._packs: dict[str, tuple[ManifestPack, slice, slice]] = {}
        self._by_sequence: dict[int, str] = {}
        if manifest is None:
            return
        start = 0
        for pack, rows in zip(manifest.packs, manifest.rows_of_packs(), strict=True):
            end = start + int(manifest.live[rows].sum())
            name = pack_name(pack.sequence, pack.pack_id)
            self._packs[name] = (pack, rows, slice(start, end))
            self._by_sequence[pack.sequence] = name
            start = end

    def names(self) -> set[str]:
        """The files that should be there."""
        return set(self._packs)

    def another(self, sequence: int, name: str) -> bool:
        """Whether the manifest names another file of this sequence."""
        return self._by_sequence.get(sequence, name) != name

    def live(self, sealed: SealedFile) -> Bools | None:
        """Which rows of a pack are live; None if it was sealed after the manifest: all that
        nothing newer says otherwise of. Raises CorruptError if it is not what the manifest knew."""
        if self._manifest is None:
            return None
        rows = sealed.trailer.rows
        if sealed.name not in self._packs:
            later = sealed.header.sequence > self._manifest.pack_floor
            return None if later else np.zeros(rows, np.bool_)
        pack, where, _ = self._packs[sealed.name]
        if pack.index_digest != sealed.trailer.index_digest or pack.rows != rows:
            raise CorruptError(f"{sealed.name} is not the pack that the manifest names")
        return self._manifest.live[where]

    def heat(self, name: str) -> F32:
        """Heat of the live rows of a pack."""
        if self._manifest is None or name not in self._packs:
            return np.empty(0, np.float32)
        return self._manifest.heat[self._packs[name][2]]

    def blocks_outside(self, loaded: set[str]) -> int:
        """Live blocks of the manifest in other packs than these."""
        return sum(
            live.stop - live.start
            for name, (_, _, live) in self._packs.items()
            if name not in loaded
        )


def _reserve(disk: Disk, state: RepositoryState, names: list[str]) -> None:
    """Make room for all rows at once: growing step by step would cost time and peak memory. Learns
    which numbers were given out: a name is no proof, so only those that the file confirms."""
    rows = key_bytes = 0
    found = (parse_pack(name.removeprefix(f"{PACKS}/")) for name in names)
    state.packs_taken = frozenset(identity[0] for identity in found if identity)
    for name in names:
        try:
            sealed = read_patiently(
                partial(read_sealed, disk, name, PACK_MAGIC, state.repository_id)
            )
        except SnapdError as error:
            if will_pass(error):
                raise
            # Reported by whoever loads it.
            continue
        if name == pack_name(sealed.header.sequence, sealed.header.file_id):
            state.pack_last = max(state.pack_last, sealed.header.sequence)
        # What the trailer says is not verified yet: no more than the file can hold.
        raw_bytes = min(sealed.trailer.raw_bytes, RAW_BYTES_MAX)
        pages = sealed.file_bytes // PAGE_BYTES
        count = min(sealed.trailer.rows, pages, raw_bytes // ROW_BYTES_MIN)
        rows += count
        key_bytes += min(raw_bytes, count * KEY_BYTES_MAX)
    state.catalog.reserve(rows, key_bytes)
