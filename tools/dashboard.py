"""Write the Grafana dashboard.

    python tools/dashboard.py > monitoring/grafana-dashboard.json

A panel is a line here; what Grafana wants around it is the same for all. A test checks that the
file is up to date and that every metric in it exists.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass

_SELECTOR = 'job=~"$job",instance=~"$instance"'
_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
_WIDTH = 24
_STAT_HEIGHT, _GRAPH_HEIGHT = 4, 8


@dataclass(frozen=True)
class Panel:
    """`queries` are pairs of an expression, in which `{}` becomes the selector, and a legend."""

    title: str
    queries: Sequence[tuple[str, str]]
    unit: str
    description: str
    stat: bool = False
    steps: Sequence[tuple[float, str]] = ()
    """Values from which on the panel is of this colour; green below the first."""
    width: int = 8
    stacked: bool = False


_ROWS: dict[str, list[Panel]] = {
    "At a glance": [
        Panel(
            "Store",
            [("snapd_store_up{{{}}}", "{{instance}}")],
            "none",
            "1 while the store beside snapd answers.",
            stat=True,
            steps=[(-1, "red"), (1, "green")],
            width=4,
        ),
        Panel(
            "Last snapshot",
            [
                (
                    "time() - (snapd_snapshot_last_success_timestamp_seconds{{{}}} > 0)",
                    "{{instance}}",
                )
            ],
            "s",
            "Age of the newest valid snapshot, also of one from before this process.",
            stat=True,
            steps=[(600, "orange"), (900, "red")],
            width=4,
        ),
        Panel(
            "Flush lag",
            [("snapd_flush_lag_seconds{{{}}}", "{{instance}}")],
            "s",
            "What was put within so long is lost if the node goes down now.",
            stat=True,
            steps=[(15, "orange"), (60, "red")],
            width=4,
        ),
        Panel(
            "Load time",
            [("snapd_ready_duration_seconds{{{}}}", "{{instance}}")],
            "s",
            "From the start of the process until every block of the snapshot was served.",
            stat=True,
            steps=[(5, "orange"), (10, "red")],
            width=4,
        ),
        Panel(
            "Disk used",
            [("snapd_disk_used_ratio{{{}}}", "{{instance}}")],
            "percentunit",
            "Of the file system that holds the repository.",
            stat=True,
            steps=[(0.7, "orange"), (0.8, "red")],
            width=4,
        ),
        Panel(
            "Warm-up",
            [("snapd_warmup_progress_ratio{{{}}}", "{{instance}}")],
            "percentunit",
            "Share of the blocks to warm up that were dealt with.",
            stat=True,
            steps=[(-1, "orange"), (1, "green")],
            width=4,
        ),
    ],
    "The store": [
        Panel(
            "Hit rate",
            [
                (
                    "rate(snapd_store_hits_total{{{0}}}[5m]) / "
                    "(rate(snapd_store_hits_total{{{0}}}[5m]) + "
                    "rate(snapd_store_misses_total{{{0}}}[5m]))",
                    "{{instance}}",
                )
            ],
            "percentunit",
            "Of the bundled store's readers. Mooncake does not tell its own.",
        ),
        Panel(
            "Blocks",
            [
                ("snapd_store_blocks{{{}}}", "resident {{instance}}"),
                ("snapd_store_cold_blocks{{{}}}", "on disk only {{instance}}"),
                ("snapd_snapshot_blocks{{{}}}", "in the snapshot {{instance}}"),
            ],
            "short",
            "Resident in memory, served from disk, and in the newest snapshot.",
        ),
        Panel(
            "Memory",
            [
                ("snapd_store_bytes{{{}}}", "used {{instance}}"),
                ("snapd_store_capacity_bytes{{{}}}", "capacity {{instance}}"),
            ],
            "bytes",
            "Bytes of resident blocks, and how many the store can hold.",
        ),
    ],
    "To the disk": [
        Panel(
            "Written",
            [
                ("rate(snapd_flush_bytes_total{{{}}}[5m])", "flush {{instance}}"),
                ("rate(snapd_compaction_bytes_total{{{}}}[5m])", "compaction {{instance}}"),
            ],
            "Bps",
            "Bytes written to packs.",
        ),
        Panel(
            "Repository and disk",
            [
                ("snapd_repository_bytes{{{}}}", "repository {{instance}}"),
                ("snapd_repository_limit_bytes{{{}}}", "may take {{instance}}"),
                ("snapd_disk_used_bytes{{{}}}", "disk used {{instance}}"),
                ("snapd_disk_capacity_bytes{{{}}}", "disk {{instance}}"),
            ],
            "bytes",
            "What packs and manifests take, what they may take, and the file system.",
        ),
        Panel(
            "Snapshot duration",
            [
                (
                    "histogram_quantile(0.99, sum by (le, instance) "
                    "(rate(snapd_snapshot_duration_seconds_bucket{{{}}}[15m])))",
                    "p99 {{instance}}",
                ),
                (
                    "histogram_quantile(0.5, sum by (le, instance) "
                    "(rate(snapd_snapshot_duration_seconds_bucket{{{}}}[15m])))",
                    "p50 {{instance}}",
                ),
            ],
            "s",
            "From a snapshot's start to its durable manifest.",
        ),
    ],
    "Back into memory": [
        Panel(
            "Put back",
            [("rate(snapd_warmup_bytes_total{{{}}}[1m])", "{{instance}}")],
            "Bps",
            "Bytes that the background warm-up put back.",
        ),
        Panel(
            "Warm-up by result",
            [("increase(snapd_warmup_blocks_total{{{}}}[5m])", "{{result}} {{instance}}")],
            "short",
            "Blocks that the background warm-up dealt with.",
            stacked=True,
        ),
        Panel(
            "Loaded for readers",
            [("rate(snapd_demand_load_blocks_total{{{}}}[1m])", "{{result}} {{instance}}")],
            "ops",
            "Cold blocks that a reader waited for.",
            stacked=True,
        ),
    ],
    "SSD tier and heat": [
        Panel(
            "Served from disk only",
            [("snapd_offload_bytes{{{}}}", "{{instance}}")],
            "bytes",
            "Blocks that the SSD tier keeps readable after their eviction.",
        ),
        Panel(
            "Evicted to disk",
            [("rate(snapd_offload_evictions_total{{{}}}[5m])", "{{instance}}")],
            "ops",
            "Evicted blocks that stay readable.",
        ),
        Panel(
            "Lookups told",
            [("rate(snapd_trace_lookups_total{{{}}}[5m])", "{{result}} {{instance}}")],
            "ops",
            "Page lookups that clients told the daemon, which heat is made of.",
            stacked=True,
        ),
    ],
    "What went wrong": [
        Panel(
            "Failures",
            [
                ("increase(snapd_snapshot_failures_total{{{}}}[5m])", "snapshot {{reason}}"),
                ("increase(snapd_flush_failures_total{{{}}}[5m])", "flush {{reason}}"),
                ("increase(snapd_compaction_failures_total{{{}}}[5m])", "compaction {{reason}}"),
            ],
            "short",
            "Each is tried again; `snapctl status` says why.",
            stacked=True,
        ),
        Panel(
            "Blocks quarantined and dropped",
            [
                ("increase(snapd_blocks_quarantined_total{{{}}}[5m])", "quarantined {{reason}}"),
                ("increase(snapd_blocks_dropped_total{{{}}}[5m])", "dropped for {{reason}}"),
            ],
            "short",
            "Failed verification; or left the disk for want of room.",
            stacked=True,
        ),
        Panel(
            "Blocks not written",
            [("snapd_blocks_waiting{{{}}}", "{{reason}} {{instance}}")],
            "short",
            "Blocks of the store that are not on disk now, by reason.",
            stacked=True,
        ),
    ],
    "Real Mooncake": [
        Panel(
            "Looks at the master",
            [
                (
                    "histogram_quantile(0.99, sum by (le, instance) "
                    "(rate(snapd_mooncake_look_duration_seconds_bucket{{{}}}[5m])))",
                    "p99 {{instance}}",
                )
            ],
            "s",
            "Time of looks that listed keys.",
        ),
        Panel(
            "What looks found",
            [("rate(snapd_mooncake_look_blocks_total{{{}}}[5m])", "{{result}} {{instance}}")],
            "ops",
            "Blocks in segments of ours that are new, rewritten, gone, or in doubt.",
            stacked=True,
        ),
        Panel(
            "Mounts that failed",
            [("increase(snapd_mooncake_mount_failures_total{{{}}}[5m])", "{{reason}}")],
            "short",
            "Segments that a store service did not mount.",
            stacked=True,
        ),
    ],
}


def _panel(panel: Panel, number: int, x: int, y: int) -> dict[str, object]:
    steps = [{"color": "green", "value": None}] + [
        {"color": color, "value": value} for value, color in panel.steps
    ]
    custom: dict[str, object] = {"lineWidth": 1, "fillOpacity": 10, "showPoints": "never"}
    if panel.stacked:
        custom |= {"stacking": {"mode": "normal"}, "fillOpacity": 40}
    return {
        "id": number,
        "type": "stat" if panel.stat else "timeseries",
        "title": panel.title,
        "description": panel.description,
        "datasource": _DATASOURCE,
        "gridPos": {
            "x": x,
            "y": y,
            "w": panel.width,
            "h": _STAT_HEIGHT if panel.stat else _GRAPH_HEIGHT,
        },
        "fieldConfig": {
            "defaults": {
                "unit": panel.unit,
                "min": 0,
                "thresholds": {"mode": "absolute", "steps": steps},
                **({} if panel.stat else {"custom": custom}),
            },
            "overrides": [],
        },
        "targets": [
            {
                "refId": chr(ord("A") + at),
                "datasource": _DATASOURCE,
                "expr": expression.format(_SELECTOR),
                "legendFormat": legend,
            }
            for at, (expression, legend) in enumerate(panel.queries)
        ],
    }


def _variable(name: str, query: str) -> dict[str, object]:
    return {
        "name": name,
        "type": "query",
        "datasource": _DATASOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "current": {"text": "All", "value": "$__all"},
    }


def dashboard() -> dict[str, object]:
    """The dashboard as Grafana 9 and newer import it."""
    panels: list[dict[str, object]] = []
    y = 0
    for title, row in _ROWS.items():
        heading = {"x": 0, "y": y, "w": _WIDTH, "h": 1}
        panels.append(
            {
                "id": len(panels) + 1,
                "type": "row",
                "title": title,
                "collapsed": False,
                "gridPos": heading,
                "panels": [],
            }
        )
        y, x = y + 1, 0
        for panel in row:
            panels.append(_panel(panel, len(panels) + 1, x, y))
            x += panel.width
        y += _STAT_HEIGHT if row[0].stat else _GRAPH_HEIGHT
    return {
        "title": "snapd",
        "uid": "mooncake-snapd",
        "tags": ["snapd", "mooncake", "sglang"],
        "schemaVersion": 37,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "type": "datasource", "query": "prometheus"},
                _variable("job", "label_values(snapd_build_info, job)"),
                _variable("instance", 'label_values(snapd_build_info{job=~"$job"}, instance)'),
            ]
        },
        "panels": panels,
    }


def main() -> None:
    """To standard output."""
    json.dump(dashboard(), sys.stdout, indent=1)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
