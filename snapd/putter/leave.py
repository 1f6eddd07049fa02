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

_logger = logging.getLogger(__name__)


async def flush_before_leaving(runtime_dir: str, *, seconds_max: float) -> bool:
    """Have the daemon of this runtime directory write everything that was put before this call;
    whether it did, within the time. Never raises.

    A daemon that is about to end itself answers when its own last flush is done; one that is not
    there is not waited for.
    """
    path = control_socket(runtime_dir)
    started = time.monotonic()
    flushes, reason = 0, ""
    try:
        async with asyncio.timeout(seconds_max):
            await _flush(path)
            flushes += 1
            # That may have had much to write, and clients went on putting: this has only theirs.
            await _flush(path)
            flushes += 1
    except (aiohttp.ClientError, OSError) as error:
        reason = str(error)
    except TimeoutError:
        reason = f"the daemon took longer than {seconds_max:g} s"
    event(
        _logger,
        logging.INFO if flushes else logging.WARNING,
        "flushed before leaving" if flushes else "leaving without a last flush",
        flushes=flushes,
        seconds=time.monotonic() - started,
        **({"reason": reason} if reason else {}),
    )
    return flushes > 0


async def _flush(path: str) -> None:
    connector = aiohttp.UnixConnector(path=path)
    async with (
        aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout()) as session,
        session.post("http://snapd/flush") as answer,
    ):
        if answer.status != 200:
            raise aiohttp.ClientError((await answer.text())[:500].strip())
