"""Alert rules and dashboard ask for what exists, and lead to where somebody explains them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from snapd.daemon.reload import RELOADABLE
from snapd.metrics import Metrics

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "monitoring"
NAME = re.compile(r"\b(?:snapd|process)_[a-z_]+\b")


def known() -> set[str]:
    """Every name that a daemon exposes, as a sample's."""
    return set(re.findall(r"^([a-z_]+)[{ ]", Metrics().exposition().decode(), re.MULTILINE))


@pytest.mark.parametrize("name", ["alerts.yaml", "grafana-dashboard.json"])
def test_every_metric_that_is_asked_for_exists(name: str) -> None:
    asked = set(NAME.findall((MONITORING / name).read_text()))
    assert asked
    assert asked <= known(), asked - known()


def test_every_metric_in_the_text_about_alerts_exists() -> None:
    asked = set(NAME.findall((ROOT / "docs" / "alerts.md").read_text()))
    assert asked <= known(), asked - known()


def test_every_alert_is_explained_and_every_explanation_has_its_alert() -> None:
    rules = (MONITORING / "alerts.yaml").read_text()
    alerts = re.findall(r"- alert: (\w+)", rules)
    sections = re.findall(r"^## (\w+)$", (ROOT / "docs" / "alerts.md").read_text(), re.MULTILINE)
    assert sorted(alerts) == sorted(sections)
    links = re.findall(r'runbook: "docs/alerts.md#(\w+)"', rules)
    assert links == [alert.lower() for alert in alerts]
    tested = re.findall(r"alertname: (\w+)", (MONITORING / "alerts.test.yaml").read_text())
    assert set(tested) == set(alerts)


def test_the_dashboard_is_what_its_program_writes() -> None:
    made = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "dashboard.py")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert made == (MONITORING / "grafana-dashboard.json").read_text(), (
        "renew it: .venv/bin/python tools/dashboard.py > monitoring/grafana-dashboard.json"
    )


def test_panels_of_the_dashboard_do_not_overlap() -> None:
    panels = json.loads((MONITORING / "grafana-dashboard.json").read_text())["panels"]
    cells = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24


def test_the_text_names_every_setting_that_can_be_reloaded() -> None:
    text = (ROOT / "docs" / "systemd.md").read_text()
    (line,) = [line for line in text.splitlines() if "take effect at once:" in line]
    named = re.findall(r"`([a-z_]+)`", line.split("take effect at once:")[1].split(".")[0])
    assert named == list(RELOADABLE)
