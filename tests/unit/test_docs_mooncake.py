"""docs/mooncake.md names metrics, log lines, settings and files that exist."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from snapd.config import Settings
from snapd.config.settings import environment_variables
from snapd.metrics import Metrics

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "mooncake.md").read_text()


def test_every_metric_exists() -> None:
    names = set(re.findall(r"^# HELP (\S+)", Metrics().exposition().decode(), re.MULTILINE))
    named = set(re.findall(r"\bsnapd_[a-z_]+", TEXT))
    assert named
    assert named <= names


def test_every_log_line_is_in_the_code() -> None:
    table = TEXT[TEXT.index("| log line |") :].split("\n\n")[0]
    lines = re.findall(r"^\| `([^`]+)`", table, re.MULTILINE)
    code = "".join(path.read_text() for path in (ROOT / "snapd").rglob("*.py"))
    assert len(lines) >= 8
    assert [line for line in lines if f'"{line}' not in code] == []


def test_every_setting_and_variable_exists() -> None:
    fields = {field.name for field in msgspec.structs.fields(Settings)}
    known = {name for field in fields for name in environment_variables(field)}
    assert set(re.findall(r"\bSNAPD_[A-Z_]+", TEXT)) <= known
    assert set(re.findall(r"`([a-z]+_[a-z_]*sec)`", TEXT)) <= fields


def test_every_file_that_is_named_exists() -> None:
    named = [
        *(ROOT / "docs" / link for link in re.findall(r"\]\(([^)#]+)\)", TEXT)),
        *(ROOT / path for path in re.findall(r"`(tests/[\w/.]+)`", TEXT)),
    ]
    assert len(named) >= 5
    assert [path for path in named if not path.exists()] == []
