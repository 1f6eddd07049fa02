"""Real Mooncake and, beside it, snapd: master, store services, clients and a daemon.

Everything runs on ports of its own and is killed by process id. Interpreters that have the wheel
are named by `SNAPD_TEST_MOONCAKE_PYTHON`. Leaving the site kills what still runs and removes its
files from shared memory.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

from client_wheel import PYTHON_VARIABLE, SUPPORT, free_ports
from daemon_site import DaemonSite
from mooncake_driver import MISSING, WRONG, content

SHARED_MEMORY = Path("/dev/shm")
ROOT = SUPPORT.parents[1]
START_SECONDS_MAX = 30.0
LOG_TAIL_LINES = 40


class MooncakeClient:
    """A client of real Mooncake in a process of its own; see `mooncake_driver` for the commands."""

    def __init__(self, python: str, master: str, metadata: str, log: Path) -> None:
        self._log = log
        with log.open("ab") as stream:
            self.process = subprocess.Popen(
                [python, str(SUPPORT / "mooncake_driver.py"), master, metadata],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                env=plain_environment() | {"GLOG_minloglevel": "1"},
            )
        assert self._line() == {"setup": 0}, self._tail()

    def put(
        self, keys: Sequence[str], version: int = 1, size: int = 65536, **options: Any
    ) -> list[int]:
        """Put each key; `options` are attributes of `ReplicateConfig`."""
        return self._do("batch_put", keys=list(keys), version=version, size=size, **options)

    def put_all(self, keys: Sequence[str], version: int = 1, size: int = 65536) -> None:
        """Put each key; all must be stored."""
        codes = self.put(keys, version, size)
        assert set(codes) <= {0}, codes

    def upsert(
        self, keys: Sequence[str], version: int, size: int = 65536, **options: Any
    ) -> list[int]:
        """Replace each key's bytes."""
        return self._do("batch_upsert", keys=list(keys), version=version, size=size, **options)

    def read(self, keys: Sequence[str], versions: Sequence[int] = (1,)) -> dict[str, int]:
        """The version that each key holds, MISSING or WRONG. Takes leases."""
        found = self._do("read", keys=list(keys), versions=list(versions))
        return dict(zip(keys, found, strict=True))

    def wrong(self, keys: Sequence[str], versions: Sequence[int] = (1,)) -> list[str]:
        """Keys that hold bytes which are none of these versions."""
        return [key for key, state in self.read(keys, versions).items() if state == WRONG]

    def exist(self, keys: Sequence[str]) -> dict[str, bool]:
        """Whether the master says that each key is there."""
        found = self._do("exist", keys=list(keys))
        return {key: code == 1 for key, code in zip(keys, found, strict=True)}

    def remove(self, keys: Sequence[str], *, force: bool = False) -> list[int]:
        return self._do("remove", keys=list(keys), force=force)

    def remove_by_regex(self, pattern: str, *, force: bool = False) -> int:
        return self._do("call", method="remove_by_regex", arguments=[pattern, force])

    def remove_all(self, *, force: bool = False) -> int:
        return self._do("call", method="remove_all", arguments=[force])

    def call(self, method: str, *arguments: Any) -> Any:
        """Any other method of the wheel's class."""
        return self._do("call", method=method, arguments=list(arguments))

    def do(self, command: str, **arguments: Any) -> Any:
        """Any command of the driver."""
        return self._do(command, **arguments)

    def kill(self) -> None:
        """SIGKILL; idempotent."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()

    def close(self) -> None:
        """End it as a client ends: what it holds is given back."""
        if self.process.poll() is None and self.process.stdin is not None:
            self.process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(10)
        self.kill()

    def _do(self, command: str, **arguments: Any) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": command, **arguments}).encode() + b"\n")
        self.process.stdin.flush()
        answer = self._line()
        assert "error" not in answer, f"{command}: {answer['error']}\n{self._tail()}"
        return answer["answer"]

    def _line(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the client ended with {self.process.poll()}\n{self._tail()}"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _tail(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:])


class MooncakeSite:
    """One master and everything around it. `settings` are snapd's, for the daemon.

    `client_ttl` in seconds and `lease_ttl_ms` in milliseconds are shorter than Mooncake's own 10 s,
    so that tests need not wait; but a lease that is too short for a busy machine makes reads come
    back empty. `eviction` is (high watermark, ratio).
    """

    def __init__(
        self,
        directory: Path,
        *,
        python: str = "",
        client_ttl: int = 2,
        lease_ttl_ms: int = 2000,
        eviction: tuple[float, float] | None = None,
        segment_bytes: int = 64 << 20,
        stores: int = 1,
        master_flags: Sequence[str] = (),
        **settings: object,
    ) -> None:
        self.directory = directory
        self.python = python or os.environ[PYTHON_VARIABLE]
        self.segment_bytes = segment_bytes
        rpc, metadata, admin, *services = free_ports(3 + stores)
        self.master = f"127.0.0.1:{rpc}"
        self.metadata = f"http://127.0.0.1:{metadata}/metadata"
        self.admin = f"127.0.0.1:{admin}"
        self._service_ports = services
        self._master_flags = [
            f"--rpc_port={rpc}",
            "--enable_http_metadata_server=true",
            f"--http_metadata_server_port={metadata}",
            f"--metrics_port={admin}",
            f"--client_ttl={client_ttl}",
            f"--default_kv_lease_ttl={lease_ttl_ms}",
            *master_flags,
        ]
        if eviction is not None:
            watermark, ratio = eviction
            self._master_flags += [
                f"--eviction_high_watermark_ratio={watermark}",
                f"--eviction_ratio={ratio}",
            ]
        self.stem = f"snapd-test-mooncake-{os.getpid()}-{time.monotonic_ns()}"
        """What the site's files in shared memory begin with."""
        self._settings: dict[str, object] = {
            "store": "mooncake",
            "mooncake_master": self.master,
            "mooncake_admin": self.admin,
            "mooncake_stores": ",".join(self.store_url(i) for i in range(stores)),
            "mooncake_metadata": self.metadata,
            "mooncake_protocol": "tcp",
            "mooncake_local_hostname": "127.0.0.1",
            "mooncake_python": self.python,
            "global_segment_size": segment_bytes,
            "segment_path": f"{SHARED_MEMORY}/{self.stem}.segment",
            "poll_sec": 0.3,
            "mooncake_reuse_sec": 0.001 * lease_ttl_ms + 1.0,
            **settings,
        }
        self.snapd = DaemonSite(directory / "snapd", **self._settings)
        """The daemon's side: `status`, `metric`, `until`, `logged`, `ask`, `repository`."""
        self.master_process: subprocess.Popen[bytes] | None = None
        self.stores: dict[int, subprocess.Popen[bytes]] = {}
        self._clients: list[MooncakeClient] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._clients:
            client.kill()
        self.kill_daemon()
        for index in list(self.stores):
            self.kill_store(index)
        self.kill_master()
        self.snapd.__exit__()
        self.wipe_shared_memory()

    # --- master and stores ------------------------------------------------------------------------

    def start(self) -> None:
        """Master and all store services."""
        self.start_master()
        for index in range(len(self._service_ports)):
            self.start_store(index)

    def start_master(self) -> None:
        # The program itself: in older wheels the command of that name is a parent that dies alone.
        environment = Path(self.python).parents[1]
        (binary,) = environment.glob("lib/python*/site-packages/mooncake/mooncake_master")
        self.master_process = self._spawn("master", [str(binary), *self._master_flags])
        self.until("the master answers", lambda: self.get_admin("/health") is not None)

    def kill_master(self) -> None:
        self.master_process = _end(self.master_process, signal.SIGKILL)

    def stop_master(self) -> None:
        self.master_process = _end(self.master_process, signal.SIGTERM)

    def store_url(self, index: int = 0) -> str:
        return f"http://127.0.0.1:{self._service_ports[index]}"

    def start_store(
        self,
        index: int = 0,
        *,
        launcher: bool = False,
        wait: bool = True,
        prefix: Sequence[str] = (),
    ) -> None:
        """A store service without memory of its own; `launcher` runs `snapd mooncake-store`, and
        `prefix` is a command that runs it (another user, another namespace)."""
        program = ["-m", "mooncake.mooncake_store_service"]
        if launcher:
            program = ["-c", "from snapd.cli.snapd import main; main()", "mooncake-store"]
        command = [self.python, *program, "--port", str(self._service_ports[index])]
        environment = {
            "MOONCAKE_MASTER": self.master,
            "MOONCAKE_TE_META_DATA_SERVER": self.metadata,
            "MOONCAKE_GLOBAL_SEGMENT_SIZE": "0",
            "MOONCAKE_LOCAL_BUFFER_SIZE": str(16 << 20),
            "MOONCAKE_PROTOCOL": "tcp",
            "MOONCAKE_LOCAL_HOSTNAME": "127.0.0.1",
            "SNAPD_RUNTIME_DIR": str(self.snapd.runtime),
            "PYTHONPATH": str(ROOT),
        }
        self.stores[index] = self._spawn(f"store-{index}", [*prefix, *command], environment)
        if wait:
            self.until(f"store {index} answers", lambda: self.store_answers(index))

    def store_answers(self, index: int = 0) -> bool:
        try:
            urllib.request.urlopen(f"{self.store_url(index)}/api/exist/x", timeout=2).close()
        except urllib.error.HTTPError as error:
            error.close()
            return True
        except OSError:
            return False
        return True

    def kill_store(self, index: int = 0) -> None:
        _end(self.stores.pop(index, None), signal.SIGKILL)

    def stop_store(self, index: int = 0) -> None:
        """SIGTERM: the store takes leave of the master."""
        _end(self.stores.pop(index, None), signal.SIGTERM)

    def get_admin(self, target: str) -> bytes | None:
        """Body of a GET of the master's admin HTTP; None when it does not answer."""
        try:
            with urllib.request.urlopen(f"http://{self.admin}{target}", timeout=5) as answer:
                body: bytes = answer.read()
                return body
        except OSError:
            return None

    def segments(self) -> list[dict[str, Any]]:
        """What the master lists as segments."""
        body = self.get_admin("/get_segments_detail")
        assert body is not None
        detail: list[dict[str, Any]] = json.loads(body)["segments"]
        return detail

    def keys(self) -> set[str]:
        """What the master lists as keys."""
        body = self.get_admin("/get_all_keys")
        assert body is not None
        return {key for key in body.decode().split("\n") if key}

    # --- snapd and clients ------------------------------------------------------------------------

    def environment(self) -> dict[str, str]:
        """Of `snapd run` with this site's settings."""
        return self.snapd.environment()

    def settings(self, **changed: object) -> dict[str, object]:
        """Snapd's settings here, for another daemon on the same master."""
        return self._settings | changed

    def start_daemon(self, *flags: str, wait: bool = True) -> None:
        self.snapd.start_daemon(*flags, wait=wait)

    def kill_daemon(self) -> None:
        self.snapd.kill_daemon()

    def stop_daemon(self) -> int:
        return self.snapd.stop_daemon()

    def status(self) -> dict[str, Any]:
        return self.snapd.status()

    def client(self) -> MooncakeClient:
        """A client with a process of its own."""
        log = self.directory / f"client-{len(self._clients)}.log"
        client = MooncakeClient(self.python, self.master, self.metadata, log)
        self._clients.append(client)
        return client

    def shared_files(self) -> list[Path]:
        """The site's files in shared memory."""
        return sorted(SHARED_MEMORY.glob(f"{self.stem}*"))

    def wipe_shared_memory(self) -> None:
        """What the loss of a node's memory does."""
        for path in self.shared_files():
            path.unlink(missing_ok=True)

    def until(
        self, what: str, done: Callable[[], bool], seconds: float = START_SECONDS_MAX
    ) -> None:
        """Wait; fail with the logs when it takes too long."""
        deadline = time.monotonic() + seconds
        while not done():
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {seconds} s: {what}\n{self._logs()}")
            time.sleep(0.02)

    def _logs(self) -> str:
        tails = []
        for log in [*sorted(self.directory.glob("*.log")), self.snapd.log]:
            if log.exists():
                lines = log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
                tails.append("\n".join([f"--- {log.name}", *lines]))
        return "\n".join(tails)

    def _spawn(
        self, name: str, command: list[str], environment: dict[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        with (self.directory / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                command,
                env=plain_environment() | (environment or {}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )


def plain_environment() -> dict[str, str]:
    """This process's environment without any setting of snapd's or Mooncake's."""
    prefixes = ("SNAPD_", "MOONCAKE_", "MC_")
    return {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}


def _end(process: subprocess.Popen[bytes] | None, number: signal.Signals) -> None:
    if process is None:
        return
    process.send_signal(number)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


__all__ = ["MISSING", "WRONG", "MooncakeClient", "MooncakeSite", "content"]
