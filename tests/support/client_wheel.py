"""Real Mooncake for tests: master and a process that holds the memory, on ports of their own.

`SNAPD_TEST_MOONCAKE_PYTHON` names an interpreter that has the wheel.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

PYTHON_VARIABLE = "SNAPD_TEST_MOONCAKE_PYTHON"
SUPPORT = Path(__file__).parent
START_SECONDS_MAX = 20.0
SEGMENT_BYTES = 1 << 28

_OWNER = """
import sys, mooncake.store
store = mooncake.store.MooncakeDistributedStore()
master, metadata, size = sys.argv[1:]
code = store.setup("127.0.0.1", metadata, int(size), 1 << 24, "tcp", "", master)
print(code, flush=True)
sys.stdin.read()
store.close()
"""
"""Contributes memory until its input ends."""


def free_ports(count: int) -> list[int]:
    """Ports that are free now; they are all held until all are known."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in sockets:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in sockets]


class WheelStore:
    """A master, its metadata server and one segment."""

    def __init__(
        self, directory: Path, python: str = "", segment_bytes: int = SEGMENT_BYTES
    ) -> None:
        self.python = python or os.environ[PYTHON_VARIABLE]
        self.directory = directory
        rpc, http, metrics = free_ports(3)
        self.master = f"127.0.0.1:{rpc}"
        self.metadata = f"http://127.0.0.1:{http}/metadata"
        self._ports = {"rpc_port": rpc, "http_metadata_server_port": http, "metrics_port": metrics}
        self._segment_bytes = segment_bytes
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        options = [f"--{name}={port}" for name, port in self._ports.items()]
        binary = str(Path(self.python).with_name("mooncake_master"))
        self._spawn("master", [binary, "--enable_http_metadata_server=true", *options])
        self._wait_for(self._ports["rpc_port"])
        self._wait_for(self._ports["http_metadata_server_port"])
        owner = self._spawn(
            "owner",
            [
                self.python,
                "-c",
                _OWNER,
                self.master,
                self.metadata,
                str(self._segment_bytes),
            ],
        )
        if owner.stdout is None or owner.stdout.readline() != b"0\n":
            raise AssertionError((self.directory / "owner.log").read_text())
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._processes):
            if process.stdin is not None:
                process.stdin.close()
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()

    @property
    def master_pid(self) -> int:
        """Process number of the master."""
        return self._processes[0].pid

    def run(self, script: str, *arguments: str) -> Any:
        """Run a script of `tests/support` in the wheel's interpreter; its output is JSON."""
        command = [self.python, str(SUPPORT / script), *arguments]
        done = subprocess.run(command, check=False, capture_output=True, timeout=120)
        if done.returncode != 0:
            raise AssertionError(done.stderr.decode(errors="replace")[-4000:])
        return json.loads(done.stdout)

    def _spawn(self, name: str, command: list[str]) -> subprocess.Popen[bytes]:
        with (self.directory / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
            )
        self._processes.append(process)
        return process

    def _wait_for(self, port: int) -> None:
        deadline = time.monotonic() + START_SECONDS_MAX
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
            except OSError:
                if time.monotonic() > deadline:
                    raise AssertionError((self.directory / "master.log").read_text()) from None
                time.sleep(0.05)
            else:
                return
