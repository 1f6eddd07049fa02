"""`StoreSupervisor`: keeps a bundled store running beside the daemon (`snapd run --with-store`).

The store runs in a session of its own and inherits only standard error, so that it outlives a
daemon that is killed; the next daemon finds it by its socket and adopts it. Whether the store is
well is asked of the socket, never of a process id file. A store that ends by itself leaves its last
words in a file of the runtime directory, because no pipe may tie it to the daemon.
"""

from __future__ import annotations

import contextlib
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

from snapd.attach.backoff import Backoff
from snapd.config import Settings, event
from snapd.config.settings import environment_variables
from snapd.errors import StoreUnavailableError

STORE_SOCKET = "store.sock"
"""Name of the store's socket in the runtime directory."""

LAST_WORDS_FILE = "store.last-words"
"""In the runtime directory: why the store that was started last ended by itself."""

_POLL_SECONDS = 0.2
_BACKOFF_SECONDS_MAX = 10.0
_LAST_WORDS_BYTES_MAX = 2000
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
        self._last_words = os.path.join(settings.runtime_dir, LAST_WORDS_FILE)
        self._backoff = Backoff(
            _logger,
            "keep the store running",
            first_seconds=_POLL_SECONDS,
            most_seconds=_BACKOFF_SECONDS_MAX,
        )
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)
        self.restarts = 0
        """Times that the store was started again after it died."""

    @property
    def problem(self) -> str:
        """Why the store ended last; empty once it has run for a while since."""
        return self._backoff.error

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
        started = time.monotonic()
        while not self._stopping.wait(_POLL_SECONDS):
            if self._running():
                # One that dies again and again before it is steady is still the same failure.
                if self.problem and time.monotonic() - started > _STEADY_SECONDS:
                    self._backoff.succeeded()
                continue
            wait_seconds = self._backoff.failed(StoreUnavailableError(self._why_it_ended()))
            if self._stopping.wait(wait_seconds if self._backoff.failures > 1 else 0.0):
                return
            self.restarts += 1
            self._launch()
            started = time.monotonic()

    def _why_it_ended(self) -> str:
        """Its exit code or signal, and what it said last."""
        code = self._process.poll() if self._process is not None else None
        if code is None:
            return "the store ended"
        words = ""
        with contextlib.suppress(OSError), open(self._last_words, encoding="utf-8") as file:
            words = " ".join(file.read(_LAST_WORDS_BYTES_MAX).split())
        ended = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        return f"the store ended {ended}{': ' + words if words else ''}"

    def _running(self) -> bool:
        if self._process is not None and self._process.poll() is None:
            return True
        return store_process_id(self._path) is not None

    def _launch(self) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self._last_words)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "snapd.store", "--last-words", self._last_words],
                env=store_environment(self._settings),
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr,
                start_new_session=True,
            )
        except OSError as error:
            self._backoff.failed(error)
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
        environment_variables(name)[0]: ",".join(value) if isinstance(value, tuple) else str(value)
        for name, value in values.items()
    }


def _send(process_id: int, number: signal.Signals) -> None:
    try:
        os.kill(process_id, number)
    except (ProcessLookupError, PermissionError) as error:
        event(_logger, logging.INFO, "could not signal the store", pid=process_id, error=error)
