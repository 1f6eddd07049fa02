"""Writing new blocks to packs, and committing snapshots over them."""

from snapd.flusher.flusher import Flusher, SnapshotReport

__all__ = ["Flusher", "SnapshotReport"]
