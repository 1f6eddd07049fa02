"""docs/backup.md says what the code does."""

from __future__ import annotations

from pathlib import Path

from snapd.backup.describe import TABLES
from snapd.formats.describe import render, tables_in

DOCUMENT = Path(__file__).parents[2] / "docs" / "backup.md"


def test_the_tables_are_those_of_the_code() -> None:
    text = DOCUMENT.read_text()
    assert render(text, TABLES) == text, "run: python -m snapd.backup.describe docs/backup.md"


def test_every_table_is_in_the_document_once() -> None:
    assert sorted(tables_in(DOCUMENT.read_text())) == sorted(TABLES)
