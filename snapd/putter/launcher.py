"""`run_store_service`: Mooncake's own store service with a putter inside.

The service is Mooncake's, started by its own `main` with the flags it was given. Only its class is
replaced by one that also listens for the daemon, in the process that has the segments mapped: there
Mooncake copies blocks by itself (`MC_STORE_MEMCPY`), about ten times as fast as over TCP
(docs/decisions/0016).
"""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from snapd.config import Settings, event
from snapd.config.logs import JsonFormatter, TextFormatter
from snapd.errors import SettingError
from snapd.putter.leave import flush_before_leaving
from snapd.putter.native import NativeStore
from snapd.putter.pages import populate_file
from snapd.putter.server import PutServer
from snapd.wire.puts import put_socket

_SERVICE_MODULE = "mooncake.mooncake_store_service"
_CLASS = "MooncakeStoreService"
_HTTP_OK = 200
SHARED_MEMORY = "/dev/shm"  # noqa: S108 - where the service looks for what it is to mount
_logger = logging.getLogger(__name__)


def run_store_service(settings: Settings, arguments: Sequence[str]) -> int:
    """Run Mooncake's store service with these flags until SIGTERM; the exit code.

    Raises SettingError where Mooncake's wheel cannot be imported, and what the service raises.
    """
    # Read when the native library starts a client.
    os.environ.setdefault("MC_STORE_MEMCPY", "1")
    try:
        service: Any = importlib.import_module(_SERVICE_MODULE)
        native: Any = importlib.import_module("mooncake.store")
    except ImportError as error:
        raise SettingError(
            f"Mooncake's store service cannot be imported by {sys.executable}: {error}; "
            "install mooncake-transfer-engine-non-cuda there, and Debian's libibverbs1 "
            "librdmacm1 libnuma1"
        ) from error
    log_beside(settings)
    setattr(service, _CLASS, putting_service(getattr(service, _CLASS), native, settings))
    sys.argv = [_SERVICE_MODULE, *arguments]
    asyncio.run(service.main())
    return 0


def log_beside(settings: Settings) -> None:
    """Our events in our format, and those of Mooncake's service as it writes them."""
    handler = logging.StreamHandler()
    as_json = settings.log_format == "json"
    handler.setFormatter(JsonFormatter() if as_json else TextFormatter())
    ours = logging.getLogger("snapd")
    ours.handlers = [handler]
    ours.propagate = False
    ours.setLevel(settings.log_level.upper())


def putting_service(service: type[Any], native: Any, settings: Settings) -> type[Any]:
    """A subclass of Mooncake's service class that serves puts as long as it serves HTTP.

    A socket that cannot be had is logged and does without: Mooncake's users come first, and the
    daemon then puts through a process of its own.
    """

    class PuttingStoreService(service):  # type: ignore[misc]
        """Mooncake's service and a `PutServer`."""

        puts: PutServer | None = None
        serves = False
        mounted: list[str]

        async def start_http_service(self, port: int = 8080) -> Any:
            """Listen for puts, then for HTTP: whoever finds the service finds the putter."""
            self.mounted = []
            path = Path(put_socket(settings.runtime_dir, port))
            store = NativeStore(self.store, native.ReplicateConfig)
            try:
                self.puts = PutServer(store, path, inside=True, group_shared=settings.group_shared)
            except OSError as error:
                event(_logger, logging.ERROR, "cannot listen for puts", path=path, error=error)
            else:
                self.puts.start()
                event(_logger, logging.INFO, "listening for puts", path=path)
            self.serves = True
            return await super().start_http_service(port)

        async def handle_mount_shm(self, request: Any) -> Any:
            """Mooncake's own, and then the first touches, before anybody waits for them."""
            answer = await super().handle_mount_shm(request)
            if answer.status == _HTTP_OK:
                self.mounted += json.loads(answer.text)["segment_ids"]
                name = (await request.json())["name"]
                populate_file(f"{SHARED_MEMORY}/{name.removeprefix('/')}")
            return answer

        async def stop(self) -> None:
            """Have the daemon write what is new while the master still knows it, and leave.

            The putter ends before that: nothing needs to be put back here any more, and none may
            run in a client that is closed. Between the flush and the unmount is as little time as
            can be: what is put then is lost. Closing the client would take seconds to unmount; and
            as nothing is awaited from here on, nobody can have a file mounted once more.
            """
            if self.puts is not None:
                await asyncio.to_thread(self.puts.stop)
                self.puts = None
            if self.serves:
                self.serves = False
                await flush_before_leaving(settings.runtime_dir, seconds_max=settings.grace_sec)
                for segment_id in self.mounted:  # what is not mounted any more is answered so
                    self.store.unmount_segment([segment_id])
            await super().stop()

    return PuttingStoreService
