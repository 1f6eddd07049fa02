"""Polite ends of Mooncake's store service and of snapd under load, and what they leave on disk."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from mooncake_driver import content
from mooncake_site import ROOT, MooncakeClient, MooncakeSite
from repository_kit import contents_of

from snapd.disk.posix import PosixDisk
from snapd.repository import Repository

BLOCK_BYTES = 16_384
BATCH_BLOCKS = 8
PAUSE_SECONDS = 0.02
LOAD_SECONDS = 1.5
END_SECONDS_MAX = 30.0


class Writer:
    """Puts new blocks from a client of its own, and knows when each was answered."""

    def __init__(self, client: MooncakeClient) -> None:
        self._client = client
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._answered: list[tuple[float, str]] = []

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._stop.set()
            self._thread.join(60)
        assert not self._thread.is_alive()

    def answered(self, since: float, until: float) -> set[str]:
        """Keys whose put was answered with success then, on the monotonic clock."""
        return {key for at, key in self._answered if since <= at < until}

    def _run(self) -> None:
        batch = 0
        while not self._stop.wait(PAUSE_SECONDS):
            keys = [f"leave-{batch:05d}-{row}" for row in range(BATCH_BLOCKS)]
            codes = self._client.put(keys, size=BLOCK_BYTES)
            now = time.monotonic()
            self._answered += [
                (now, key) for key, code in zip(keys, codes, strict=True) if code == 0
            ]
            batch += 1


@dataclass(frozen=True)
class Departure:
    """How it goes: who is asked to end, and what the store service is."""

    order: str
    """`store first`, `daemon first` or `at once`."""
    store: str
    """`launcher`, `vanilla with preStop` or `vanilla`."""


@dataclass
class Outcome:
    """What came of it. Blocks whose put was answered before the first SIGTERM, and after it."""

    departure: Departure
    before: int
    undurable_before: int
    after: int
    undurable_after: int
    seconds: float
    """From the first SIGTERM to the last end."""
    daemon_code: int
    store_code: int

    def __str__(self) -> str:
        return json.dumps(asdict(self))


def depart(directory: Path, departure: Departure, **settings: object) -> Outcome:
    """Let a node serve for a while, then end it like this, and see what its disk has."""
    with MooncakeSite(directory, poll_sec=5, flush_sec=5, snapshot_interval_sec=300) as site:
        site.start_master()
        site.start_store(launcher=departure.store == "launcher")
        site.start_daemon()
        # The first looks are at a store without blocks: what counts is seen by the last ones only.
        writer = Writer(site.client())
        with writer.at_work():
            time.sleep(LOAD_SECONDS)
            started = time.monotonic()
            daemon_code, store_code = _end(site, departure)
            ended = time.monotonic()
        durable = durable_keys(site.snapd.repository)
    before, after = writer.answered(0.0, started), writer.answered(started, float("inf"))
    assert durable <= before | after, sorted(durable - before - after)[:5]
    return Outcome(
        departure,
        before=len(before),
        undurable_before=len(before - durable),
        after=len(after),
        undurable_after=len(after - durable),
        seconds=round(ended - started, 2),
        daemon_code=daemon_code,
        store_code=store_code,
    )


def durable_keys(repository: Path) -> set[str]:
    """What a daemon would find on the disk now; the bytes of each block must be the key's."""
    disk = PosixDisk(str(repository), create=False)
    opened = Repository.open(disk)
    try:
        opened.recover()
        found = contents_of(opened)
    finally:
        opened.close()
        disk.close()
    wrong = [key for key, data in found.items() if data != content(key.decode(), 1, BLOCK_BYTES)]
    assert not wrong, wrong[:5]
    return {key.decode() for key in found}


def _end(site: MooncakeSite, departure: Departure) -> tuple[int, int]:
    """End both; the exit codes of daemon and store."""
    store, daemon = site.stores.pop(0), site.snapd.daemon
    assert daemon is not None
    site.snapd.daemon = None
    try:
        if departure.order == "daemon first":
            daemon.send_signal(signal.SIGTERM)
            daemon.wait(END_SECONDS_MAX)
        elif departure.order == "at once":
            daemon.send_signal(signal.SIGTERM)
        if departure.store == "vanilla with preStop":
            pre_stop(site)
        store.send_signal(signal.SIGTERM)
        store.wait(END_SECONDS_MAX)
        if departure.order == "store first":
            daemon.send_signal(signal.SIGTERM)
        return daemon.wait(END_SECONDS_MAX), store.returncode
    finally:
        for process in (store, daemon):
            process.kill()
            process.wait()


def pre_stop(site: MooncakeSite) -> None:
    """What Kubernetes runs in the store's container before it sends SIGTERM. Whether it succeeds
    makes no difference to Kubernetes."""
    command = documented("sh pre-stop")
    assert "/run/mooncake-snapd" in command
    subprocess.run(
        ["sh", "-c", command.replace("/run/mooncake-snapd", str(site.snapd.runtime))],
        capture_output=True,
        timeout=END_SECONDS_MAX,
        check=False,
    )


def documented(block: str) -> str:
    """The block of docs/mooncake.md whose fence is marked so."""
    parts = (ROOT / "docs" / "mooncake.md").read_text().split(f"```{block}\n")
    assert len(parts) == 2, block
    return parts[1].split("```")[0]
