"""What the repository says about its snapshots."""

from __future__ import annotations

from dataclasses import dataclass

from snapd.formats.manifest import Manifest
from snapd.repository.prune import PruneResult


@dataclass(frozen=True, slots=True)
class ManifestSummary:
    """One snapshot, for logs and screens."""

    generation: int
    committed_at: float
    """Seconds since 1970-01-01 UTC."""
    blocks: int
    bytes: int
    """Sizes of the live blocks added up."""
    packs: int
    epoch: int
    file_bytes: int
    """Length of the manifest."""
    pruned: PruneResult
    """What the commit deleted afterwards, or why not."""


@dataclass(frozen=True, slots=True)
class Generation:
    """One manifest on disk, readable or not."""

    generation: int
    manifest: Manifest | None
    file_bytes: int
    problem: str
    """Why it cannot be read; empty if it can."""
