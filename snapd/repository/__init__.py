"""The disk side: packs, manifests, journals, and the catalog of what they hold."""

from snapd.formats.removals import Removals
from snapd.formats.tables import Incarnation
from snapd.repository.catalog import Catalog, RowState
from snapd.repository.compaction import Adopting, CompactionResult, Moved
from snapd.repository.prune import PruneResult
from snapd.repository.purge import Purge, PurgeResult
from snapd.repository.recovery import Recovery
from snapd.repository.repository import Repository
from snapd.repository.summary import Generation, ManifestSummary
from snapd.repository.verify import Finding, Sample, Verification
from snapd.repository.writer import PackWriter

__all__ = [
    "Adopting",
    "Catalog",
    "CompactionResult",
    "Finding",
    "Generation",
    "Incarnation",
    "ManifestSummary",
    "Moved",
    "PackWriter",
    "PruneResult",
    "Purge",
    "PurgeResult",
    "Recovery",
    "Removals",
    "Repository",
    "RowState",
    "Sample",
    "Verification",
]
