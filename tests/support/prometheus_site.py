"""A real Prometheus that scrapes a real daemon, with the shipped alert rules in a hurry."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

ROOT = Path(__file__).parents[2]
BINARIES = ROOT / ".tools" / "prometheus" / "usr" / "bin"
RULES = ROOT / "monitoring" / "alerts.yaml"

HURRY: Mapping[str, str] = {
    "for: 15m": "for: 1s",
    "for: 5m": "for: 1s",
    "for: 2m": "for: 1s",
    "for: 1m": "for: 1s",
    "[10m]": "[4s]",
    "[15m]": "[4s]",
    "[1h]": "[4s]",
    "> 60": "> 2",
    "> 10": "> 3",
    "4 * 3600": "30",
}
"""Durations and thresholds of the shipped rules, and what a test has time for. The expressions stay
what they are."""


def hurried(rules: str) -> str:
    """The rules with every duration of `HURRY` replaced; each must be there."""
    for shipped, short in HURRY.items():
        assert shipped in rules, shipped
        rules = rules.replace(shipped, short)
    return rules


class PrometheusSite:
    """A context manager; ends the process that it started."""

    def __init__(self, directory: Path, target: str, port: int) -> None:
        """`target` is the host:port that is scraped."""
        directory.mkdir()
        self._url = f"http://127.0.0.1:{port}"
        (directory / "alerts.yaml").write_text(hurried(RULES.read_text()))
        (directory / "prometheus.json").write_text(
            json.dumps(
                {
                    "global": {"scrape_interval": "500ms", "evaluation_interval": "500ms"},
                    "rule_files": ["alerts.yaml"],
                    "scrape_configs": [
                        {
                            "job_name": "mooncake-snapd",
                            "scrape_timeout": "500ms",
                            "static_configs": [{"targets": [target]}],
                        }
                    ],
                }
            )
        )
        self._log = directory / "prometheus.log"
        with self._log.open("wb") as stream:
            self._process = subprocess.Popen(
                [
                    BINARIES / "prometheus",
                    f"--config.file={directory / 'prometheus.json'}",
                    f"--storage.tsdb.path={directory / 'data'}",
                    f"--web.listen-address=127.0.0.1:{port}",
                ],
                stdout=stream,
                stderr=stream,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def firing(self) -> set[str]:
        """Names of the alerts that fire now."""
        try:
            with urllib.request.urlopen(f"{self._url}/api/v1/alerts", timeout=5) as answer:
                alerts = json.load(answer)["data"]["alerts"]
        except urllib.error.URLError:
            return set()
        return {one["labels"]["alertname"] for one in alerts if one["state"] == "firing"}

    def until(self, what: str, done: Callable[[set[str]], bool], seconds: float = 40.0) -> None:
        """Wait until the alerts that fire are as wanted."""
        deadline = time.monotonic() + seconds
        while not done(firing := self.firing()):
            tail = self._log.read_text()[-2000:]
            assert self._process.poll() is None, tail
            assert time.monotonic() < deadline, f"not within {seconds} s: {what}; {firing}\n{tail}"
            time.sleep(0.1)
