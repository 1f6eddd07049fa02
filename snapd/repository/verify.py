"""`Verifier`: read all that a snapshot consists of and say what is wrong. Changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from snapd.blocks import BlockTable
from snapd.blocks.keys import Bools
from snapd.disk import Disk
from snapd.errors import DiskError, NothingThereError, SnapdError
from snapd.formats.manifest import Manifest
from snapd.formats.sealed import padded
from snapd.plans import windows
from snapd.repository.files import aligned_buffer
from snapd.repository.layout import identity_problem
from snapd.repository.manifests import read_manifest_file
from snapd.repository.names import (
    MANIFESTS,
    PACKS,
    REPOSITORY_FILE,
    manifest_name,
    pack_name,
    parse_manifest,
    parse_pack,
)
from snapd.repository.quarantine import quarantine_use
from snapd.repository.reader import PackFiles, read_blocks
from snapd.repository.recovery import load_pack
from snapd.repository.scan import scan_journal

_WINDOW_BYTES_MAX = 32 * 2**20
_WINDOW_BLOCKS_MAX = 8192

Progress = Callable[[int, int], None]
"""progress(done, total): bytes of blocks read so far, and to be read in all as far as known."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Part `number` (1 to `parts`) of all blocks, chosen by key: `parts` runs cover all."""

    number: int
    parts: int


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be."""

    file: str
    problem: str
    blocks: int = 0
    """Live blocks that are affected, where that is known."""


@dataclass(slots=True)
class Verification:
    """What was looked at and what was found."""

    generation: int = 0
    packs: int = 0
    blocks: int = 0
    """Blocks whose bytes were read and checked."""
    bytes: int = 0
    quarantine_files: int = 0
    """Copies of blocks that were found to be bad before. They are out of the snapshots already, so
    they are no findings of this run."""
    quarantine_bytes: int = 0
    findings: list[Finding] = field(default_factory=list)


class Verifier:
    """Reads one generation, or all packs, with its own eyes: nothing that is in memory counts."""

    def __init__(self, disk: Disk, repository_id: bytes, files: PackFiles) -> None:
        self._disk = disk
        self._repository_id = repository_id
        self._files = files

    def run(
        self,
        generation: int | None,
        *,
        all_blocks: bool,
        sample: Sample | None,
        progress: Progress | None,
    ) -> Verification:
        """Check one generation (None: the newest): its manifest, its packs' headers, trailers and
        indexes, and the bytes of its live blocks. `all_blocks` goes over every manifest and every
        block of every pack instead. `sample` reads the bytes of one part of the blocks only.

        Raises NothingThereError if there is no such generation, and DiskError if a directory
        cannot be listed; everything else is a finding.
        """
        result = Verification()
        manifest, others = self._check_manifests(result, generation, all_blocks=all_blocks)
        targets = self._targets(manifest, others, all_blocks=all_blocks)
        total = manifest.bytes if manifest is not None else 0
        for name, (live, digest) in targets.items():
            self._check_pack(result, name, live, digest, sample)
            if progress is not None:
                progress(result.bytes, max(total, result.bytes))
        result.quarantine_files, result.quarantine_bytes = quarantine_use(self._disk)
        for problem in scan_journal(self._disk, self._repository_id).findings:
            result.findings.append(Finding("journal", problem))
        # The others repeat what it says, so nothing is lost by it yet.
        problem = identity_problem(self._disk, self._repository_id)
        if problem:
            result.findings.append(Finding(REPOSITORY_FILE, problem))
        return result

    def _check_manifests(
        self, result: Verification, wanted: int | None, *, all_blocks: bool
    ) -> tuple[Manifest | None, list[Manifest]]:
        """Check manifests; returns the wanted one, or the newest that can be read, and the others
        that were looked at."""
        names = self._disk.list(MANIFESTS)
        generations = sorted(one for name in names if (one := parse_manifest(name)) is not None)
        if wanted is not None and wanted not in generations:
            raise NothingThereError(f"there is no generation {wanted}: `list` shows them")
        if not generations and not all_blocks and not self._disk.list(PACKS):
            raise NothingThereError("there is no snapshot in this repository")
        chosen: Manifest | None = None
        others: list[Manifest] = []
        for generation in reversed(generations):
            if wanted is not None and generation != wanted and not all_blocks:
                continue
            if chosen is not None and not all_blocks:
                break
            try:
                manifest, sealed = read_manifest_file(self._disk, self._repository_id, generation)
            except SnapdError as error:
                result.findings.append(Finding(manifest_name(generation), str(error)))
                continue
            if sealed.problem:
                result.findings.append(Finding(sealed.name, sealed.problem))
            if chosen is None and wanted in {None, generation}:
                chosen, result.generation = manifest, generation
            else:
                others.append(manifest)
        return chosen, others

    def _targets(
        self, manifest: Manifest | None, others: list[Manifest], *, all_blocks: bool
    ) -> dict[str, tuple[Bools | None, bytes]]:
        """Packs to check: which rows (None: all), and the digest that they must have (or none)."""
        targets: dict[str, tuple[Bools | None, bytes]] = {}
        if manifest is not None:
            for pack, rows in zip(manifest.packs, manifest.rows_of_packs(), strict=True):
                name = pack_name(pack.sequence, pack.pack_id)
                targets[name] = (manifest.live[rows], pack.index_digest)
        if manifest is None or all_blocks:
            for name in self._disk.list(PACKS):
                if parse_pack(name) is not None:
                    _, digest = targets.get(f"{PACKS}/{name}", (None, b""))
                    targets[f"{PACKS}/{name}"] = (None, digest)
            for pack in (pack for other in others for pack in other.packs):
                name = pack_name(pack.sequence, pack.pack_id)
                if targets.get(name, (None, b""))[1] == b"":
                    targets[name] = (None, pack.index_digest)
        return dict(sorted(targets.items()))

    def _check_pack(
        self,
        result: Verification,
        name: str,
        live: Bools | None,
        digest: bytes,
        sample: Sample | None,
    ) -> None:
        affected = 0 if live is None else int(live.sum())
        try:
            sealed, index = load_pack(self._disk, self._repository_id, name)
        except SnapdError as error:
            result.findings.append(Finding(name, str(error), affected))
            return
        result.packs += 1
        if sealed.problem:
            result.findings.append(Finding(name, sealed.problem))
        blocks = index.blocks
        if (digest and digest != sealed.trailer.index_digest) or (
            live is not None and len(live) != len(blocks)
        ):
            problem = "is not the pack that the manifest names"
            result.findings.append(Finding(name, problem, affected))
            return
        wrong = int((blocks.keys.hashes() != blocks.key_hash).sum())
        if wrong:
            result.findings.append(Finding(name, f"{wrong} keys do not have their hash", wrong))
        if live is not None:
            blocks = blocks.take(live)
        if sample is not None:
            part = blocks.key_hash % np.uint64(sample.parts)
            blocks = blocks.take(part == np.uint64(sample.number - 1))
        try:
            self._check_blocks(result, name, blocks)
        except DiskError as error:
            result.findings.append(Finding(name, str(error), len(blocks)))

    def _check_blocks(self, result: Verification, name: str, blocks: BlockTable) -> None:
        order = np.argsort(blocks.pack_offset, kind="stable")
        bad = 0
        for window in windows(
            order, blocks.size, bytes_max=_WINDOW_BYTES_MAX, blocks_max=_WINDOW_BLOCKS_MAX
        ):
            part = blocks.take(window)
            ends = np.cumsum([padded(size) for size in part.size.tolist()])
            memory = aligned_buffer(int(ends[-1]))
            starts = [0, *ends[:-1].tolist()]
            buffers = [memory[a:b] for a, b in zip(starts, ends.tolist(), strict=True)]
            names = {int(pack): name for pack in np.unique(part.pack)}
            good = read_blocks(self._files, names, part, buffers)
            result.blocks += len(part)
            result.bytes += int(part.size.sum())
            bad += int((~good).sum())
        if bad:
            result.findings.append(Finding(name, f"{bad} blocks do not have their checksum", bad))
