"""`Complaints`: what peers do wrong goes into the log, but not as often as they do it."""

from __future__ import annotations

import logging
import time

from snapd.config import event

_LOG = logging.getLogger(__name__)

INTERVAL_SECONDS = 1.0


class Complaints:
    """One line for each kind of complaint in an interval, with the number that was left out."""

    def __init__(self) -> None:
        self._next: dict[str, float] = {}
        self._unsaid: dict[str, int] = {}

    def log(self, message: str, **fields: object) -> None:
        """Log a warning, or count it."""
        now = time.monotonic()
        if now < self._next.get(message, 0.0):
            self._unsaid[message] = self._unsaid.get(message, 0) + 1
            return
        self._next[message] = now + INTERVAL_SECONDS
        event(_LOG, logging.WARNING, message, **fields, not_logged=self._unsaid.pop(message, 0))
