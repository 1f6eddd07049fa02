"""Which keys real Mooncake evicts under a fixed load, with and without somebody who looks on.

One *run* is a new master, a new store, one client with the load of `eviction_load`, and a witness:
nobody, snapd's daemon, or one that reads as nobody should. Its outcome is the set of keys that are
left. Eviction goes by the clock, so even two runs without a witness differ a little; how much they
do is the control.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from eviction_load import EvictionLoad
from mooncake_site import SUPPORT, MooncakeSite, plain_environment

from snapd.attach.mooncake.files import create_segment_file
from snapd.attach.mooncake.master import MasterAdmin
from snapd.attach.mooncake.service import StoreService

WATERMARK = 0.9
LEASE_MS = 50
"""Short, so that the order of eviction is that of the operations, however late one of them is on a
busy machine."""
QUIET_SECONDS = 0.5

Witness = Callable[[MooncakeSite], contextlib.AbstractContextManager[dict[str, Any]]]
"""Mounts the site's memory and looks on inside the `with`; gives what it saw, filled at its end."""


@dataclass
class Run:
    """One run's outcome."""

    left: set[str]
    """Keys that were not evicted."""
    client: dict[str, Any]
    evicted: int
    evictions: int
    """Times that the master evicted, from its log."""
    witness: dict[str, Any] = field(default_factory=dict)


_TRIES = 4
"""Runs until one keeps to its schedule."""


@dataclass
class Trial:
    """Runs of one load, in the order in which they were made."""

    load: EvictionLoad
    directory: Path
    eviction_ratio: float = 0.02
    """Share of the blocks that the master evicts at a time."""
    runs: dict[str, list[Run]] = field(default_factory=dict)
    _made: int = 0

    @property
    def eviction_keys(self) -> int:
        """Keys of one eviction."""
        return int(self.eviction_ratio * self.load.resident)

    def run(self, name: str, witness: Witness, **settings: object) -> Run:
        """Make one run and keep it under `name`.

        A machine that is too busy for the schedule of the load has puts come before the eviction
        that makes room for them. Such a run was of another load, and is made again.
        """
        for _ in range(_TRIES):
            run = self._run(name, witness, **settings)
            if run.client["failed_puts"] == 0:
                break
        self.runs.setdefault(name, []).append(run)
        return run

    def _run(self, name: str, witness: Witness, **settings: object) -> Run:
        self._made += 1
        directory = self.directory / f"{self._made}-{name}"
        directory.mkdir()
        with MooncakeSite(
            directory,
            segment_bytes=segment_bytes(self.load),
            lease_ttl_ms=LEASE_MS,
            eviction=(WATERMARK, self.eviction_ratio),
            **settings,
        ) as site:
            site.start()
            with witness(site) as seen:
                client = _put_and_read(site, self.load)
                evicted = _settle(site)
                left = site.keys()
            log = (directory / "master.log").read_text(errors="replace")
        return Run(left, client, evicted, log.count("EVICT-TRIGGER"), seen)

    def differences(self, one: str, other: str) -> list[int]:
        """Keys that are left in one run of a pair and not in the other, for each pair."""
        pairs: Iterator[tuple[Run, Run]] = (
            itertools.combinations(self.runs[one], 2)
            if one == other
            else itertools.product(self.runs[one], self.runs[other])
        )
        return [len(left.left ^ right.left) for left, right in pairs]

    def report(self) -> str:
        """Everything, as JSON."""
        names = list(self.runs)
        document = {
            "load": asdict(self.load),
            "keys_of_one_eviction": self.eviction_keys,
            "runs": [
                {
                    "witness": name,
                    "left": len(run.left),
                    "evicted": run.evicted,
                    "evictions": run.evictions,
                    **{k: run.client[k] for k in ("failed_puts", "misses", "late_seconds_max")},
                    **run.witness,
                }
                for name, runs in self.runs.items()
                for run in runs
            ],
            "keys_that_differ": {
                f"{one} / {other}": self.differences(one, other)
                for one, other in itertools.combinations_with_replacement(names, 2)
            },
        }
        return json.dumps(document, indent=1)


# --- witnesses ------------------------------------------------------------------------------------


@contextlib.contextmanager
def nobody(site: MooncakeSite) -> Iterator[dict[str, Any]]:
    """The same kind of file, mounted by the test, and nobody who looks."""
    file = create_segment_file(site.stem, site.segment_bytes, group_shared=False)
    service = StoreService(site.store_url())
    try:
        service.mount(file.name, file.size_bytes)
        yield {}
    finally:
        service.close()
        file.unlink()
        file.close()


@contextlib.contextmanager
def snapd(site: MooncakeSite) -> Iterator[dict[str, Any]]:
    """The daemon, which has the store mount a file of its own, polls, flushes and commits."""
    site.start_daemon()
    seen: dict[str, Any] = {}
    yield seen
    seen["flushed_under_load"] = int(site.snapd.metric("flush_blocks_total"))
    seen["blocks_at_end"] = site.snapd.snapshot()["blocks"]
    seen["flushed_blocks"] = int(site.snapd.metric("flush_blocks_total"))
    seen["snapshots"] = int(site.snapd.metric("snapshot_total", result="success"))
    seen["daemon_alive"] = site.snapd.daemon is not None and site.snapd.daemon.poll() is None


@contextlib.contextmanager
def lease_taker(site: MooncakeSite) -> Iterator[dict[str, Any]]:
    """One who asks for every key's replicas by the call that grants leases. What it does to the
    order of eviction is what this experiment must be able to see."""
    with nobody(site), ended(lambda: _take_leases(site)) as seen:
        yield seen


@contextlib.contextmanager
def ended(
    work: Callable[[], Iterator[dict[str, Any]]],
) -> Iterator[dict[str, Any]]:
    """`work` in a thread, step by step until the `with` ends; gives its last answer."""
    stop = threading.Event()
    seen: dict[str, Any] = {}

    def run() -> None:
        for answer in work():
            seen.update(answer)
            if stop.is_set():
                return

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join(60)
    assert not thread.is_alive()


def _take_leases(site: MooncakeSite) -> Iterator[dict[str, Any]]:
    client = site.client()
    taken = 0
    while True:
        keys = sorted(site.keys())
        taken += len(client.do("replicas", keys=keys)) if keys else 0
        yield {"leases_taken": taken}
        time.sleep(0.2)


# --- inside ---------------------------------------------------------------------------------------


def segment_bytes(load: EvictionLoad) -> int:
    """So that about `load.resident` blocks are below the watermark."""
    pages = int(load.resident * load.block_bytes / WATERMARK) // 4096
    return max(1, pages) * 4096


def _put_and_read(site: MooncakeSite, load: EvictionLoad) -> dict[str, Any]:
    program = [site.python, str(SUPPORT / "eviction_load.py"), site.master, site.metadata]
    ended = subprocess.run(
        [*program, json.dumps(asdict(load))],
        capture_output=True,
        text=True,
        timeout=60 + 10 * load.steps * load.step_seconds,
        env=plain_environment() | {"GLOG_minloglevel": "1"},
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    report: dict[str, Any] = json.loads(ended.stdout)
    return report


def _settle(site: MooncakeSite) -> int:
    """Wait until nothing is evicted any more; how many keys were."""
    evicted, since = -1, time.monotonic()
    with contextlib.closing(MasterAdmin(site.admin)) as admin:
        while time.monotonic() - since < QUIET_SECONDS:
            now = admin.counters().evicted
            if now != evicted:
                evicted, since = now, time.monotonic()
            time.sleep(0.05)
    return evicted
