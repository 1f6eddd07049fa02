"""`EventLogFile`: the store's own account of what left it, for audits such as the drill's."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from snapd.config import event
from snapd.errors import SettingError

_LOG = logging.getLogger(__name__)


class EventLogFile:
    """Appends lines `evict KEY`, `remove KEY` and `remove_all`; keys are percent-encoded where
    they are not printable ASCII without blanks. A kill may cut the last line short. When it cannot
    be written any more it says so once and stops: an audit must not stop the store."""

    def __init__(self, path: Path) -> None:
        """Open for appending. Raises SettingError."""
        try:
            self._descriptor = os.open(
                path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600
            )
        except OSError as error:
            raise SettingError(
                f"cannot open the event log {path}: {error.strerror}; check --event-log"
            ) from error

    def __call__(self, kind: str, keys: list[bytes]) -> None:
        """Log one event for each key, or one without a key."""
        lines = [f"{kind} {_printable(key)}\n" for key in keys] or [f"{kind}\n"]
        rest = "".join(lines).encode()
        try:
            while rest and self._descriptor >= 0:
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError as error:
            event(_LOG, logging.ERROR, "event log stopped", why=error.strerror)
            self.close()

    def close(self) -> None:
        """Close; idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _printable(key: bytes) -> str:
    return "".join(chr(c) if 0x21 <= c < 0x7F and c != 0x25 else f"%{c:02X}" for c in key)
