"""A real store process for tests: started, killed, stopped and started again on one segment."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

from snapd.client import MooncakeDistributedStore
from snapd.errors import SnapdError
from snapd.wire.connection import Connection
from snapd.wire.messages import PROTOCOL_VERSION, Hello, HelloReply, Stats, StatsReply

START_SECONDS_MAX = 20.0


class StoreProcess:
    """`python -m snapd.store` with its sockets in a directory and its segment in /dev/shm."""

    def __init__(self, directory: Path, **settings: object) -> None:
        self.directory = directory
        self.segment_path = f"/dev/shm/snapd-test-client-{os.getpid()}-{time.monotonic_ns()}"
        self.socket_path = str(directory / "store.sock")
        self._settings = {"global_segment_size": "64mb", "lease_sec": 10, **settings}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.segment_path)

    @property
    def address(self) -> str:
        """`master_server_addr` of a client of this store."""
        return f"unix:{self.directory}"

    @property
    def pid(self) -> int:
        """Process number."""
        if self._process is None:
            raise AssertionError("the store is not running")
        return self._process.pid

    def start(self) -> None:
        """Start and wait until it answers."""
        environment = {name: value for name, value in os.environ.items() if "SNAPD" not in name}
        values = {
            "runtime_dir": self.directory,
            "segment_path": self.segment_path,
            **self._settings,
        }
        environment |= {f"SNAPD_{name.upper()}": str(value) for name, value in values.items()}
        with (self.directory / "store.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "snapd.store"], env=environment, stdout=log, stderr=log
            )
        deadline = time.monotonic() + START_SECONDS_MAX
        while True:
            try:
                self.stats()
            except SnapdError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise AssertionError((self.directory / "store.log").read_text()) from None
                time.sleep(0.01)
            else:
                return

    def stats(self) -> StatsReply:
        """The store's counters, over a connection of its own."""
        connection = Connection(self.socket_path)
        try:
            connection.call(Hello(PROTOCOL_VERSION, "operator", "test"), HelloReply)
            return connection.call(Stats(), StatsReply)
        finally:
            connection.close()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL, and wait; without effect when it is not running."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        """SIGKILL, then start on the same segment."""
        self.kill()
        self.start()

    def ensure(self) -> None:
        """Start it if it does not run."""
        if self._process is None or self._process.poll() is not None:
            self.kill()
            self.start()

    def client(self) -> MooncakeDistributedStore:
        """A client of this store, set up."""
        client = MooncakeDistributedStore()
        code = client.setup("test", "P2PHANDSHAKE", 0, 1 << 24, "tcp", "", self.address)
        if code != 0:
            raise AssertionError(f"setup gave {code}")
        return client
