"""`Reload`: settings that change while the daemon runs, on SIGHUP.

All sources are read and checked again, as at the start. Where anything in them is wrong, everything
stays as it is: a reload is no way to stop a daemon.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import msgspec

from snapd.config import Settings, configure_logging, event
from snapd.config.notify import notify
from snapd.daemon.pacer import Pacer
from snapd.errors import SettingError
from snapd.flusher import Budget, Flusher
from snapd.metrics import Metrics

RELOADABLE = (
    "flush_sec",
    "snapshot_interval_sec",
    "grace_sec",
    "io_bytes_per_sec_max",
    "repository_bytes_max",
    "disk_reserve_bytes",
    "log_level",
    "log_format",
)
"""Settings that take effect at once; any other needs a restart."""
_logger = logging.getLogger(__name__)


class Reload:
    """Asked for from a signal handler, done by the thread that runs the daemon."""

    def __init__(self, load: Callable[[], Settings]) -> None:
        """`load` reads every source again; it raises SettingError."""
        self._load = load
        self._asked = threading.Event()

    def ask(self, *_: object) -> None:
        """Have the settings read again soon; a handler for signals."""
        self._asked.set()

    def run(
        self,
        settings: Settings,
        *,
        flusher: Flusher,
        budget: Budget,
        pace: Pacer,
        metrics: Metrics,
    ) -> Settings:
        """Do what was asked for, if anything was; the settings that hold now."""
        if not self._asked.is_set():
            return settings
        self._asked.clear()
        notify("RELOADING=1")
        try:
            wanted = self._load()
            budget.check(wanted.repository_bytes_max)
        except SettingError as error:
            event(_logger, logging.ERROR, "kept the settings, the new ones are wrong", error=error)
            metrics.reloaded(good=False)
            notify("READY=1")
            return settings
        old, new = msgspec.structs.asdict(settings), msgspec.structs.asdict(wanted)
        changed = [name for name in old if old[name] != new[name]]
        held = msgspec.structs.replace(
            settings, **{name: new[name] for name in changed if name in RELOADABLE}
        )
        flusher.configure(held)
        budget.configure(held.repository_bytes_max, held.disk_reserve_bytes)
        pace.configure(held.io_bytes_per_sec_max)
        metrics.configured(held.snapshot_interval_sec)
        configure_logging(held)
        metrics.reloaded(good=True)
        event(
            _logger,
            logging.INFO,
            "read the settings again",
            changed=",".join(name for name in changed if name in RELOADABLE) or "nothing",
        )
        if left := [name for name in changed if name not in RELOADABLE]:
            event(
                _logger,
                logging.WARNING,
                "settings changed that need a restart of the daemon",
                settings=",".join(left),
            )
        notify("READY=1\nSTATUS=running")
        return held
