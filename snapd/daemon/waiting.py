"""Waiting for a disk that works, from the first moment on: the daemon before there is a repository.

A disk that is full, read-only or dead when the daemon starts is nobody's wrong setting. Ending
would have whoever supervises it start it again and again, and with `--with-store` take down a store
whose memory is good. So the store is kept running, the probes answer, and the disk is tried again.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from snapd import __version__
from snapd.attach.backoff import Backoff
from snapd.config import Settings
from snapd.config.notify import notify
from snapd.daemon.http import HttpServer
from snapd.daemon.state import process_age_seconds
from snapd.daemon.supervise import StoreSupervisor
from snapd.errors import DiskError, RefusedError
from snapd.metrics import Metrics
from snapd.repository.names import REPOSITORY_FILE

T = TypeVar("T")

PASSING_ERRORS = frozenset(
    {
        errno.EIO,
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
        errno.ESTALE,
        errno.ETIMEDOUT,
        errno.EUCLEAN,
        errno.ENODEV,
        errno.ENXIO,
    }
)
"""What a disk says that may work again, repaired or not. `EROFS` counts where there has been a
repository before; elsewhere it is a wrong path."""

_BACKOFF_SECONDS_MAX = 10.0
_POLL_SECONDS = 0.1
_logger = logging.getLogger(__name__)


def wait_for_disk(
    open_repository: Callable[[], T],
    settings: Settings,
    stopping: threading.Event,
    *,
    with_store: bool,
) -> T | None:
    """What `open_repository` returns, however long the disk refuses; None if the daemon is to stop
    first. Nothing is held open between two attempts, so that the disk can be repaired.

    Raises what `open_repository` raises, but a `DiskError` only if it will not pass.
    """
    try:
        return open_repository()
    except DiskError as error:
        if not _may_pass(error, settings.persistent_path):
            raise
        return _Wait(settings, stopping, error, with_store=with_store).run(open_repository)


def _may_pass(error: DiskError, persistent_path: str) -> bool:
    if error.errno == errno.EROFS:
        return os.path.lexists(os.path.join(persistent_path, REPOSITORY_FILE))
    return error.errno in PASSING_ERRORS


class _Wait:
    """The daemon while it waits: a `Control` that can only say why."""

    def __init__(
        self, settings: Settings, stopping: threading.Event, error: DiskError, *, with_store: bool
    ) -> None:
        self._settings = settings
        self._stopping = stopping
        self._error = error
        self._supervisor = StoreSupervisor(settings) if with_store else None
        self._metrics = Metrics()
        self._metrics.started(process_age_seconds, settings.snapshot_interval_sec)

    def run(self, open_repository: Callable[[], T]) -> T | None:
        """Try again with backoff, until it works or the daemon is to stop."""
        backoff = Backoff(_logger, "open the repository", most_seconds=_BACKOFF_SECONDS_MAX)
        http = HttpServer(
            self,
            self._settings.http,
            self._settings.runtime_dir,
            group_shared=self._settings.group_shared,
        )
        http.start()
        try:
            if self._supervisor is not None:
                self._supervisor.start()
            while self._pause(backoff.failed(self._error)):
                try:
                    opened = open_repository()
                except DiskError as error:
                    self._error = error
                else:
                    backoff.succeeded()
                    return opened
            if self._supervisor is not None:
                self._supervisor.stop(self._settings.grace_sec)
            return None
        finally:
            if self._supervisor is not None:
                self._supervisor.leave()  # the daemon to come adopts the store
            http.stop()

    def _pause(self, seconds: float) -> bool:
        """Wait; whether to go on. Not by the event, see `Daemon.run`."""
        notify("STATUS=waiting for the disk\nEXTEND_TIMEOUT_USEC=60000000")
        until = time.monotonic() + seconds
        while not self._stopping.is_set() and time.monotonic() < until:
            time.sleep(_POLL_SECONDS)
        return not self._stopping.is_set()

    # --- `Control` --------------------------------------------------------------------------------

    def failure(self) -> str | None:
        """It is alive."""
        return None

    def unready(self) -> str | None:
        """The disk."""
        return f"waiting for the disk: {self._error}"

    def problems(self) -> Sequence[str]:
        """None beside the reason."""
        return ()

    def status(self) -> Mapping[str, Any]:
        """As `DaemonState.status`, as far as there is anything to tell."""
        return {
            "version": __version__,
            "pid": os.getpid(),
            "uptime_seconds": process_age_seconds(),
            "ready": False,
            "reason": self.unready(),
            "repository": {"path": self._settings.persistent_path},
            "errors": [str(self._error)],
        }

    def exposition(self) -> bytes:
        """All metrics, at zero."""
        return self._metrics.exposition()

    def request_snapshot(self) -> Future[Mapping[str, Any]]:
        """Not now."""
        future: Future[Mapping[str, Any]] = Future()
        future.set_exception(self._refusal())
        return future

    def request_flush(self) -> Future[None]:
        """Not now."""
        future: Future[None] = Future()
        future.set_exception(self._refusal())
        return future

    def prune(
        self, retain: int | None, *, move_unreadable: bool, dry_run: bool
    ) -> Mapping[str, Any]:
        """Not now."""
        raise self._refusal()

    def purge(self, prefix: str) -> Mapping[str, Any]:
        """Not now."""
        raise self._refusal()

    def generations(self) -> Sequence[Mapping[str, Any]]:
        """Not now."""
        raise self._refusal()

    def _refusal(self) -> RefusedError:
        return RefusedError(f"the daemon waits for the disk: {self._error}")
