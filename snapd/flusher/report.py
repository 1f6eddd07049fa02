"""What a flusher tells: `FlushObserver` while it works, `SnapshotReport` of one snapshot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol


class FlushObserver(Protocol):
    """Who counts; see `snapd.metrics.Metrics`."""

    def flushed(self, blocks: int, bytes_written: int, seconds: float) -> None:
        """A flush ended well."""

    def left_without_slot(self, blocks: int) -> None:
        """Blocks on disk left the live set: the store has no slot for them."""

    def flush_failed(self, reason: str) -> None:
        """A flush failed and will be tried again."""

    def snapshot_done(
        self, blocks: int, bytes_written: int, seconds: float, timestamp: float
    ) -> None:
        """A manifest is durable."""

    def snapshot_failed(self, reason: str) -> None:
        """A snapshot failed."""

    def left_out(self, reason: str, blocks: int) -> None:
        """Blocks are not written, for now."""

    def waiting(self, blocks: Mapping[str, int]) -> None:
        """Blocks of the store that are not on disk now, by reason."""

    def offloaded(self, blocks: int, bytes_on_disk: int) -> None:
        """So many blocks are served from disk only."""


@dataclass(frozen=True, slots=True)
class SnapshotReport:
    """What one snapshot did."""

    generation: int
    blocks: int
    bytes_written: int
    """Packs sealed on its behalf and its manifest."""
    duration_seconds: float

    def document(self) -> Mapping[str, Any]:
        """As JSON types."""
        return {
            "generation": self.generation,
            "blocks": self.blocks,
            "bytes_written": self.bytes_written,
            "duration_seconds": self.duration_seconds,
        }
