"""A place of its own for a real store and a real daemon: started, killed, wiped, asked."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Self

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from snapd.client import MooncakeDistributedStore

START_SECONDS_MAX = 30.0


class DaemonSite:
    """`python -m snapd.store` and `python -m snapd.daemon` on one runtime directory, segment and
    repository. Leaving it kills both and removes the segment."""

    def __init__(self, directory: Path, **settings: object) -> None:
        self.directory = directory
        self.runtime = directory / "run"
        self.repository = directory / "repository"
        self.segment_path = f"/dev/shm/snapd-test-daemon-{os.getpid()}-{time.monotonic_ns()}"
        self.log = directory / "processes.log"
        self._settings: dict[str, object] = {
            "runtime_dir": self.runtime,
            "persistent_path": self.repository,
            "segment_path": self.segment_path,
            "global_segment_size": "32mb",
            "http": "",
            "flush_sec": 0.2,
            "snapshot_interval_sec": 1,
            "grace_sec": 10,
            "lease_sec": 0.05,
            **settings,
        }
        self.preload: dict[str, str] = {}
        """Variables for every process of the site that is started from now on."""
        self.store: subprocess.Popen[bytes] | None = None
        self.daemon: subprocess.Popen[bytes] | None = None
        self._clients: list[MooncakeDistributedStore] = []
        self.runtime.mkdir(parents=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._clients:
            client.close()
        self.kill_daemon()
        self.kill_store()
        self.kill_supervised()
        self.wipe_segment()

    # --- processes --------------------------------------------------------------------------------

    def configure(self, **settings: object) -> None:
        """Change settings for what is started from now on."""
        self._settings |= settings

    def setting(self, name: str) -> object:
        """What a process that starts now is given; None is the default."""
        return self._settings.get(name)

    def start_store(self, *, wait: bool = True) -> None:
        self.store = self._spawn("snapd.store")
        if wait:
            self.until("the store answers", lambda: self._answers("store.sock"))

    def start_daemon(self, *flags: str, wait: bool = True) -> None:
        self.daemon = self._spawn("snapd.daemon", *flags)
        if wait:
            self.wait_ready()

    def start(self) -> None:
        self.start_store()
        self.start_daemon()

    def kill_store(self) -> None:
        self.store = _kill(self.store)

    def kill_daemon(self) -> None:
        self.daemon = _kill(self.daemon)

    def kill_supervised(self) -> None:
        """SIGKILL the store that a daemon with `--with-store` started."""
        process = self.store_process()
        if process is not None:
            os.kill(process, signal.SIGKILL)
            self.until("the store is gone", lambda: self.store_process() is None)

    def wipe_segment(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.segment_path)

    def stop_daemon(self) -> int:
        """SIGTERM, and the exit code."""
        assert self.daemon is not None
        self.daemon.send_signal(signal.SIGTERM)
        code = self.daemon.wait(30)
        self.daemon = None
        return code

    def stop_store(self) -> int:
        assert self.store is not None
        self.store.send_signal(signal.SIGTERM)
        code = self.store.wait(30)
        self.store = None
        return code

    def store_process(self) -> int | None:
        """Who listens at the store's socket."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1.0)
            if probe.connect_ex(str(self.runtime / "store.sock")) != 0:
                return None
            raw = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            return int.from_bytes(raw[:4], sys.byteorder)

    def until(
        self, what: str, done: Callable[[], bool], seconds: float = START_SECONDS_MAX
    ) -> None:
        """Wait; fail with the logs when it takes too long or a process has ended."""
        deadline = time.monotonic() + seconds
        while not done():
            ended = [p for p in (self.store, self.daemon) if p is not None and p.poll() is not None]
            if time.monotonic() > deadline or ended:
                tail = "\n".join(self.log.read_text().splitlines()[-40:])
                raise AssertionError(f"not within {seconds} s: {what}\n{tail}")
            time.sleep(0.01)

    def logged(self, text: str) -> int:
        """How many lines of the log hold `text`."""
        return sum(text in line for line in self.log.read_text().splitlines())

    # --- asking -----------------------------------------------------------------------------------

    def ask(self, target: str, method: str = "GET", timeout: float = 60.0) -> tuple[int, str]:
        """Status and body from the control socket; (0, reason) when nobody answers."""
        connection = http.client.HTTPConnection("snapd", timeout=timeout)
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.sock.settimeout(timeout)
        try:
            connection.sock.connect(str(self.runtime / "snapd.sock"))
            connection.request(method, target)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except OSError as error:
            return 0, str(error)
        finally:
            connection.close()

    def wait_ready(self, seconds: float = START_SECONDS_MAX) -> None:
        self.until("ready", lambda: self.ask("/readyz")[0] == 200, seconds)

    def status(self) -> dict[str, Any]:
        code, body = self.ask("/status")
        assert code == 200, body
        answer: dict[str, Any] = json.loads(body)
        return answer

    def snapshot(self) -> dict[str, Any]:
        code, body = self.ask("/snapshot", "POST")
        assert code == 200, body
        answer: dict[str, Any] = json.loads(body)
        return answer

    def metric(self, name: str, **labels: str) -> float:
        code, text = self.ask("/metrics")
        assert code == 200, text
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == f"snapd_{name}" and labels.items() <= sample.labels.items()
        )

    def flushed(self) -> None:
        """Wait until everything put so far is in sealed packs."""
        now = time.monotonic()
        self.until(
            "flushed",
            lambda: self.status()["flush"]["lag_seconds"] < time.monotonic() - now - 0.001,
        )

    # --- clients ----------------------------------------------------------------------------------

    def client(self) -> MooncakeDistributedStore:
        client = MooncakeDistributedStore()
        code = client.setup("test", "P2PHANDSHAKE", 0, 1 << 24, "tcp", "", f"unix:{self.runtime}")
        assert code == 0, code
        self._clients.append(client)
        return client

    def _answers(self, name: str) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            return probe.connect_ex(str(self.runtime / name)) == 0

    def environment(self) -> dict[str, str]:
        """This process's, without any setting of snapd's, and the site's settings."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("SNAPD_", "MOONCAKE_"))
        }
        ours = {f"SNAPD_{name.upper()}": str(value) for name, value in self._settings.items()}
        return kept | ours | self.preload

    def _spawn(self, module: str, *flags: str) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as stream:
            return subprocess.Popen(
                [sys.executable, "-m", module, *flags],
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
            )


def block(key: str, version: int = 1, size: int = 5000) -> bytes:
    """The bytes of one version of a key."""
    seed = np.frombuffer(f"{key}/{version}".encode().ljust(32, b"."), np.uint8)
    return np.random.default_rng(seed.tolist()).bytes(size)


def put_all(client: MooncakeDistributedStore, keys: Iterable[str], version: int = 1) -> None:
    for key in keys:
        assert client.put(key, block(key, version)) == 0, key


def wrong_keys(
    client: MooncakeDistributedStore, keys: Iterable[str], version: int = 1
) -> list[str]:
    """Keys whose bytes do not come back."""
    return [key for key in keys if client.get(key) != block(key, version)]


def _kill(process: subprocess.Popen[bytes] | None) -> None:
    if process is not None:
        process.kill()
        process.wait()


__all__ = ["DaemonSite", "block", "put_all", "wrong_keys"]
