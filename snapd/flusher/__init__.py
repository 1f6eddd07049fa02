"""Writing new blocks to packs, committing snapshots over them, and staying inside the budgets."""

from snapd.flusher.budget import Budget
from snapd.flusher.compactor import Compactor
from snapd.flusher.flusher import Flusher
from snapd.flusher.report import SnapshotReport

__all__ = ["Budget", "Compactor", "Flusher", "SnapshotReport"]
