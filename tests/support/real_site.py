"""A site under load: real store, daemon and clients over one ledger, to be hurt and audited."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from daemon_site import DaemonSite
from real_load import RealLoadSpec, SharedLoad, compared_fetch

from snapd.drill.content import Bools
from snapd.drill.ledger import Ledger
from snapd.drill.load import BlockClient

LOAD_SCRIPT = Path(__file__).with_name("real_load.py")
AUDIT_ROUNDS = 8
"""What did not come is asked for again: a cold block may be slow, a lost one never comes."""


@dataclass(frozen=True)
class Promise:
    """Blocks that must still be there, whatever happens: those that nobody begins to change."""

    started: np.ndarray[Any, np.dtype[np.uint32]]
    held: Bools
    log_offset: int
    """Where the store's account of evictions ended when the promise was made."""
    generation: int = 0

    def kept(self, ledger: Ledger, evicted: Bools) -> Bools:
        """The blocks for which it still holds, bool [blocks]."""
        return self.held & (ledger._started[:] == self.started) & ~evicted


class RealSite(DaemonSite):
    """`DaemonSite` with a ledger, load processes, an auditor and an account of evictions."""

    def __init__(
        self,
        directory: Path,
        *,
        seed: int,
        blocks: int = 160,
        block_bytes: int = 12_000,
        load: dict[str, Any] | None = None,
        **settings: object,
    ) -> None:
        super().__init__(directory, **settings)
        self.event_log = directory / "events.log"
        shared = directory / "shared"
        shared.mkdir()
        self.spec = RealLoadSpec(
            directory=str(shared),
            socket=str(self.runtime / "store.sock"),
            seed=seed,
            blocks=blocks,
            block_bytes=block_bytes,
            **(load or {}),
        )
        self.shared = SharedLoad(shared, blocks, create=True)
        (shared / "spec.json").write_bytes(msgspec.json.encode(self.spec))
        self.load_processes: dict[int, subprocess.Popen[bytes]] = {}
        self.load_numbers = range(2)
        self._auditor: BlockClient | None = None
        self._numbers: dict[str, int] = {}

    def __exit__(self, *what: object) -> None:
        for process in (*self.load_processes.values(), self.daemon, self.store):
            if process is not None and process.poll() is None:
                process.send_signal(signal.SIGCONT)
        for number in list(self.load_processes):
            self.kill_client(number)
        super().__exit__(*what)

    # --- processes ------------------------------------------------------------------------------

    def start_store(self, *, wait: bool = True) -> None:
        self.store = self._spawn("snapd.store", str(self.event_log))
        if wait:
            self.until("the store answers", lambda: self._answers("store.sock"))

    def start_client(self, number: int) -> None:
        """A process of the load; `number` is its name as a writer."""
        with self.log.open("ab") as stream:
            self.load_processes[number] = subprocess.Popen(
                [sys.executable, str(LOAD_SCRIPT), self.spec.directory + "/spec.json", str(number)],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
            )

    def kill_client(self, number: int) -> None:
        process = self.load_processes.pop(number)
        process.kill()
        process.wait()
        self.shared.disown(number)

    def check_clients(self) -> None:
        """A client of the load ends only when it is killed."""
        ended = {n: p.returncode for n, p in self.load_processes.items() if p.poll() is not None}
        assert not ended, f"clients ended: {ended}\n{self.log_tail()}"

    def log_tail(self, lines: int = 40) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def power_cut(self) -> None:
        """All of them at the same moment, and the memory with them. The store stands still first,
        so that it acknowledges nothing that its daemon is not there to make durable."""
        assert self.store is not None
        self.store.send_signal(signal.SIGSTOP)
        self.kill_daemon()
        self.kill_store()
        self.wipe_segment()

    @contextlib.contextmanager
    def stopped(self, process: subprocess.Popen[bytes]) -> Iterator[None]:
        """SIGSTOP for the length of the block, then SIGCONT."""
        process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            process.send_signal(signal.SIGCONT)

    @contextlib.contextmanager
    def quiet(self, seconds: float = 20.0) -> Iterator[None]:
        """The load rests: nobody is in the middle of anything, but who was stopped or killed."""
        self.hush(seconds)
        try:
            yield
        finally:
            self.shared.paused = False

    def hush(self, seconds: float = 20.0) -> None:
        """Let the load come to rest, until `shared.paused` is unset."""
        self.shared.paused = True
        wait_for(lambda: self.shared.ledger.claims == 0, seconds, 0.005)

    # --- what must be there ---------------------------------------------------------------------

    def held_now(self) -> Promise:
        """What the store has acknowledged and has, and nobody is changing: it survives every death
        but that of the memory."""
        offset, ledger = self._log_bytes(), self.shared.ledger
        with self.shared.lock:
            started = np.array(ledger._started)
            held = ledger.live() & (ledger.acknowledged() == started)
            held &= np.array(ledger._claimed) == 0
            held &= np.array(self.shared.doubts) != started
        held &= self.auditor().exist(np.arange(self.spec.blocks))  # not those evicted before
        return Promise(started, held, offset)

    def committed(self) -> Promise:
        """What a snapshot holds that was asked for now: it survives everything."""
        before = self.held_now()
        answer = self.snapshot()
        return Promise(before.started, before.held, before.log_offset, answer["generation"])

    def evicted_since(self, offset: int) -> Bools:
        """Which blocks the store says it evicted after this place in its log."""
        gone = np.zeros(self.spec.blocks, np.bool_)
        if self.event_log.exists():
            with self.event_log.open("rb") as file:
                file.seek(offset)
                words = (line.split() for line in file.read().decode().splitlines())
                keys = [word[1] for word in words if len(word) == 2 and word[0] == "evict"]
            self.auditor()
            gone[[self._numbers[key] for key in keys if key in self._numbers]] = True
        return gone

    def audit(self, promise: Promise | None = None, *, excused: Bools | None = None) -> int:
        """Read every block there is, compare every byte; fail if anything is wrong, or if a block
        of the promise is gone. Returns how many were there."""
        client, ledger = self.auditor(), self.shared.ledger
        report = self.shared.directory / "wrong-auditor.log"
        present = np.zeros(self.spec.blocks, np.bool_)
        missing = np.arange(self.spec.blocks)
        for number in range(AUDIT_ROUNDS):
            for first in range(0, len(missing), 32):
                part = missing[first : first + 32]
                present[part] = compared_fetch(client, ledger, part, report)
            self.check()
            lost = self._lost(promise, present, excused)
            if not len(lost):
                break
            missing = lost
            time.sleep(0.1 * (number + 1))
        else:
            codes = client.fetch(lost[:5]).tolist()
            names = [
                f"{block} of version {ledger._started[block]} (a get says {code})"
                for block, code in zip(lost[:5].tolist(), codes, strict=True)
            ]
            raise AssertionError(
                f"{len(lost)} blocks are gone that must be there, such as {names}\n"
                f"{self.log_tail()}"
            )
        return int(present.sum())

    def check(self) -> None:
        """Fail if any process has read a byte that it should not have."""
        wrong = self.shared.wrong()
        assert not wrong, "wrong bytes:\n" + "\n".join(wrong[:5]) + "\n" + self.log_tail()
        assert "Traceback" not in self.log.read_text(errors="replace"), self.log_tail()

    def auditor(self) -> BlockClient:
        """A client in this process, kept."""
        if self._auditor is None:
            self._auditor = BlockClient(self.spec.drill, self.spec.blocks, 32)
            self._numbers = {key: at for at, key in enumerate(self._auditor.keys)}
        return self._auditor

    def drop_auditor(self) -> None:
        """Give up the auditor's connection and its mapping of the segment."""
        auditor, self._auditor = self._auditor, None
        if auditor is not None:
            auditor.close()

    # --- inside -----------------------------------------------------------------------------------

    def _lost(self, promise: Promise | None, present: Bools, excused: Bools | None) -> Any:
        if promise is None:
            return np.empty(0, np.int64)
        kept = promise.kept(self.shared.ledger, self.evicted_since(promise.log_offset))
        if excused is not None:
            kept &= ~excused
        return np.flatnonzero(kept & ~present)

    def _log_bytes(self) -> int:
        return self.event_log.stat().st_size if self.event_log.exists() else 0


def wait_for(seen: Callable[[], bool], seconds: float, every: float = 0.0005) -> bool:
    """Poll until it is so; whether it was in time."""
    deadline = time.monotonic() + seconds
    while not seen():
        if time.monotonic() > deadline:
            return False
        time.sleep(every)
    return True


__all__ = ["Promise", "RealSite", "wait_for"]
