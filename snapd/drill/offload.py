"""What survives of the same blocks with Mooncake's own SSD offload, and with snapd.

Fill the store with the blocks of the trace's first half, wait, SIGKILL the store (its memory is
lost with it), start it again, and read every block that it had acknowledged.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import msgspec

from snapd.drill.load import LoadSpec
from snapd.drill.mooncake_audit import RemoteAuditor
from snapd.drill.mooncake_site import PEERS, MooncakeSettings, MooncakeSite, file_bytes
from snapd.drill.plan import DrillPlan
from snapd.drill.scenarios import START_SECONDS, Progress, create_shared

OFFLOAD: Final = "offload"
"""What the comparison is called on the command line."""
BUCKET_BYTES = 256 << 20
BUCKET_KEYS = 500
"""Mooncake's defaults: a bucket is written when it has as many."""
QUIET_SECONDS = 3.0
"""Nothing was written, or no key came back, for this long."""
QUIET_SECONDS_MAX = 40.0
RESTORE_SECONDS = 40.0
LOOK_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class OffloadCase:
    """One kill."""

    keeper: str
    """Who keeps the blocks: `offload` or `snapd`."""
    kill_after_seconds: float | None
    """From the end of the fill; None: when nothing was written any more."""
    restart_at_once: bool
    """And not when the master has noticed that the store is dead."""

    def __str__(self) -> str:
        return f"{self.keeper}, killed after {self.kill}, restarted {self.restart}"

    @property
    def kill(self) -> str:
        """When, in words."""
        return "quiet" if self.kill_after_seconds is None else f"{self.kill_after_seconds:g} s"

    @property
    def restart(self) -> str:
        """When it is started again, in words."""
        return "at once" if self.restart_at_once else "noticed"


CASES: Final = (
    OffloadCase("offload", 1.0, restart_at_once=False),
    OffloadCase("snapd", 1.0, restart_at_once=False),
    OffloadCase("offload", 10.0, restart_at_once=False),
    OffloadCase("snapd", 10.0, restart_at_once=False),
    OffloadCase("offload", None, restart_at_once=False),
    OffloadCase("offload", None, restart_at_once=True),
    OffloadCase("snapd", None, restart_at_once=True),
)
"""Both keepers at each moment, side by side."""


class OffloadResult(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of one kill, as `--json` prints them."""

    keeper: str
    kill: str
    """When: `1 s` after the fill, or `quiet`."""
    restart: str
    """`at once`, or `noticed`: after the master had dropped the dead store."""
    blocks: int
    """Blocks that the store had acknowledged."""
    block_bytes: int
    """Bytes of these."""
    disk_bytes: int
    """Bytes on the disk at the kill."""
    blocks_back: int
    """Blocks that came back right when all that came was there."""
    back_s: float
    """From the start of the store until no more blocks came."""
    read_s: float
    """To read every block once."""
    wrong_bytes: int


OFFLOAD_HEADINGS: Final = (
    "kept by", "killed", "restarted", "blocks put", "on disk", "blocks back", "back after",
    "read in", "wrong bytes",
)  # fmt: skip


def offload_cells(result: OffloadResult) -> tuple[str, ...]:
    """A row of the table, as text."""
    return (
        "snapd" if result.keeper == "snapd" else "Mooncake's SSD offload",
        result.kill,
        result.restart,
        f"{result.blocks:,} ({result.block_bytes / 2**20:,.0f} MiB)",
        f"{result.disk_bytes / 2**20:,.0f} MiB",
        f"{result.blocks_back:,} ({result.blocks_back / max(result.blocks, 1):.1%})",
        f"{result.back_s:.1f} s",
        f"{result.read_s:.2f} s",
        f"{result.wrong_bytes:,}",
    )


def run_offload_case(
    case: OffloadCase,
    plan: DrillPlan,
    mooncake: MooncakeSettings,
    place: Path,
    progress: Progress,
    *,
    keep: bool,
) -> OffloadResult:
    """Run one kill in a site in `place`, an empty directory, which goes unless `keep`.

    Raises DrillError when a process does not do what it must.
    """
    if case.keeper == "offload":
        mooncake = replace(
            mooncake,
            own_memory=True,
            launcher=False,
            offload_bucket_bytes=BUCKET_BYTES,
            offload_bucket_keys=BUCKET_KEYS,
        )
    with MooncakeSite(place, plan.site_settings, mooncake, keep=keep) as site:
        return _OffloadRun(case, plan, site, progress).run()


class _OffloadRun:
    def __init__(
        self, case: OffloadCase, plan: DrillPlan, site: MooncakeSite, progress: Progress
    ) -> None:
        self._case = case
        self._plan = plan
        self._site = site
        self._progress = progress
        self._state = create_shared(plan, site.shared)
        self._disk = site.repository if case.keeper == "snapd" else site.offload
        # snapd commits on an interval, whether anything is new or not: blocks are in packs.
        self._blocks = site.repository / "packs" if case.keeper == "snapd" else site.offload

    def run(self) -> OffloadResult:
        """Fill, kill, start again, read."""
        case, plan = self._case, self._plan
        auditor = self._start()
        self._progress("filling the store")
        blocks = auditor.fill(plan.kill_request)
        self._progress("waiting for the kill")
        if case.kill_after_seconds is None:
            self._wait_until_steady(lambda: file_bytes(self._blocks))
        else:
            time.sleep(case.kill_after_seconds)
        disk_bytes = file_bytes(self._disk)
        self._kill()
        if not case.restart_at_once:
            self._wait_until_noticed()
        self._progress("waiting for blocks to come back")
        began = time.monotonic()
        back_at = self._restart()
        read = auditor.read_back(self._state.ledger.acknowledged())
        return OffloadResult(
            keeper=case.keeper,
            kill=case.kill,
            restart=case.restart,
            blocks=blocks,
            block_bytes=blocks * plan.block_bytes,
            disk_bytes=disk_bytes,
            blocks_back=read.blocks,
            back_s=back_at - began,
            read_s=read.seconds,
            wrong_bytes=read.wrong_bytes,
        )

    def _start(self) -> RemoteAuditor:
        self._progress("starting")
        site, plan = self._site, self._plan
        site.start_master()
        site.wait_master()
        site.start_store()
        site.wait_store(START_SECONDS)
        if self._case.keeper == "snapd":
            site.start_daemon()
            site.wait_restored("", START_SECONDS)
        spec = LoadSpec(
            directory=str(site.shared),
            socket=site.master_address,
            metadata=PEERS,
            seed=plan.seed,
            block_bytes=plan.block_bytes,
            deadline_seconds=plan.deadline_seconds,
            upsert_ratio=0.0,
            remove_ratio=0.0,
        )
        file = site.shared / "spec.json"
        file.write_bytes(msgspec.json.encode(spec))
        return RemoteAuditor(site, file)

    def _kill(self) -> None:
        """Lose the node: the store, and with snapd its daemon and shared memory."""
        site = self._site
        for process in (site.store, site.daemon):
            if process is not None:
                process.kill()
        site.store = site.daemon = None
        site.wipe_memory()

    def _wait_until_noticed(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while self._site.key_count() and time.monotonic() < deadline:
            time.sleep(LOOK_SECONDS)

    def _restart(self) -> float:
        """Start it again; returns when the last block had come back (monotonic seconds)."""
        site = self._site
        site.start_store()
        if self._case.keeper == "snapd":
            site.start_daemon()
            return site.wait_restored("", RESTORE_SECONDS)
        site.wait_store(START_SECONDS)
        return self._wait_until_steady(site.key_count)

    def _wait_until_steady(self, figure: Callable[[], int]) -> float:
        """Wait until a figure has not changed for a while; returns since when."""
        deadline = time.monotonic() + QUIET_SECONDS_MAX
        last, since = figure(), time.monotonic()
        while time.monotonic() < min(deadline, since + QUIET_SECONDS):
            time.sleep(LOOK_SECONDS)
            now = figure()
            if now != last:
                last, since = now, time.monotonic()
        return since
