"""A daemon with its store, as an operator starts them, for tests of the commands."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent
DEADLINE_SECONDS = 30.0


@dataclass
class Result:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """Its one JSON document."""
        return json.loads(self.out)


@dataclass
class Site:
    """Directories, settings and processes of one test."""

    root: Path
    segment: Path
    daemons: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def repository(self) -> Path:
        return self.root / "repository"

    @property
    def runtime_dir(self) -> Path:
        return self.root / "run"

    @property
    def environment(self) -> dict[str, str]:
        own = {
            "MOONCAKE_STORE_PERSISTENT_PATH": str(self.repository),
            "MOONCAKE_GLOBAL_SEGMENT_SIZE": "64mb",
            "SNAPD_RUNTIME_DIR": str(self.runtime_dir),
            "SNAPD_SEGMENT_PATH": str(self.segment),
            "SNAPD_HTTP": "",
            "SNAPD_FLUSH_SEC": "0.1",
        }
        others = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("SNAPD_", "MOONCAKE_"))
        }
        return others | own

    def command(self, *words: str, **environment: str) -> Result:
        """Run a command to its end."""
        done = subprocess.run(
            [str(BIN / words[0]), *words[1:]],
            env=self.environment | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=DEADLINE_SECONDS,
            check=False,
        )
        return Result(done.returncode, done.stdout.decode(), done.stderr.decode())

    def snapctl(self, *words: str) -> Result:
        return self.command("snapctl", *words)

    def start_daemon(self) -> None:
        """`snapd run --with-store`, until it is ready."""
        log = (self.root / "daemon.log").open("ab")
        with log:
            daemon = subprocess.Popen(
                [str(BIN / "snapd"), "run", "--with-store"],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.daemons.append(daemon)
        deadline = time.monotonic() + DEADLINE_SECONDS
        while time.monotonic() < deadline and daemon.poll() is None:
            answer = self.snapctl("status", "--json")
            if answer.code == 0 and answer.document["ready"]:
                return
            time.sleep(0.1)
        raise AssertionError(f"the daemon is not ready:\n{self.log()}")

    def stop_daemon(self) -> int:
        """SIGTERM, and the exit code."""
        daemon = self.daemons.pop()
        daemon.send_signal(signal.SIGTERM)
        try:
            return daemon.wait(DEADLINE_SECONDS)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
            raise AssertionError(f"the daemon did not end on SIGTERM:\n{self.log()}") from None

    def log(self) -> str:
        """What the daemon and the store logged."""
        return (self.root / "daemon.log").read_text()

    def packs(self) -> list[Path]:
        return sorted((self.repository / "packs").glob("*.pack"))

    def manifests(self) -> list[Path]:
        return sorted((self.repository / "manifests").glob("*.manifest"))


@contextmanager
def new_site() -> Iterator[Site]:
    """A site of its own; its processes, files and shared memory are gone afterwards."""
    # Not pytest's directory: its long names do not fit into a socket's address.
    root = Path(tempfile.mkdtemp(prefix="snapd-cli-"))
    site = Site(root, Path(f"/dev/shm/snapd-cli-{uuid.uuid4().hex}.segment"))
    try:
        yield site
    finally:
        while site.daemons:
            site.stop_daemon()
        site.segment.unlink(missing_ok=True)
        shutil.rmtree(root)
