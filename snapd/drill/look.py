"""Looks from outside: what a kill left behind, read without asking store or daemon."""

from __future__ import annotations

from pathlib import Path

from snapd.drill.content import U32


def newest_manifest_at(repository: Path) -> float | None:
    """When the newest manifest was committed (seconds of the system's clock); None if none was."""
    manifests = repository / "manifests"
    if not manifests.is_dir():
        return None
    times = [path.stat().st_mtime for path in manifests.glob("*.manifest")]
    return max(times, default=None)


def repository_versions(repository: Path, keys: list[str]) -> U32:
    """The version of each block that recovery finds in the repository, uint32 [keys]; 0 is none."""
    raise NotImplementedError


def segment_versions(segment: Path, keys: list[str]) -> U32:
    """The version of each block that is published in the segment, uint32 [keys]; 0 is none."""
    raise NotImplementedError


def evicted_keys(event_log: Path) -> frozenset[str]:
    """Keys that the store logged as evicted."""
    raise NotImplementedError
