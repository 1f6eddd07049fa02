"""Write the alert rules as an object of the Prometheus operator.

    python tools/prometheus_rule.py > k8s/monitoring/prometheusrule.yaml

The rules are those of monitoring/alerts.yaml, word for word; a test checks that the file is up to
date.
"""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

ALERTS = Path(__file__).parents[1] / "monitoring" / "alerts.yaml"
HEAD = """\
# Written by tools/prometheus_rule.py from monitoring/alerts.yaml, for the Prometheus operator.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: mooncake-snapd
  labels: {app.kubernetes.io/name: mooncake-snapd}
spec:
"""


def render(rules: str) -> str:
    """The object that holds these rules. Their comments stay, but for the file's own at the top."""
    return HEAD + textwrap.indent(rules[rules.index("groups:") :], "  ")


if __name__ == "__main__":
    sys.stdout.write(render(ALERTS.read_text()))
