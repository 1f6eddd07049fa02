"""Pure decisions over tables: what to write, in which order to load, which reads to merge."""

from snapd.plans.diff import ScanDiff, diff_scan, same_bytes
from snapd.plans.heat import cooling, decay, heat_from_reads, lift_parents, parent_rows, quantise
from snapd.plans.merge import ReadRuns, merge_reads
from snapd.plans.order import (
    chains_hottest_first,
    hottest_first,
    pages_hottest_first,
    stretches_hottest_first,
)
from snapd.plans.pace import TokenBucket
from snapd.plans.warm import windows

__all__ = [
    "ReadRuns",
    "ScanDiff",
    "TokenBucket",
    "chains_hottest_first",
    "cooling",
    "decay",
    "diff_scan",
    "heat_from_reads",
    "hottest_first",
    "lift_parents",
    "merge_reads",
    "pages_hottest_first",
    "parent_rows",
    "quantise",
    "same_bytes",
    "stretches_hottest_first",
    "windows",
]
