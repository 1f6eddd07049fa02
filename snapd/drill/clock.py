"""`TraceClock`: one clock for all clients, which the drill may speed up and slow down."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

_POLL_SECONDS_MAX = 0.02


class TraceClock:
    """Trace time = origin + (monotonic time - origin) x speed, in a mapped file.

    A replay is sped up so that minutes of a trace take seconds, but an outage takes the seconds
    that it takes: sped up with the rest it would swallow minutes of requests. So the clock runs at
    1 while the store is down.
    """

    def __init__(self, path: Path, lock: AbstractContextManager[Any]) -> None:
        """Map a clock that `create` made; `lock` is one for all processes."""
        self._fields = np.memmap(path, np.float64, mode="r+", shape=(4,))
        self._lock = lock

    @classmethod
    def create(cls, path: Path, lock: AbstractContextManager[Any]) -> TraceClock:
        """A clock that stands just before 0, so that nothing is due before it is given a speed."""
        np.array([-1e-6, 0, 0, 0], np.float64).tofile(path)
        return cls(path, lock)

    def now(self) -> float:
        """Seconds of the trace."""
        with self._lock:
            return self._at(time.monotonic())

    def set_speed(self, speed: float) -> None:
        """Run at `speed` trace seconds a second from now on."""
        with self._lock:
            now = time.monotonic()
            self._fields[:3] = (self._at(now), now, speed)

    def stop(self) -> None:
        """Let every `wait_until` return False."""
        self._fields[3] = 1

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return bool(self._fields[3])

    def wait_until(self, trace_seconds: float) -> float | None:
        """Sleep until this moment of the trace; returns by how many seconds it was missed.

        None if the clock was stopped before. It sleeps in short pieces, because the speed may
        change meanwhile.
        """
        while not self.stopped:
            with self._lock:
                speed = float(self._fields[2])
                late = self._at(time.monotonic()) - trace_seconds
            if late >= 0:
                return late / speed if speed > 0 else 0.0
            due = -late / speed if speed > 0 else _POLL_SECONDS_MAX
            time.sleep(min(max(due, 0.0), _POLL_SECONDS_MAX))
        return None

    def _at(self, monotonic: float) -> float:
        origin, start, speed = self._fields[:3]
        return float(origin + (monotonic - start) * speed)
