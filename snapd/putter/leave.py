"""`flush_before_leaving`: a store service that ends has the daemon look at it once more first.

When the service leaves politely, the master forgets its keys at once. The bytes are in a file that
the daemon has mapped, and stay; but where in it which key was, nobody can say any more of what was
put since the daemon looked last. So the daemon is told before, and answered by, and only then the
service goes.
"""

from __future__ import annotations

import asyncio
import logging
import time

import aiohttp

from snapd.config import event
from snapd.wire.control import control_socket

_ROUNDS = 2
"""The first flush may have much to write, and clients go on putting meanwhile: the second has only
that."""

_logger = logging.getLogger(__name__)


async def flush_before_leaving(runtime_dir: str, *, seconds_max: float) -> bool:
    """Have the daemon of this runtime directory write everything that was put before this call;
    whether it did, within the time. Never raises.

    A daemon that is about to end itself answers when its own last flush is done; one that is not
    there is not waited for.
    """
    started = time.monotonic()
    try:
        async with asyncio.timeout(seconds_max):
            for _ in range(_ROUNDS):
                await _flush(control_socket(runtime_dir))
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        event(
            _logger,
            logging.WARNING,
            "leaving without a last flush",
            reason=str(error) or f"the daemon took longer than {seconds_max:g} s",
            seconds=time.monotonic() - started,
        )
        return False
    event(_logger, logging.INFO, "flushed before leaving", seconds=time.monotonic() - started)
    return True


async def _flush(path: str) -> None:
    connector = aiohttp.UnixConnector(path=path)
    async with (
        aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout()) as session,
        session.post("http://snapd/flush") as answer,
    ):
        if answer.status != 200:
            raise aiohttp.ClientError((await answer.text())[:500].strip())
