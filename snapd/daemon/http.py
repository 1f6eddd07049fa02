"""The daemon's HTTP: probes, metrics and status on TCP, the same and control on a Unix socket.

asyncio lives here and nowhere else in the daemon. The handlers only ask `Control`; whatever may
wait for a disk runs in a thread, so that a probe is answered while a disk hangs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

import msgspec
from aiohttp import web

from snapd.config import event
from snapd.errors import RefusedError, SettingError, SnapdError
from snapd.wire.control import control_socket
from snapd.wire.peers import refusal_of_peer

_SNAPSHOT_SECONDS_MAX = 600.0
_START_SECONDS_MAX = 10.0
_REQUEST_SECONDS_MAX = 5.0
"""For which a connection may be without a whole request; then it is closed."""
_WATCH_SECONDS = 0.5
_logger = logging.getLogger(__name__)


class Control(Protocol):
    """What HTTP asks of the daemon. Nothing here waits, except what returns a future, and
    `generations`, which reads the disk and raises `SnapdError`."""

    def failure(self) -> str | None:
        """Why the daemon must be restarted; None while it is alive."""

    def unready(self) -> str | None:
        """Why not every block of the snapshot is served; None when every one is."""

    def problems(self) -> Sequence[str]:
        """What does not work and yet makes nobody unready, such as a full disk."""

    def status(self) -> Mapping[str, Any]:
        """Everything an operator wants, as JSON types."""

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format."""

    def request_snapshot(self) -> Future[Mapping[str, Any]]:
        """Ask for a snapshot now; the future fails with `SnapdError`."""

    def request_flush(self) -> Future[None]:
        """Ask for everything that was put so far to be on disk; the future fails with
        `SnapdError`."""

    def prune(
        self, retain: int | None, *, move_unreadable: bool, dry_run: bool
    ) -> Mapping[str, Any]:
        """Delete what no retained generation needs; takes its time, and raises `SnapdError`."""

    def purge(self, prefix: str) -> Mapping[str, Any]:
        """Remove keys from store and disk for good; takes its time, and raises `SnapdError`."""

    def generations(self) -> Sequence[Mapping[str, Any]]:
        """The snapshots on disk, newest first."""


class HttpServer:
    """Serves in a thread of its own, from `start` to `stop`."""

    def __init__(
        self, control: Control, tcp: str, runtime_dir: str, *, group_shared: bool = False
    ) -> None:
        """With `group_shared`, processes of our group may use the control socket, too."""
        self._control = control
        self._group_shared = group_shared
        self._tcp = tcp
        self._socket_path = control_socket(runtime_dir)
        self._watch = _ConnectionWatch()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._started: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)
        self.address = ""
        """host:port that is listened on; empty where TCP is off."""

    def start(self) -> None:
        """Listen. Raises SettingError when an address cannot be used, RefusedError when another
        daemon uses it."""
        self._thread.start()
        self._started.result(_START_SECONDS_MAX)

    def stop(self) -> None:
        """Stop listening and end the thread; idempotent."""
        if self._loop is not None and self._stop is not None and self._thread.is_alive():
            with contextlib.suppress(RuntimeError):  # the loop has just ended by itself
                self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(5.0)

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        runners = [
            web.AppRunner(self._application(control=control), access_log=None, shutdown_timeout=1.0)
            for control in (False, True)
        ]
        try:
            for runner in runners:
                await runner.setup()
            await self._listen_tcp(runners[0])
            await self._listen_unix(runners[1])
        except SnapdError as error:
            self._started.set_exception(error)
        else:
            self._started.set_result(None)
            while not self._stop.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stop.wait(), _WATCH_SECONDS)
                self._watch.hang_up(runners)
            with contextlib.suppress(OSError):
                os.unlink(self._socket_path)
        for runner in runners:
            await runner.cleanup()

    async def _listen_tcp(self, runner: web.AppRunner) -> None:
        if not self._tcp:
            return
        host, _, port = self._tcp.rpartition(":")
        if not port.isdigit() or int(port) > 65535:
            raise SettingError(f"http = {self._tcp!r} is not host:port, such as 127.0.0.1:9470")
        try:
            await web.TCPSite(runner, host.strip("[]") or None, int(port)).start()
        except OSError as error:
            raise SettingError(
                f"cannot listen on http = {self._tcp!r}: {error.strerror or error}; "
                "set another one, or an empty one to switch it off"
            ) from error
        name = runner.addresses[0]
        self.address = f"{name[0]}:{name[1]}"

    async def _listen_unix(self, runner: web.AppRunner) -> None:
        # Bound under a temporary name with the right mode and renamed, so that nobody can connect
        # to it in between, and a socket that a killed daemon left behind is replaced.
        if _answers(self._socket_path):
            raise RefusedError(f"another daemon serves {self._socket_path}: set runtime_dir")
        temporary = f"{self._socket_path}.{os.getpid()}"
        before = os.umask(0o117 if self._group_shared else 0o177)
        try:
            await web.UnixSite(runner, temporary).start()
            os.rename(temporary, self._socket_path)
        except OSError as error:
            raise SettingError(
                f"cannot listen in runtime_dir: {self._socket_path}: {error.strerror or error}"
            ) from error
        finally:
            os.umask(before)

    def _application(self, *, control: bool) -> web.Application:
        checks = [self._watch.note_request]
        if control:
            checks.append(self._check_peer)
        application = web.Application(client_max_size=1 << 16, middlewares=checks)
        application.add_routes(
            [
                web.get("/metrics", self._metrics),
                web.get("/healthz", self._healthz),
                web.get("/readyz", self._readyz),
                web.get("/status", self._status),
            ]
        )
        if control:
            application.add_routes(
                [
                    web.post("/snapshot", _as_errors(self._snapshot)),
                    web.post("/flush", _as_errors(self._flush)),
                    web.get("/generations", _as_errors(self._generations)),
                    web.post("/prune", _as_errors(self._prune)),
                    web.post("/purge", _as_errors(self._purge)),
                ]
            )
        return application

    @web.middleware
    async def _check_peer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """The mode of the socket's file says the same, unless somebody has changed it."""
        transport = request.transport
        connected = None if transport is None else transport.get_extra_info("socket")
        if connected is None:
            return _json({"error": "the connection is gone"}, status=403)
        refusal = refusal_of_peer(connected, group_shared=self._group_shared)
        return await handler(request) if refusal is None else _json({"error": refusal}, status=403)

    async def _metrics(self, _: web.Request) -> web.Response:
        body = await asyncio.to_thread(self._control.exposition)
        return web.Response(
            body=body, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        )

    async def _healthz(self, _: web.Request) -> web.Response:
        return _probe(self._control.failure())

    async def _readyz(self, _: web.Request) -> web.Response:
        # A disk that fails later does not take a serving store out of service: the body says it.
        return _probe(self._control.failure() or self._control.unready(), self._control.problems())

    async def _status(self, _: web.Request) -> web.Response:
        return _json(await asyncio.to_thread(self._control.status))

    async def _snapshot(self, _: web.Request) -> web.Response:
        future = asyncio.wrap_future(self._control.request_snapshot())
        try:
            return _json(await asyncio.wait_for(asyncio.shield(future), _SNAPSHOT_SECONDS_MAX))
        except TimeoutError:
            return _json({"error": "the snapshot takes longer than the request may"}, status=504)

    async def _flush(self, _: web.Request) -> web.Response:
        future = asyncio.wrap_future(self._control.request_flush())
        try:
            await asyncio.wait_for(asyncio.shield(future), _SNAPSHOT_SECONDS_MAX)
        except TimeoutError:
            return _json({"error": "the flush takes longer than the request may"}, status=504)
        except RefusedError as error:  # a daemon that ends; who asks is about to end as well
            return _json({"error": str(error), "exit_code": error.exit_code}, status=503)
        return _json({})

    async def _generations(self, _: web.Request) -> web.Response:
        return _json({"generations": await asyncio.to_thread(self._control.generations)})

    async def _prune(self, request: web.Request) -> web.Response:
        query = request.query
        retain = query.get("retain")
        if retain is not None and not (retain.isdecimal() and int(retain) > 0):
            raise SettingError(f"retain = {retain!r} is not a number of generations, 1 or more")
        return _json(
            await asyncio.to_thread(
                self._control.prune,
                int(retain) if retain else None,
                move_unreadable="move_unreadable" in query,
                dry_run="dry_run" in query,
            )
        )

    async def _purge(self, request: web.Request) -> web.Response:
        # Without a prefix everything goes, so that has to be said, and cannot be left out.
        prefix = request.query.get("prefix", "")
        if not prefix and "everything" not in request.query:
            raise SettingError("say which prefix to purge, or everything")
        return _json(await asyncio.to_thread(self._control.purge, prefix))


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class _ConnectionWatch:
    """Hangs up on who sends no whole request: aiohttp would wait for the rest of it for ever."""

    def __init__(self) -> None:
        self._waits_since: dict[object, float] = {}
        self._served: set[object] = set()

    @web.middleware
    async def note_request(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """While a request is served, its connection may take its time."""
        connection = request.protocol
        self._served.add(connection)
        try:
            return await handler(request)
        finally:
            self._served.discard(connection)
            self._waits_since[connection] = time.monotonic()

    def hang_up(self, runners: Sequence[web.AppRunner]) -> None:
        """Close the connections that have waited too long; to be called often."""
        now = time.monotonic()
        connections = [
            one for runner in runners if runner.server for one in runner.server.connections
        ]
        self._waits_since = {one: self._waits_since.get(one, now) for one in connections}
        for one in connections:
            if one not in self._served and now - self._waits_since[one] > _REQUEST_SECONDS_MAX:
                one.force_close()


def _as_errors(handler: Handler) -> Handler:
    """Answer 500 with the message and the exit code of an error of ours."""

    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except SnapdError as error:
            event(_logger, logging.WARNING, "request failed", path=request.path, error=error)
            return _json({"error": str(error), "exit_code": error.exit_code}, status=500)

    return answer


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(path) == 0


def _probe(reason: str | None, problems: Sequence[str] = ()) -> web.Response:
    """200 and "ok", or 503 and the reason; each problem is a line of its own after that."""
    lines = [reason or "ok", *problems]
    return web.Response(text="\n".join(lines) + "\n", status=200 if reason is None else 503)


def _json(document: object, status: int = 200) -> web.Response:
    body = msgspec.json.format(msgspec.json.encode(document), indent=2)
    return web.Response(body=body + b"\n", status=status, content_type="application/json")
