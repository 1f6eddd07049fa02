"""`DrillPlan`: everything that is decided before the first process starts. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from snapd.drill.content import PAGE_BYTES
from snapd.drill.measure import ROLLING_REQUESTS
from snapd.drill.processes import SiteSettings
from snapd.drill.trace import Trace
from snapd.errors import SettingError

SCENARIOS: Final = {
    "baseline": "no restart",
    "cold": "store killed, no snapd, memory wiped",
    "shm": "store SIGKILLed, memory survives",
    "nvme": "store and daemon SIGKILLed, memory wiped, as after a power cut",
    "sigterm": "store and daemon stopped politely, memory wiped, as in a pod's upgrade",
}
"""What each scenario does, in the order in which they run."""

WINDOW_REQUESTS_MAX = 600
OUTAGE_REQUESTS = 60
"""Requests replayed beyond the window, because some fire during the outage."""
AIM_SECONDS = 0.25
"""How long the kill waits, beyond a flush interval, for a put or a flush to be under way."""
REMOVALS_SECONDS = 0.5
"""How long the removals before the kill take, generously."""
CATCH_UPS_MAX = 5
CATCH_UP_SECONDS = 0.02
"""How often the load is let catch up before the kill, and for how long it then runs at most."""
SHARED_BYTES_MAX = 2 << 30
"""A wiped segment lives on until the last process has unmapped it, so two of them must fit."""
SEGMENT_OVERHEAD_BYTES = 64 << 20
"""Slots, index, key heap and alignment, generously."""
FILL_RATIO = 0.8
"""How full the segment would get if nothing were evicted."""


@dataclass(frozen=True, slots=True)
class DrillPlan:
    """One seed's replay: the same for every scenario."""

    trace: Trace
    seed: int
    block_bytes: int
    clients: int
    speed: float
    """Trace seconds a second, except while the store is down."""
    kill_request: int
    """The kill comes up to one flush interval after this request is due."""
    window_requests: int
    flush_seconds: float
    snapshot_seconds: float
    deadline_seconds: float
    inject: bool
    upsert_ratio: float = 0.05
    remove_ratio: float = 0.03

    @property
    def site_settings(self) -> SiteSettings:
        """Settings of the store and the daemon: room for every block, if the limit allows."""
        padded = -(-self.block_bytes // PAGE_BYTES) * PAGE_BYTES
        wanted = int(self.trace.block_count * padded / FILL_RATIO) + (16 << 20)
        most = SHARED_BYTES_MAX // 2 - SEGMENT_OVERHEAD_BYTES
        return SiteSettings(
            segment_bytes=min(wanted, most) // PAGE_BYTES * PAGE_BYTES,
            segment_blocks_max=2 * self.trace.block_count + 4096,
            flush_seconds=self.flush_seconds,
            snapshot_seconds=self.snapshot_seconds,
            # A wait that ends at the deadline itself would come too late for it.
            get_wait_seconds=0.9 * self.deadline_seconds,
        )


def make_plan(
    trace: Trace,
    *,
    seed: int,
    block_bytes: int,
    clients: int,
    load_seconds: float | None,
    speed: float | None,
    inject: bool,
    flush_seconds: float,
    snapshot_seconds: float,
    deadline_seconds: float,
) -> DrillPlan:
    """Kill at half the trace, measure over the requests after it; the rest is not replayed.

    `speed` None takes the speed at which the replay lasts `load_seconds`. Raises SettingError for a
    trace that is too short to show anything.
    """
    kill_request = len(trace) // 2
    window = min(WINDOW_REQUESTS_MAX, (len(trace) - kill_request) * 2 // 3)
    if window < 2 * ROLLING_REQUESTS:
        raise SettingError(
            f"the trace has {len(trace)} requests; a drill needs at least {6 * ROLLING_REQUESTS}"
        )
    lasts = float(trace.times[kill_request + window])
    if speed is None:
        speed = max(lasts / (load_seconds or 1.0), 1e-6)
    # The kill comes later than the middle by its place in the flush interval and by its aim.
    later = REMOVALS_SECONDS + 2 * flush_seconds + AIM_SECONDS + CATCH_UPS_MAX * CATCH_UP_SECONDS
    replayed = int(np.searchsorted(trace.times, lasts + speed * later)) + OUTAGE_REQUESTS
    return DrillPlan(
        trace=trace.head(replayed),
        seed=seed,
        block_bytes=block_bytes,
        clients=clients,
        speed=speed,
        kill_request=kill_request,
        window_requests=window,
        flush_seconds=flush_seconds,
        snapshot_seconds=snapshot_seconds,
        deadline_seconds=deadline_seconds,
        inject=inject,
    )
