"""`MooncakeSite`: a site whose store is Mooncake's own: master, store service and clients from the
published wheel, with snapd beside them.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from snapd.drill.processes import (
    SHARED_MEMORY,
    DrillError,
    Process,
    Site,
    SiteSettings,
    free_port,
)
from snapd.errors import SettingError

CLIENT_TTL_SECONDS = 2
"""How long the master lists the segments of a store that is dead: `--client_ttl`, 10 by default."""
LOCAL_BUFFER_BYTES = 64 << 20
"""Mooncake's buffer for what does not come from registered memory."""
PEERS = "P2PHANDSHAKE"
"""Mooncake's transfer engine finds its peers without a metadata server, which is its default."""
MASTER_SECONDS = 20.0
HTTP_SECONDS = 2.0
PROBE_SECONDS = 60.0
ADMIN_POLL_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class MooncakeSettings:
    """What Mooncake's processes are started with."""

    python: str
    """An interpreter that has Mooncake's wheel and snapd."""
    launcher: bool = False
    """The store service is `snapd mooncake-store`, and not Mooncake's own."""
    poll_seconds: float = 0.25
    client_ttl_seconds: int = CLIENT_TTL_SECONDS
    own_memory: bool = False
    """The store brings its memory itself, as it does without snapd."""
    offload_bucket_bytes: int = 0
    """Mooncake's own SSD offload with buckets of this size; 0 is off."""
    offload_bucket_keys: int = 0


def find_wheel(python: str | None) -> str:
    """The interpreter for Mooncake's processes: `python`, or our own.

    Raises SettingError when it cannot import Mooncake's wheel and snapd.
    """
    wanted = python or sys.executable
    probe = "import mooncake.store, snapd.drill.mooncake_load"
    try:
        done = subprocess.run(
            [wanted, "-c", probe],
            capture_output=True,
            text=True,
            timeout=PROBE_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SettingError(
            f"cannot run {wanted}: {error}; name another --mooncake-python"
        ) from error
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise SettingError(
            f"{wanted} cannot import Mooncake's wheel and snapd ({why}); install "
            "'mooncake-snapd[mooncake]' there, or name another --mooncake-python"
        )
    return wanted


class MooncakeSite(Site):
    """A master, a store service, a daemon with `SNAPD_STORE=mooncake` and clients.

    The daemon's files in shared memory begin with the path of `segment`, so leaving the site
    removes them too.
    """

    def __init__(
        self,
        directory: Path,
        settings: SiteSettings,
        mooncake: MooncakeSettings,
        *,
        keep: bool = False,
    ) -> None:
        super().__init__(directory, settings, keep=keep)
        self.mooncake = mooncake
        self.offload = directory / "offload"
        self.offload.mkdir(mode=0o700)
        self.master: Process | None = None
        self.auditor: Process | None = None
        self._master_port, self._admin_port, self._store_port = (free_port() for _ in range(3))

    # --- addresses --------------------------------------------------------------------------------

    @property
    def master_address(self) -> str:
        """host:port that clients connect to."""
        return f"127.0.0.1:{self._master_port}"

    @property
    def admin_address(self) -> str:
        """host:port of the master's metrics and admin HTTP."""
        return f"127.0.0.1:{self._admin_port}"

    @property
    def store_url(self) -> str:
        """URL of the store service."""
        return f"http://127.0.0.1:{self._store_port}"

    # --- processes --------------------------------------------------------------------------------

    def processes(self) -> list[Process]:
        """Everything that was started, in the order in which it may be killed."""
        mooncake = [process for process in (self.auditor, self.master) if process is not None]
        return [*mooncake[:-1], *super().processes(), *mooncake[-1:]]

    def start_master(self) -> Process:
        """Start the master and return at once."""
        options = {
            "rpc_port": self._master_port,
            "metrics_port": self._admin_port,
            "client_ttl": self.mooncake.client_ttl_seconds,
            "enable_offload": str(bool(self.mooncake.offload_bucket_bytes)).lower(),
        }
        flags = [f"--{name}={value}" for name, value in options.items()]
        self.master = self._start_mooncake("master", ["-m", "mooncake.cli", *flags])
        return self.master

    def start_store(self) -> Process:
        """Start the store service and return at once."""
        port = ["--port", str(self._store_port)]
        if self.mooncake.launcher:
            run = "from snapd.cli.snapd import main; main()"
            arguments = ["-c", run, "mooncake-store", *port]
        else:
            arguments = ["-m", "mooncake.mooncake_store_service", *port]
        self.store = self._start_mooncake("store", arguments)
        return self.store

    def start_client(self, number: int, spec: Path) -> Process:
        """Start one process of the load."""
        arguments = ["-m", "snapd.drill.mooncake_load", str(spec), str(number)]
        client = self._start_mooncake(f"client-{number}", arguments)
        self.clients.append(client)
        return client

    def start_auditor(self, spec: Path) -> Process:
        """Start the process that audits, and talk to it."""
        arguments = ["-m", "snapd.drill.mooncake_load", str(spec), "audit"]
        self.auditor = self._start_mooncake("auditor", arguments, talks=True)
        return self.auditor

    def _start_mooncake(
        self, name: str, arguments: Sequence[str], *, talks: bool = False
    ) -> Process:
        log = self.directory / f"{name}.log"
        python, environment = self.mooncake.python, self.mooncake_environment()
        return Process(name, arguments, environment, log, executable=python, talks=talks)

    # --- what they say ----------------------------------------------------------------------------

    def wait_master(self, timeout_seconds: float = MASTER_SECONDS) -> float:
        """Wait until the master answers; returns when it did (monotonic seconds)."""
        return self._wait_http("the master", self.admin_address, "/metrics", timeout_seconds)

    def wait_store(self, timeout_seconds: float) -> float:
        """Wait until the store service answers; returns when it did (monotonic seconds)."""
        address = self.store_url.removeprefix("http://")
        return self._wait_http("the store service", address, "/api/exist/none", timeout_seconds)

    def wait_restored(self, before: str, timeout_seconds: float) -> float:
        """Wait until the daemon has attached anew and put back what it can; returns when it had
        (monotonic seconds).

        `before` is what `session()` said before the kill. Raises DrillError if a process ends or
        the time is over.
        """
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            self.check_alive()
            session, is_ready = self._session()
            if is_ready and session != before:
                return time.monotonic()
            time.sleep(ADMIN_POLL_SECONDS)
        raise DrillError(
            f"nothing was put back within {timeout_seconds:g} s: {self._reason()}\n{self._logs()}"
        )

    def session(self) -> str:
        """Which lives of store and master the daemon is attached to; empty for none."""
        return self._session()[0]

    def key_count(self) -> int:
        """How many keys the master lists. Raises DrillError when it does not answer."""
        return len(self._admin("/get_all_keys").split())

    def counter(self, name: str) -> float:
        """A counter of the master's; 0 if it has none of this name."""
        lines = self._admin("/metrics").splitlines()
        values = [
            line.rsplit(" ", 1)[1] for line in lines if line.startswith((name + " ", name + "{"))
        ]
        return sum(map(float, values))

    def metric(self, name: str, **labels: str) -> int:
        """A counter of the daemon's, summed over what else labels it; 0 if it has none of it.

        Raises DrillError when it does not answer.
        """
        try:
            _, text = self.http_get("/metrics")
        except (OSError, http.client.HTTPException) as error:
            raise DrillError(f"the daemon does not give its metrics: {error}") from error
        samples = (s for family in text_string_to_metric_families(text) for s in family.samples)
        return int(
            sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())
        )

    def rejected_by_store(self) -> int:
        """Mooncake checks nothing."""
        return 0

    def wipe_memory(self) -> None:
        """Remove the daemon's files in shared memory, as a reboot does."""
        for path in self.memory_files():
            path.unlink(missing_ok=True)

    def memory_files(self) -> list[Path]:
        """The daemon's files in shared memory, oldest first."""
        found = SHARED_MEMORY.glob(f"{self.segment.name}*")
        return sorted(found, key=lambda path: path.stat().st_mtime_ns)

    def environment(self) -> dict[str, str]:
        """Of the daemon."""
        return super().environment() | {
            "SNAPD_STORE": "mooncake",
            "SNAPD_POLL_SEC": f"{self.mooncake.poll_seconds:g}",
            "MOONCAKE_MASTER": self.master_address,
            "SNAPD_MOONCAKE_ADMIN": self.admin_address,
            "SNAPD_MOONCAKE_STORES": self.store_url,
            "MOONCAKE_TE_META_DATA_SERVER": PEERS,
            "MOONCAKE_LOCAL_HOSTNAME": "127.0.0.1",
            "SNAPD_MOONCAKE_PYTHON": self.mooncake.python,
        }

    def mooncake_environment(self) -> dict[str, str]:
        """Of Mooncake's processes and of the clients."""
        mooncake, size = self.mooncake, self.settings.segment_bytes
        environment = super().environment() | {
            "MOONCAKE_MASTER": self.master_address,
            "MOONCAKE_TE_META_DATA_SERVER": PEERS,
            "MOONCAKE_LOCAL_HOSTNAME": "127.0.0.1",
            "MOONCAKE_PROTOCOL": "tcp",
            "MOONCAKE_LOCAL_BUFFER_SIZE": str(LOCAL_BUFFER_BYTES),
            "MOONCAKE_GLOBAL_SEGMENT_SIZE": str(size if mooncake.own_memory else 0),
            "GLOG_minloglevel": "1",
        }
        if mooncake.offload_bucket_bytes:
            environment |= {
                "MOONCAKE_OFFLOAD_ENABLED": "true",
                "MOONCAKE_OFFLOAD_FILE_STORAGE_PATH": str(self.offload),
                "MOONCAKE_OFFLOAD_STORAGE_BACKEND_DESCRIPTOR": "bucket_storage_backend",
                "MOONCAKE_OFFLOAD_HEARTBEAT_INTERVAL_SECONDS": "1",
                "MOONCAKE_OFFLOAD_LOCAL_BUFFER_SIZE_BYTES": str(256 << 20),
                "MOONCAKE_OFFLOAD_BUCKET_SIZE_LIMIT_BYTES": str(mooncake.offload_bucket_bytes),
                "MOONCAKE_OFFLOAD_BUCKET_KEYS_LIMIT": str(mooncake.offload_bucket_keys),
            }
        return environment

    # --- HTTP -------------------------------------------------------------------------------------

    def _wait_http(self, who: str, address: str, path: str, timeout_seconds: float) -> float:
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            self.check_alive()
            with contextlib.suppress(OSError, http.client.HTTPException):
                _get(address, path)
                return time.monotonic()
            time.sleep(ADMIN_POLL_SECONDS)
        raise DrillError(f"{who} did not answer within {timeout_seconds:g} s\n{self._logs()}")

    def _session(self) -> tuple[str, bool]:
        status = self._status()
        store: dict[str, Any] = status.get("store") or {}
        return str(store.get("segment_id", "")), bool(status.get("ready"))

    def _reason(self) -> str:
        return str(self._status().get("reason", "the daemon does not answer"))

    def _status(self) -> dict[str, Any]:
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
            code, body = self.http_get("/status")
            document = json.loads(body) if code == 200 else {}
            return document if isinstance(document, dict) else {}
        return {}

    def _admin(self, path: str) -> str:
        try:
            return _get(self.admin_address, path)
        except (OSError, http.client.HTTPException) as error:
            raise DrillError(f"the master does not answer {path}: {error}") from error


def _get(address: str, path: str) -> str:
    """The body of an answer, whatever its status. Raises OSError or HTTPException."""
    connection = http.client.HTTPConnection(address, timeout=HTTP_SECONDS)
    try:
        connection.request("GET", path)
        return connection.getresponse().read().decode(errors="replace")
    finally:
        connection.close()


def file_bytes(directory: Path) -> int:
    """Bytes that the files below a directory take on their disk."""
    return sum(
        os.stat(Path(place) / name).st_blocks * 512
        for place, _, names in os.walk(directory)
        for name in names
    )
