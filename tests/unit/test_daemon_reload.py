"""A reload reaches everything that the setting is about, and nothing where a setting is wrong."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from typing import Any, cast

import msgspec
import pytest

from snapd.config import Settings
from snapd.daemon.pacer import Pacer
from snapd.daemon.reload import RELOADABLE, Reload
from snapd.errors import SettingError
from snapd.flusher import Budget, Flusher
from snapd.metrics import Metrics

OTHERS: dict[str, Any] = {
    "flush_sec": 1.5,
    "snapshot_interval_sec": 77.0,
    "grace_sec": 9.0,
    "io_bytes_per_sec_max": 1000,
    "repository_bytes_max": 1 << 30,
    "disk_reserve_bytes": 1 << 20,
    "log_level": "debug",
    "log_format": "json",
}


class Told:
    """A flusher and a budget that note what they are told; the budget's check is the real one."""

    check = staticmethod(Budget.check)

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def configure(self, *values: Any) -> None:
        self.told.append(values)


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("snapd")
    handlers, level, our_level = root.handlers[:], root.level, ours.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    ours.setLevel(our_level)


def reloaded(wanted: Settings) -> tuple[Settings, Told, Told, Pacer]:
    flusher, budget, pace = Told(), Told(), Pacer(0, threading.Event())
    reload = Reload(lambda: wanted)
    reload.ask()
    held = reload.run(
        Settings(),
        flusher=cast("Flusher", flusher),
        budget=cast("Budget", budget),
        pace=pace,
        metrics=Metrics(),
    )
    return held, flusher, budget, pace


def test_every_setting_reaches_what_it_is_about() -> None:
    assert set(OTHERS) == set(RELOADABLE)
    held, flusher, budget, pace = reloaded(Settings(**OTHERS))
    assert held == Settings(**OTHERS)
    assert flusher.told == [(held,)]
    assert budget.told == [(1 << 30, 1 << 20)]
    assert logging.getLogger("snapd").level == logging.DEBUG
    started = time.monotonic()
    pace(250)  # the burst of a quarter of a second
    pace(200)
    assert 0.1 < time.monotonic() - started < 5


def test_what_needs_a_restart_stays_as_it_was() -> None:
    held, *_ = reloaded(Settings(retain=9, flush_sec=2.0))
    assert held == msgspec.structs.replace(Settings(), flush_sec=2.0)


def test_a_wrong_setting_reaches_nothing() -> None:
    with pytest.raises(SettingError):
        Budget.check(5)
    held, flusher, budget, _ = reloaded(Settings(repository_bytes_max=5, flush_sec=2.0))
    assert held == Settings()
    assert flusher.told == budget.told == []
