"""`HeatBook`: keeps the heat of the catalog's rows up to date while the daemon runs."""

from __future__ import annotations

import time

import numpy as np

from snapd.attach.port import Source
from snapd.attach.session import Session
from snapd.blocks.table import F32
from snapd.plans import decay
from snapd.repository import Catalog

_ROWS_AT_A_TIME = 1 << 18


class HeatBook:
    """What is in memory is as hot as the store says; what is on disk only cools down."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._updated = time.monotonic()

    def update(self, session: Session | None, source: Source | None) -> F32:
        """Bring the catalog up to date; returns its heat, float32 [rows]."""
        now = time.monotonic()
        heat = decay(self._catalog.table.heat, now - self._updated)
        self._updated = now
        if session is not None and source is not None:
            residency = session.residency
            with residency.lock:
                slots = np.flatnonzero(
                    (residency.sequence != 0) & ~residency.cold & (residency.row >= 0)
                )
                rows = residency.row[slots]
            for at in range(0, len(slots), _ROWS_AT_A_TIME):
                part = slots[at : at + _ROWS_AT_A_TIME]
                into = rows[at : at + _ROWS_AT_A_TIME]
                known = into < len(heat)
                heat[into[known]] = source.heat(part[known])
        for at in range(0, len(heat), _ROWS_AT_A_TIME):
            some = np.arange(at, min(at + _ROWS_AT_A_TIME, len(heat)))
            self._catalog.set_heat(some, heat[some])
        return heat
