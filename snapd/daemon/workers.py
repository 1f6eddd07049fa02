"""`Workers`: the daemon's threads, and what happens when one of them fails."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from snapd.config import event

_logger = logging.getLogger(__name__)


class Workers:
    """Threads by name. A worker handles every `SnapdError` itself; anything else that ends one is
    a defect: it is logged with its traceback and the daemon stops, with a last snapshot, so that
    whoever supervises it starts a whole one again. It never goes on with a part missing."""

    def __init__(self, on_failure: Callable[[], None]) -> None:
        self._on_failure = on_failure
        self._threads: dict[str, threading.Thread] = {}
        self.error: Exception | None = None
        self.failed = ""
        """Name of the first worker that failed; empty while none has."""

    def start(self, name: str, work: Callable[[], None]) -> None:
        """Start a thread that runs `work` to its end."""
        thread = threading.Thread(target=self._run, args=(name, work), name=name, daemon=True)
        self._threads[name] = thread
        thread.start()

    def join(self, name: str, timeout_seconds: float) -> None:
        """Wait for a worker's end; log it if the time is not enough."""
        thread = self._threads[name]
        thread.join(timeout_seconds)
        if thread.is_alive():
            event(_logger, logging.WARNING, "a worker does not end", worker=name)

    def join_all(self, timeout_seconds: float) -> None:
        """Wait for the end of all workers, so long altogether."""
        deadline = time.monotonic() + timeout_seconds
        for thread in self._threads.values():
            thread.join(max(0.0, deadline - time.monotonic()))

    def _run(self, name: str, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - the last line of defence of a thread
            if not self.failed:
                self.failed, self.error = name, error
            event(_logger, logging.ERROR, "a worker failed", worker=name, exc_info=True)
            self._on_failure()
