"""How `snapctl status` puts a document for people."""

import pytest

from snapd.cli.status import _flatten


@pytest.mark.parametrize(
    ("document", "lines"),
    [
        ({"a": {"b": 1, "c": {"d": True}}}, {"a.b": "1", "a.c.d": "yes"}),
        ({"pid": 12467, "seconds": 0.12345}, {"pid": "12467", "seconds": "0.123"}),
        ({"bytes_used": 1536, "bytes": 0}, {"bytes_used": "1.5 KiB", "bytes": "0 B"}),
        (
            {"committed_at": 0.0, "x_at": 86400},
            {"committed_at": "-", "x_at": "1970-01-02 00:00:00Z"},
        ),
        (
            {"e": [], "f": ["x", "y"], "g": "", "h": None},
            {"e": "-", "f": "x; y", "g": "-", "h": "-"},
        ),
        (
            {"on_disk": [{"label": "a=1 b=2", "blocks": 3, "bytes": 2048}, {"label": ""}]},
            {"on_disk": "label a=1 b=2, blocks 3, bytes 2 KiB; label -"},
        ),
        ({"zero": 0, "no": False}, {"zero": "0", "no": "no"}),
    ],
)
def test_values_are_put_by_type_and_name(
    document: dict[str, object], lines: dict[str, str]
) -> None:
    assert dict(_flatten("", document)) == lines
