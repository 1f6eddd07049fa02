"""Ranks of SGLang on `SnapdHiCache`, each a process; see `sglang_ranks_driver` for the commands."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from client_wheel import SUPPORT
from mooncake_site import LOG_TAIL_LINES, plain_environment

SGLANG_PYTHON_VARIABLE = "SNAPD_TEST_SGLANG_PYTHON"
SGLANG_OLD_PYTHON_VARIABLE = "SNAPD_TEST_SGLANG_OLD_PYTHON"
START_SECONDS_MAX = 90.0
CALL_SECONDS_MAX = 60.0


class RankError(AssertionError):
    """What a rank's command raised, in words."""


class Rank:
    """One rank's process."""

    def __init__(self, address: str, log: Path, options: dict[str, Any]) -> None:
        self._log = log
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(CALL_SECONDS_MAX)
        self._socket.connect(address)
        self._lines = self._socket.makefile("rb")
        self._say({"log": str(log), **options})
        self.pid = 0

    def begun(self) -> Self:
        """Wait until the backend is there. Raises RankError with what it was refused for."""
        self.pid = int(self.answer())
        return self

    def ask(self, do: str, /, **arguments: Any) -> None:
        """Begin a command; `answer` ends it."""
        self._say({"do": do, **arguments})

    def answer(self) -> Any:
        line = self._lines.readline()
        assert line, f"the rank ended\n{self.tail()}"
        answer = json.loads(line)
        if "error" in answer:
            raise RankError(f"{answer['error']}\n{self.tail()}")
        return answer["answer"]

    def do(self, command: str, /, **arguments: Any) -> Any:
        self.ask(command, **arguments)
        return self.answer()

    def kill(self) -> None:
        """SIGKILL; idempotent."""
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, 9)
            deadline = time.monotonic() + 10
            while Path(f"/proc/{self.pid}").exists() and time.monotonic() < deadline:
                time.sleep(0.005)
            self.pid = 0
        self._lines.close()
        self._socket.close()

    def log(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def tail(self) -> str:
        return "\n".join(self.log().splitlines()[-LOG_TAIL_LINES:])

    def _say(self, request: dict[str, Any]) -> None:
        self._socket.sendall(json.dumps(request).encode() + b"\n")


class SglangRanks:
    """A process that has SGLang imported, and the ranks that were forked off it. `kill` ends the
    ranks, leaving it ends everything."""

    def __init__(self, variable: str = SGLANG_PYTHON_VARIABLE) -> None:
        self.python = os.environ[variable]
        self._directory = tempfile.TemporaryDirectory(prefix="snapd-sglang-")
        self._address = f"{self._directory.name}/ranks.sock"
        self._log = Path(self._directory.name) / "ranks.log"
        self._started = 0
        self.ranks: list[Rank] = []
        self.directory = Path(self._directory.name)
        old = ["--old"] if variable == SGLANG_OLD_PYTHON_VARIABLE else []
        with self._log.open("ab") as stream:
            self.process = subprocess.Popen(
                [
                    os.environ[variable],
                    str(SUPPORT / "sglang_ranks_driver.py"),
                    self._address,
                    *old,
                ],
                stdin=subprocess.PIPE,
                stdout=stream,
                stderr=stream,
                env=plain_environment() | {"GLOG_minloglevel": "1", "OMP_NUM_THREADS": "1"},
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None
        self.process.stdin.close()
        self._directory.cleanup()

    def start(self, *options: dict[str, Any]) -> list[Rank]:
        """Ranks with these options, at the same time; all must begin."""
        self._wait()
        ranks = []
        for each in options:
            self._started += 1
            rank = Rank(self._address, self.directory / f"rank-{self._started}.log", each)
            self.ranks.append(rank)
            ranks.append(rank)
        return [rank.begun() for rank in ranks]

    def kill(self) -> None:
        """SIGKILL every rank."""
        for rank in self.ranks:
            rank.kill()
        self.ranks.clear()

    def _wait(self) -> None:
        deadline = time.monotonic() + START_SECONDS_MAX
        while not os.path.exists(self._address):
            said = self._log.read_text(errors="replace")[-4000:]
            assert self.process.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.05)


def together(ranks: Sequence[Rank], command: str, /, **arguments: Any) -> list[Any]:
    """A command on all ranks at once: their answers."""
    for rank in ranks:
        rank.ask(command, **arguments)
    return [rank.answer() for rank in ranks]


def fill_all(ranks: Sequence[Rank], first: int, count: int, **arguments: Any) -> None:
    """Put pages on every rank; all must be stored."""
    for done in together(ranks, "fill", first=first, count=count, **arguments):
        assert done == [True] * count, Counter(done)


def states_of(ranks: Sequence[Rank], first: int, count: int, *versions: int) -> Counter[str]:
    """How many pages of all ranks are "right", "wrong" and "missing"."""
    found = together(ranks, "read", first=first, count=count, versions=versions or (1,))
    return Counter(state for states in found for state in states)


__all__ = [
    "SGLANG_OLD_PYTHON_VARIABLE",
    "SGLANG_PYTHON_VARIABLE",
    "Rank",
    "RankError",
    "SglangRanks",
    "fill_all",
    "states_of",
    "together",
]
