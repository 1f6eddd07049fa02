"""`Backoff`: waiting longer after each failure, and one log line for a run of them."""

from __future__ import annotations

import logging
import threading

from snapd.config import event


class Backoff:
    """Of one piece of work that is tried again and again."""

    def __init__(
        self,
        logger: logging.Logger,
        work: str,
        *,
        first_seconds: float = 0.05,
        most_seconds: float = 5.0,
    ) -> None:
        """`work` completes the sentences "cannot …" and "can … again"."""
        self._logger = logger
        self._work = work
        self._first_seconds = first_seconds
        self._most_seconds = most_seconds
        self._told: set[type[Exception]] = set()
        self.failures = 0
        """Failures in a row."""
        self.error = ""
        """The last failure's message; empty after a success."""

    def failed(self, error: Exception) -> float:
        """Note a failure, log the first of a run and each new kind, return the seconds to wait."""
        if type(error) not in self._told:
            event(self._logger, logging.WARNING, f"cannot {self._work}", error=error)
        self._told.add(type(error))
        self.error = str(error)
        self.failures += 1
        return min(self._most_seconds, self._first_seconds * 2.0 ** min(self.failures - 1, 20))

    def succeeded(self) -> None:
        """Note a success; log it if it ends a run of failures."""
        if self.failures:
            event(self._logger, logging.INFO, f"can {self._work} again", failures=self.failures)
        self.failures = 0
        self.error = ""
        self._told.clear()


def pause(stopping: threading.Event, seconds: float) -> bool:
    """Wait, at most until `stopping`; whether to go on."""
    return not stopping.wait(seconds)
