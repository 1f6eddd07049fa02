"""Logging: one line an event on stderr, as key=value fields or as one JSON object.

`event(logger, logging.INFO, "sealed a pack", pack=7, blocks=4096)` gives

    time=2026-01-31T12:00:00.123Z level=info msg="sealed a pack" pack=7 blocks=4096

or `{"time": …, "level": "info", "msg": "sealed a pack", "pack": 7, "blocks": 4096}`. Whatever a key
or a peer's text contains, an event stays one line: control characters are escaped. Under journald
the time is left to the journal and each line starts with its `<priority>`.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TextIO

from snapd.config.settings import Settings

_FIELDS = "snapd_fields"
"""Attribute of a log record that carries the fields of `event`."""

_PLAIN = re.compile(r"[^\s\"'=\\\x00-\x1f\x7f-\x9f\u2028\u2029]+")
"""Values that stand in a key=value line without quotes."""

_SYSLOG_PRIORITY = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}


def event(logger: logging.Logger, level: int, message: str, /, **fields: object) -> None:
    """Log one event with named fields; `level` is `logging.INFO` and the like.

    The message is a constant phrase, what varies goes into the fields, so that events can be
    counted. Call it in an `except` block with `exc_info=True` among the fields to add a traceback.
    """
    if logger.isEnabledFor(level):
        with_traceback = bool(fields.pop("exc_info", False))
        logger.log(level, message, exc_info=with_traceback, extra={_FIELDS: fields}, stacklevel=2)


def configure_logging(settings: Settings, stream: TextIO | None = None) -> None:
    """Send the events of this process to `stream` (stderr), by `log_format` and `log_level`.

    Other libraries are heard from warnings on. May be called again: the last call holds.
    """
    target = sys.stderr if stream is None else stream
    handler = logging.StreamHandler(target)
    journal = _is_journal(target, os.environ)
    json_lines = settings.log_format == "json"
    handler.setFormatter(JsonFormatter() if json_lines else TextFormatter(journal=journal))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("snapd").setLevel(settings.log_level.upper())


class TextFormatter(logging.Formatter):
    """key=value fields; values with blanks, quotes or control characters are quoted as in JSON."""

    def __init__(self, *, journal: bool = False) -> None:
        super().__init__()
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        """One line without its end."""
        fields = _record_fields(record)
        prefix = ""
        if self._journal:
            del fields["time"]
            prefix = f"<{_SYSLOG_PRIORITY[str(fields['level'])]}>"
        return prefix + " ".join(f"{key}={_text_value(value)}" for key, value in fields.items())


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """One line without its end."""
        line = json.dumps(_record_fields(record), ensure_ascii=False, default=_json_value)
        return _escape_invisible(line)


def _record_fields(record: logging.LogRecord) -> dict[str, object]:
    """Time, level and message first; a caller's field cannot replace them."""
    moment = datetime.fromtimestamp(record.created, UTC)
    fields: dict[str, object] = {
        "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": record.levelname.lower(),
        "msg": record.getMessage(),
    }
    extra: Mapping[str, object] = getattr(record, _FIELDS, {})
    if not extra and not record.name.startswith("snapd"):
        fields["logger"] = record.name
    for key, value in extra.items():
        fields.setdefault(key, value)
    if record.exc_info:
        fields["traceback"] = logging.Formatter().formatException(record.exc_info)
    return fields


def _text_value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = _as_text(value)
    if _PLAIN.fullmatch(text):
        return text
    return _escape_invisible(json.dumps(text, ensure_ascii=False))


def _escape_invisible(text: str) -> str:
    """Escape what JSON leaves alone and a terminal or a line reader does not: C1, DEL, U+2028."""
    return re.sub("[\x7f-\x9f\u2028\u2029]", lambda match: f"\\u{ord(match[0]):04x}", text)


def _as_text(value: object) -> str:
    """Text of a field: truth in lower case, bytes (keys) with what is not UTF-8 escaped."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return str(value)


def _json_value(value: object) -> Any:
    """NumPy numbers as numbers, everything else that JSON does not know as text."""
    item = getattr(value, "item", None)
    return item() if callable(item) else _as_text(value)


def _is_journal(stream: TextIO, environment: Mapping[str, str]) -> bool:
    """Whether `stream` is the journal's socket that systemd names in JOURNAL_STREAM.

    The device and inode are compared, because children inherit the variable while their stderr may
    go elsewhere.
    """
    named = environment.get("JOURNAL_STREAM", "")
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):  # a stream without a descriptor, as tests use
        return False
    return named == f"{status.st_dev}:{status.st_ino}"
