"""`HeatBook`: the heat of every row of the catalog, kept while the daemon runs."""

from __future__ import annotations

import time

import numpy as np

from snapd.attach.port import Source
from snapd.attach.session import Session
from snapd.blocks.table import F32
from snapd.plans import decay


class HeatBook:
    """Heat, float32 [rows]. What is in memory is as hot as the store says; what is on disk only
    cools down from what it was."""

    def __init__(self) -> None:
        self._heat: F32 = np.zeros(0, np.float32)
        self._updated = time.monotonic()

    def update(self, known: F32, session: Session | None, source: Source | None) -> F32:
        """The heat of all rows now. `known` is the catalog's own heat, for rows that are new."""
        now = time.monotonic()
        cooled = decay(self._heat, now - self._updated)
        self._heat = np.concatenate([cooled, known[len(cooled) :]])
        self._updated = now
        if session is not None and source is not None:
            residency = session.residency
            with residency.lock:
                slots = np.flatnonzero(
                    (residency.sequence != 0) & ~residency.cold & (residency.row >= 0)
                )
                rows = residency.row[slots]
            self._heat[rows] = source.heat(slots)
        return self._heat
