"""SGLang's storage backend in a process of its own, beside a `MooncakeSite`."""

from __future__ import annotations

import os
import subprocess
from collections import Counter
from collections.abc import Sequence

from client_wheel import SUPPORT
from mooncake_site import MooncakeClient, MooncakeSite, plain_environment

SGLANG_PYTHON_VARIABLE = "SNAPD_TEST_SGLANG_PYTHON"


class SglangBackend(MooncakeClient):
    """A process that runs SGLang's backend; see `sglang_driver` for the commands.

    `ranks` of one tensor-parallel group, all in the one process. Leaving it kills it.
    """

    def __init__(self, site: MooncakeSite, *, mla: bool = False, ranks: int = 1) -> None:
        self._log = site.directory / "sglang.log"
        python = os.environ[SGLANG_PYTHON_VARIABLE]
        flags = ["--ranks", str(ranks), *(["--mla"] if mla else [])]
        with self._log.open("ab") as stream:
            self.process = subprocess.Popen(
                [python, str(SUPPORT / "sglang_driver.py"), *flags, site.master, site.metadata],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                env=plain_environment() | {"GLOG_minloglevel": "1", "PYTHONPATH": ""},
            )
        assert self._line() == {"setup": 0}, self._tail()

    def __enter__(self) -> SglangBackend:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def fill(self, first: int, count: int, version: int = 1) -> None:
        """Put pages `first` and on of the conversation; all must be stored on every rank."""
        done = self.do("fill", first=first, count=count, version=version)
        assert done == [True] * count, Counter(done)

    def pages(self, first: int, count: int, versions: Sequence[int] = (1,)) -> Counter[str]:
        """How many of these pages are "right", "wrong" and "missing"."""
        return Counter(self.do("read", first=first, count=count, versions=list(versions)))

    def exists(self, count: int) -> int:
        """How many pages from the start the backend says are there."""
        return int(self.do("exists", count=count))


__all__ = ["SGLANG_PYTHON_VARIABLE", "SglangBackend"]
