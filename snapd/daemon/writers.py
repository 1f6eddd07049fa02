"""`Writers`: the workers that write to the disk, wired to one budget."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from snapd.attach.session import Link, Session
from snapd.attach.traced import TracedHeat
from snapd.blocks.keys import I64
from snapd.config import Settings
from snapd.disk.metered import MeteredDisk
from snapd.flusher import Budget, Compactor, Flusher
from snapd.metrics import Metrics
from snapd.repository import Repository
from snapd.warmup.reconcile import drop_dead


@dataclass(frozen=True, slots=True)
class Writers:
    """The flusher and the compactor; the budget decides between them."""

    budget: Budget
    flusher: Flusher
    compactor: Compactor

    @classmethod
    def build(
        cls,
        settings: Settings,
        repository: Repository,
        link: Link,
        *,
        meter: MeteredDisk,
        pace: Callable[[int], None],
        metrics: Metrics,
        traced: TracedHeat,
        stopping: threading.Event,
    ) -> Writers:
        """All three, not started; `meter` is the repository's disk."""
        budget = Budget(
            repository,
            bytes_max=settings.repository_bytes_max,
            bytes_per_day_max=settings.write_bytes_per_day_max,
            disk_reserve_bytes=settings.disk_reserve_bytes,
            pack_bytes_max=settings.pack_bytes_max,
            bytes_written=lambda: meter.bytes_written,
        )
        flusher = Flusher(
            repository, link, settings, pace=pace, observer=metrics, budget=budget, traced=traced
        )

        def drop_cold(session: Session, resident: I64) -> None:
            with closing(session.open_sink()) as sink:
                drop_dead(session, sink, repository)
                if len(resident) and session.open_offload is not None:
                    # They may be on disk only by now, which the residency has not seen yet.
                    slots = resident.astype(np.uint32)
                    sink.drop_cold(slots, session.residency.sequence[resident])

        compactor = Compactor(
            repository,
            link,
            budget,
            pace=pace,
            drop_cold=drop_cold,
            request_commit=flusher.request_commit,
            observer=metrics,
            stopping=stopping,
        )
        return cls(budget, flusher, compactor)
