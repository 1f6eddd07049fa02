"""`StoreSupervisor`: keeps a bundled store running beside the daemon (`snapd run --with-store`).

The store runs in a session of its own and inherits only standard error, so that it outlives a
daemon that is killed; the next daemon finds it by its socket and adopts it. Whether the store is
well is asked of the socket, never of a process id file.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

import msgspec

from snapd.config import Settings, event
from snapd.config.settings import environment_variables

STORE_SOCKET = "store.sock"
"""Name of the store's socket in the runtime directory."""

_POLL_SECONDS = 0.2
_BACKOFF_SECONDS_MAX = 10.0
_STEADY_SECONDS = 30.0
"""A store that ran for so long is started again at once when it dies."""
_CREDENTIALS = struct.Struct("3i")
_logger = logging.getLogger(__name__)


def store_socket(settings: Settings) -> str:
    """Path of the store's socket."""
    return os.path.join(settings.runtime_dir, STORE_SOCKET)


def store_process_id(path: str) -> int | None:
    """Process that listens at the socket `path`, by the kernel's word; None if nobody does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        probe.settimeout(1.0)
        if probe.connect_ex(path) != 0:
            return None
        raw = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    process_id: int = _CREDENTIALS.unpack(raw)[0]
    return process_id


class StoreSupervisor:
    """Starts or adopts the store, starts it again when it dies, and stops it with the daemon."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._path = store_socket(settings)
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)
        self.restarts = 0
        """Times that the store was started again after it died."""

    def start(self) -> None:
        """Adopt the store that answers, or start one. Returns at once."""
        adopted = store_process_id(self._path)
        if adopted is None:
            self._launch()
        else:
            event(_logger, logging.INFO, "adopted a running store", pid=adopted)
        self._thread.start()

    def leave(self) -> None:
        """Supervise no more; the store goes on. Idempotent."""
        self._stopping.set()

    def stop(self, timeout_seconds: float) -> None:
        """Ask the store to end by SIGTERM and wait; kill it at the deadline. After `start` only.

        Its segment stays, whichever way it ends: the next store adopts it.
        """
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(2 * _POLL_SECONDS + 1.0)
        process_id = store_process_id(self._path)
        if process_id is None and self._process is not None and self._process.poll() is None:
            process_id = self._process.pid  # started, and not listening yet
        if process_id is None:
            return
        deadline = time.monotonic() + timeout_seconds
        for number in (signal.SIGTERM, signal.SIGKILL):
            _send(process_id, number)
            while time.monotonic() < deadline:
                if not self._exists(process_id):
                    event(_logger, logging.INFO, "stopped the store", pid=process_id)
                    return
                time.sleep(0.02)
            deadline += 2.0
        event(_logger, logging.ERROR, "the store does not end", pid=process_id)

    def _run(self) -> None:
        backoff_seconds, started = 0.0, time.monotonic()
        while not self._stopping.wait(_POLL_SECONDS):
            if self._running():
                continue
            if time.monotonic() - started > _STEADY_SECONDS:
                backoff_seconds = 0.0
            event(
                _logger,
                logging.WARNING,
                "the store ended, starting it again",
                exit_code=self._process.returncode if self._process else None,
                backoff_seconds=backoff_seconds,
            )
            if self._stopping.wait(backoff_seconds):
                return
            backoff_seconds = min(_BACKOFF_SECONDS_MAX, max(0.2, 2 * backoff_seconds))
            self.restarts += 1
            self._launch()
            started = time.monotonic()

    def _running(self) -> bool:
        if self._process is not None and self._process.poll() is None:
            return True
        return store_process_id(self._path) is not None

    def _launch(self) -> None:
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "snapd.store"],
                env=store_environment(self._settings),
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr,
                start_new_session=True,
            )
        except OSError as error:
            event(_logger, logging.ERROR, "cannot start the store", error=error)
            return
        event(_logger, logging.INFO, "started the store", pid=self._process.pid)

    def _exists(self, process_id: int) -> bool:
        if self._process is not None and self._process.pid == process_id:
            return self._process.poll() is None
        try:
            os.kill(process_id, 0)
        except ProcessLookupError:
            return False
        return True


def store_environment(settings: Settings) -> dict[str, str]:
    """This process's environment with every setting spelled out, so that the store's are the same
    whichever file, variable or flag they came from."""
    values = msgspec.structs.asdict(settings)
    return dict(os.environ) | {
        environment_variables(name)[0]: str(value) for name, value in values.items()
    }


def _send(process_id: int, number: signal.Signals) -> None:
    try:
        os.kill(process_id, number)
    except (ProcessLookupError, PermissionError) as error:
        event(_logger, logging.INFO, "could not signal the store", pid=process_id, error=error)
