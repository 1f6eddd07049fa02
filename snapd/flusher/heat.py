"""`HeatBook`: keeps the heat of the catalog's rows up to date while the daemon runs."""

from __future__ import annotations

import time

import numpy as np

from snapd.attach.port import Source
from snapd.attach.session import Session
from snapd.attach.traced import TracedHeat
from snapd.plans import cooling
from snapd.repository import Catalog

_ROWS_AT_A_TIME = 1 << 18


class HeatBook:
    """What is in memory is as hot as the store says, what is on disk only cools down, and blocks of
    pages that clients trace are as hot as their pages."""

    def __init__(self, catalog: Catalog, traced: TracedHeat) -> None:
        self._catalog = catalog
        self._traced = traced
        self._updated = time.monotonic()

    def update(self, session: Session | None, source: Source | None) -> None:
        """Bring the catalog up to date."""
        now = time.monotonic()
        self._catalog.cool(cooling(now - self._updated))
        self._updated = now
        if session is not None and source is not None:
            self._ask(session, source)
        self._traced.update_catalog()

    def _ask(self, session: Session, source: Source) -> None:
        residency = session.residency
        with residency.lock:
            slots = np.flatnonzero(
                (residency.sequence != 0) & ~residency.cold & (residency.row >= 0)
            )
            rows = residency.row[slots]
        for at in range(0, len(slots), _ROWS_AT_A_TIME):
            part = slice(at, at + _ROWS_AT_A_TIME)
            # A store knows nothing of reads before a block was loaded back; what the manifest says
            # of them cools at the same rate as what the store counts, so the larger one is right.
            kept = self._catalog.column("heat", rows[part])
            self._catalog.set_heat(rows[part], np.maximum(source.heat(slots[part]), kept))
