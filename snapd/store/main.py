"""`run_store`: the composition root of the store process."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import time
from pathlib import Path

from snapd import __version__
from snapd.config import Settings, event
from snapd.config.notify import notify, watchdog_seconds
from snapd.errors import LockHeldError, SegmentError, SettingError
from snapd.segment import DataGrowth, open_segment
from snapd.store.blocks import BlockStore
from snapd.store.engine import StoreEngine
from snapd.store.eventlog import EventLogFile
from snapd.store.server import SOCKET_NAME, StoreServer

_LOG = logging.getLogger(__name__)

BYTES_PER_SLOT = 16 * 1024
SLOTS_MIN = 1024


def slot_count(settings: Settings) -> int:
    """Blocks that a segment of these settings can hold, resident and cold."""
    return settings.segment_blocks_max or max(
        SLOTS_MIN, settings.global_segment_size // BYTES_PER_SLOT
    )


def run_store(settings: Settings, event_log: Path | None = None) -> int:
    """Serve until SIGTERM or SIGINT; the segment stays. Returns the exit code 0.

    With `event_log`, every eviction and removal is appended to that file. Raises LockHeldError,
    NewerFormatError or SegmentError when the segment cannot be had or its memory runs out, and
    SettingError when the socket cannot.
    """
    # Until the loop has its handlers. Whatever this interrupts, SIGKILL might have, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    began = time.monotonic()
    segment = open_segment(
        settings.segment_path,
        settings.global_segment_size,
        slot_count(settings),
        group_shared=settings.group_shared,
    )
    log = EventLogFile(event_log) if event_log is not None else None
    servers: list[StoreServer] = []

    def memory_ran_out(error: SegmentError) -> None:
        for server in servers:
            server.fail(error)

    growth = DataGrowth(segment, memory_ran_out)
    growth.start()
    try:
        now = time.monotonic()
        blocks = BlockStore(
            segment, growth, settings, now=now, wall_seconds=time.time(), event_log=log
        )
        engine = StoreEngine(blocks, now=now, version=__version__)
        path = Path(settings.runtime_dir) / SOCKET_NAME

        def ready() -> None:
            event(
                _LOG,
                logging.INFO,
                "store ready",
                adopted=blocks.counters.adopted_blocks,
                dropped=blocks.counters.dropped_slots,
                created=segment.created,
                seconds=round(time.monotonic() - began, 3),
                socket=path,
            )
            notify("READY=1\nSTATUS=serving")

        servers.append(StoreServer(engine, path, ready, group_shared=settings.group_shared))
        growth.check()
        _serve(servers[0], path)
        event(_LOG, logging.INFO, "store stopped", segment=segment.path)
    finally:
        growth.stop()
        segment.close()
        if log is not None:
            log.close()
    return 0


def _serve(server: StoreServer, path: Path) -> None:
    """Run the server; its errors in the terms of the command line."""
    try:
        asyncio.run(_run(server))
    except FileExistsError as error:
        raise LockHeldError(f"{error}: stop it, or set runtime_dir") from error
    except OSError as error:
        raise SettingError(f"cannot listen at {path}: {error}; check runtime_dir") from error


async def _run(server: StoreServer) -> None:
    """The server, and the watchdog's due for as long as its loop turns."""
    seconds = watchdog_seconds()
    feeding = asyncio.create_task(_feed_watchdog(seconds)) if seconds is not None else None
    try:
        await server.run()
    finally:
        if feeding is not None:
            feeding.cancel()
        notify("STOPPING=1")


async def _feed_watchdog(seconds: float) -> None:
    while True:
        notify("WATCHDOG=1")
        await asyncio.sleep(seconds)
