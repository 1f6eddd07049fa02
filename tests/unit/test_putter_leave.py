"""What a store service asks of the daemon before it leaves, and how long it waits for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web

from snapd.putter.leave import flush_before_leaving
from snapd.wire.control import control_socket

Handler = Callable[[web.Request], Awaitable[web.Response]]


async def leave(runtime: Path, handler: Handler | None, seconds_max: float = 5.0) -> bool:
    """The answer of `flush_before_leaving`, beside a daemon that answers like this."""
    if handler is None:
        return await flush_before_leaving(str(runtime), seconds_max=seconds_max)
    application = web.Application()
    application.router.add_post("/flush", handler)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.UnixSite(runner, control_socket(str(runtime))).start()
        return await flush_before_leaving(str(runtime), seconds_max=seconds_max)
    finally:
        await runner.cleanup()


def test_the_daemon_flushes_twice_one_after_the_other(tmp_path: Path) -> None:
    under_way, most, asked = 0, 0, 0

    async def flush(_: web.Request) -> web.Response:
        nonlocal under_way, most, asked
        asked, under_way = asked + 1, under_way + 1
        most = max(most, under_way)
        await asyncio.sleep(0.05)
        under_way -= 1
        return web.json_response({})

    assert asyncio.run(leave(tmp_path, flush))
    assert (asked, most) == (2, 1)


def test_a_daemon_that_is_not_there_is_not_waited_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    started = time.monotonic()
    assert not asyncio.run(leave(tmp_path, None))
    assert time.monotonic() - started < 1.0
    assert "leaving without a last flush" in caplog.text


def test_a_daemon_that_does_not_answer_is_waited_for_only_so_long(tmp_path: Path) -> None:
    async def flush(_: web.Request) -> web.Response:
        await asyncio.sleep(30)
        return web.json_response({})

    started = time.monotonic()
    assert not asyncio.run(leave(tmp_path, flush, seconds_max=0.3))
    assert 0.3 <= time.monotonic() - started < 2.0


def test_what_the_daemon_refuses_is_told_and_ends_the_wait(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def flush(_: web.Request) -> web.Response:
        return web.json_response({"error": "the disk is full"}, status=500)

    assert not asyncio.run(leave(tmp_path, flush))
    assert "the disk is full" in str(vars(caplog.records[-1]))


def test_a_daemon_that_ends_between_two_flushes_has_done_what_counts(tmp_path: Path) -> None:
    answers = iter([web.json_response({}), web.json_response({"error": "stopping"}, status=503)])

    async def flush(_: web.Request) -> web.Response:
        return next(answers)

    assert asyncio.run(leave(tmp_path, flush))


def test_a_daemon_that_dies_meanwhile_ends_the_wait(tmp_path: Path) -> None:
    async def flush(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.close()
        await asyncio.sleep(30)
        return web.json_response({})

    started = time.monotonic()
    assert not asyncio.run(leave(tmp_path, flush))
    assert time.monotonic() - started < 3.0
