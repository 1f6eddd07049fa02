"""Counters as the audit reads them from /metrics."""

from __future__ import annotations

from snapd.drill.audit import sum_metric

METRICS = """\
# HELP snapd_blocks_quarantined_total Blocks that failed verification, by where they were.
# TYPE snapd_blocks_quarantined_total counter
snapd_blocks_quarantined_total{reason="pack"} 3.0
snapd_blocks_quarantined_total{reason="segment"} 2.0
snapd_blocks_quarantined_created{reason="pack"} 1.7e+09
# HELP snapd_other_total Another one.
# TYPE snapd_other_total counter
snapd_other_total 7.0
"""


def test_what_the_store_counted_already_is_left_out() -> None:
    assert sum_metric(METRICS, "snapd_blocks_quarantined_total", without="segment") == 3
    assert sum_metric(METRICS, "snapd_other_total", without="segment") == 7
    assert sum_metric(METRICS, "snapd_missing_total", without="segment") == 0
