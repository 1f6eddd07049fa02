"""The label under which a failure is counted."""

from __future__ import annotations

from snapd.errors import DiskError, IntegrityError, SnapdError


def failure_reason(error: SnapdError) -> str:
    """One of `snapd.metrics.registry.SNAPSHOT_FAILURE_REASONS`."""
    if isinstance(error, DiskError):
        return "disk"
    return "integrity" if isinstance(error, IntegrityError) else "other"
