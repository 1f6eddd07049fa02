"""`Site`: real processes in a place of their own, started, killed by number and always cleaned up.

Nothing of the machine's own snapd is touched: sockets, shared memory, repository and HTTP port are
all the site's.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from snapd import __version__
from snapd.errors import ProtocolError, SnapdError, StoreUnavailableError
from snapd.wire.connection import Connection
from snapd.wire.messages import PROTOCOL_VERSION, Hello, HelloReply, Stats, StatsReply

POLL_SECONDS = 0.002
LOG_TAIL_LINES = 15
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - the point


class DrillError(SnapdError):
    """A process of the drill did not do what it must. Exit code 1."""


@dataclass(frozen=True, slots=True)
class SiteSettings:
    """What the store and the daemon of a site are started with."""

    segment_bytes: int
    segment_blocks_max: int
    flush_seconds: float
    snapshot_seconds: float
    get_wait_seconds: float


class Process:
    """One process that the site started."""

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        environment: dict[str, str],
        log: Path,
        *,
        executable: str = sys.executable,
        talks: bool = False,
    ) -> None:
        """Start `executable`, by default our interpreter; its output goes to the end of `log`.

        One that `talks` has pipes for its standard input and output instead.
        """
        self.name = name
        self.log = log
        self.started_at = time.monotonic()
        with log.open("ab") as stream:
            # A session of its own: Ctrl-C in the terminal reaches the drill, which then stops its
            # processes in order.
            self._popen = subprocess.Popen(
                [executable, *arguments],
                env=environment,
                stdin=subprocess.PIPE if talks else subprocess.DEVNULL,
                stdout=subprocess.PIPE if talks else stream,
                stderr=stream,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Process number."""
        return self._popen.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative for a signal."""
        return self._popen.poll()

    def ask(self, line: str, timeout_seconds: float) -> str:
        """Write a line to one that `talks` and read the line that it answers; an empty `line` only
        reads. Raises DrillError when it ends or does not answer in time."""
        deadline = time.monotonic() + timeout_seconds
        to, back = self._popen.stdin, self._popen.stdout
        if to is None or back is None:
            raise DrillError(f"{self.name} does not talk")
        answer = b""
        try:
            if line:
                to.write(f"{line}\n".encode())
                to.flush()
            while not answer.endswith(b"\n"):
                left = deadline - time.monotonic()
                if left <= 0 or not select.select([back], [], [], left)[0]:
                    raise DrillError(f"{self.name} did not answer {line!r}\n{self.log_tail()}")
                if not (part := os.read(back.fileno(), 65536)):
                    raise DrillError(f"{self.name} ended\n{self.log_tail()}")
                answer += part
        except OSError as error:
            raise DrillError(f"{self.name} is gone: {error}\n{self.log_tail()}") from error
        return answer.decode()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if it still runs."""
        if self._popen.poll() is None:
            self._popen.send_signal(number)

    def wait(self, timeout_seconds: float) -> int:
        """Its exit code. Raises DrillError when it does not end in time."""
        try:
            return self._popen.wait(timeout_seconds)
        except subprocess.TimeoutExpired as error:
            raise DrillError(
                f"{self.name} did not end within {timeout_seconds:g} s\n{self.log_tail()}"
            ) from error

    def kill(self) -> None:
        """SIGKILL it and take its exit code."""
        self.signal(signal.SIGKILL)
        self._popen.wait()
        for pipe in (self._popen.stdin, self._popen.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def check_alive(self) -> None:
        """Raise DrillError with the end of its log if it has ended."""
        if (code := self.exit_code) is not None:
            raise DrillError(f"{self.name} ended with exit code {code}\n{self.log_tail()}")

    def log_tail(self) -> str:
        """The last lines of its log."""
        lines = self.log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
        return "\n".join(f"  {self.name}: {line}" for line in lines)


class Site:
    """A runtime directory, a segment, a repository and the processes on them. A context manager:
    leaving it kills what still runs and removes everything, the segment included."""

    def __init__(self, directory: Path, settings: SiteSettings, *, keep: bool = False) -> None:
        """Make the directories below `directory`; nothing is started.

        With `keep` the directory stays when the site is left; shared memory never does.
        """
        self.directory = directory
        self.settings = settings
        self.repository = directory / "repository"
        self.shared = directory / "shared"
        self.event_log = directory / "events.log"
        self.segment = SHARED_MEMORY / f"{directory.name}.segment"
        # Not below `directory`, which may be too deep for the path of a socket.
        self.runtime = SHARED_MEMORY / f"{directory.name}.runtime"
        self.store: Process | None = None
        self.daemon: Process | None = None
        self.clients: list[Process] = []
        self._keep = keep
        self._port = free_port()
        for path in (self.runtime, self.repository, self.shared):
            path.mkdir(parents=True, mode=0o700)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for process in self.processes():
            process.kill()
        shutil.rmtree(self.runtime, ignore_errors=True)
        for path in SHARED_MEMORY.glob(f"{self.segment.name}*"):
            path.unlink(missing_ok=True)
        if not self._keep:
            shutil.rmtree(self.directory, ignore_errors=True)

    def processes(self) -> list[Process]:
        """Everything that was started, in the order in which it may be killed."""
        return [p for p in (*self.clients, self.daemon, self.store) if p is not None]

    @property
    def socket(self) -> Path:
        """The store's socket."""
        return self.runtime / "store.sock"

    def start_store(self) -> Process:
        """Start the store and return at once."""
        arguments = ["-m", "snapd.store", str(self.event_log)]
        self.store = Process("store", arguments, self.environment(), self.directory / "store.log")
        return self.store

    def start_daemon(self) -> Process:
        """Start the daemon and return at once."""
        log = self.directory / "daemon.log"
        self.daemon = Process("daemon", ["-m", "snapd.daemon"], self.environment(), log)
        return self.daemon

    def start_client(self, number: int, spec: Path) -> Process:
        """Start one process of the load."""
        arguments = ["-m", "snapd.drill.load", str(spec), str(number)]
        log = self.directory / f"client-{number}.log"
        process = Process(f"client {number}", arguments, self.environment(), log)
        self.clients.append(process)
        return process

    def wait_store(self, timeout_seconds: float) -> float:
        """Wait until the store answers a request; returns when it did (monotonic seconds).

        Raises DrillError if it ends or the time is over.
        """
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            if self.store is not None:
                self.store.check_alive()
            with contextlib.suppress(StoreUnavailableError, ProtocolError):
                self.store_stats()
                return time.monotonic()
            time.sleep(POLL_SECONDS)
        raise DrillError(f"the store did not answer within {timeout_seconds:g} s\n{self._logs()}")

    def wait_ready(self, timeout_seconds: float) -> float:
        """Wait until the daemon's /readyz says 200; returns when it did (monotonic seconds).

        Raises DrillError if it ends or the time is over.
        """
        deadline = time.monotonic() + timeout_seconds
        reason = "no answer"
        while time.monotonic() < deadline:
            if self.daemon is not None:
                self.daemon.check_alive()
            with contextlib.suppress(OSError, http.client.HTTPException):
                status, reason = self.http_get("/readyz")
                if status == 200:
                    return time.monotonic()
            time.sleep(POLL_SECONDS)
        raise DrillError(
            f"the daemon was not ready within {timeout_seconds:g} s: {reason.strip()}\n"
            f"{self._logs()}"
        )

    def http_get(self, path: str) -> tuple[int, str]:
        """Status and body of the daemon's answer. Raises OSError or HTTPException."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=2.0)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode(errors="replace")
        finally:
            connection.close()

    def store_stats(self) -> StatsReply:
        """The store's counters. Raises StoreUnavailableError or ProtocolError."""
        connection = Connection(str(self.socket), timeout_seconds=2.0)
        try:
            hello = Hello(protocol=PROTOCOL_VERSION, role="operator", name=f"drill {__version__}")
            connection.call(hello, HelloReply)
            return connection.call(Stats(), StatsReply)
        finally:
            connection.close()

    def rejected_by_store(self) -> int:
        """Blocks that the store itself found damaged. Raises StoreUnavailableError or
        ProtocolError."""
        return self.store_stats().corrupt

    def check_alive(self) -> None:
        """Raise DrillError if a process that should run has ended."""
        for process in self.processes():
            if not (process in self.clients and process.exit_code == 0):
                process.check_alive()

    def environment(self) -> dict[str, str]:
        """The drill's own environment without any setting of snapd's, plus the site's."""
        prefixes = ("SNAPD_", "MOONCAKE_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}
        settings = self.settings
        return kept | {
            "MOONCAKE_STORE_PERSISTENT_PATH": str(self.repository),
            "MOONCAKE_STORE_SNAPSHOT_INTERVAL_SEC": f"{settings.snapshot_seconds:g}",
            "MOONCAKE_GLOBAL_SEGMENT_SIZE": str(settings.segment_bytes),
            "SNAPD_SEGMENT_PATH": str(self.segment),
            "SNAPD_SEGMENT_BLOCKS_MAX": str(settings.segment_blocks_max),
            "SNAPD_RUNTIME_DIR": str(self.runtime),
            "SNAPD_HTTP": f"127.0.0.1:{self._port}",
            "SNAPD_FLUSH_SEC": f"{settings.flush_seconds:g}",
            "SNAPD_GET_WAIT_SEC": f"{settings.get_wait_seconds:g}",
        }

    def _logs(self) -> str:
        servers = [process for process in self.processes() if process not in self.clients]
        return "\n".join(process.log_tail() for process in servers)


def free_port() -> int:
    """A loopback port that is free now; a process takes it a moment later."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
