"""docs/format.md says what the code does."""

from __future__ import annotations

from pathlib import Path

from snapd.formats.describe import TABLES, render, tables_in

DOCUMENT = Path(__file__).parents[2] / "docs" / "format.md"


def test_the_tables_are_those_of_the_code() -> None:
    text = DOCUMENT.read_text()
    assert render(text) == text, "run: python -m snapd.formats.describe docs/format.md"


def test_every_table_is_in_the_document_once() -> None:
    assert sorted(tables_in(DOCUMENT.read_text())) == sorted(TABLES)


def test_a_changed_table_would_be_noticed() -> None:
    text = DOCUMENT.read_text()
    changed = text.replace("XXH3-64 of all bytes before", "nothing", 1)
    assert changed != text
    assert render(changed) == text
