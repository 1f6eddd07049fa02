"""`python -m snapd.putter`: a putter with a Mooncake client of its own, as the daemon's child."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from snapd.config import Settings, configure_logging
from snapd.errors import SettingError, SnapdError, StoreUnavailableError
from snapd.putter.native import NativeStore
from snapd.putter.server import PutServer
from snapd.wire.codes import ReturnCode

_LOCAL_BUFFER_BYTES = 16 * 2**20
"""What the native client allocates for itself; staging memory is not taken from it."""


def main() -> int:
    """Serve until standard input ends, which it does when the daemon dies; the exit code.

    Nothing here is worth a clean end: who waits for puts notices the closed connection, and what
    was put is looked up before it counts.
    """
    arguments = _parse()
    configure_logging(Settings(log_format=arguments.log_format, log_level=arguments.log_level))
    try:
        store = _connect(arguments)
        server = PutServer(
            store, Path(arguments.socket), inside=False, group_shared=arguments.group_shared
        )
    except (SnapdError, OSError) as error:
        sys.stderr.write(f"putter: {error}\n")
        return 1
    server.start()
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    threading.Thread(target=_watch_parent, args=(ended,), daemon=True).start()
    while not ended.wait(0.1):
        pass
    server.stop()
    # Mooncake's client may wait for a master that is away when it is closed.
    sys.stderr.flush()
    os._exit(0)


def _watch_parent(ended: threading.Event) -> None:
    while os.read(0, 4096):
        pass
    ended.set()


def _connect(arguments: argparse.Namespace) -> NativeStore:
    """A client without a segment. Raises SettingError, StoreUnavailableError."""
    try:
        native: Any = importlib.import_module("mooncake.store")
    except ImportError as error:
        raise SettingError(
            f"Mooncake's client cannot be imported by {sys.executable}: {error}; install "
            "mooncake-transfer-engine-non-cuda there, or set mooncake_python"
        ) from error
    store = native.MooncakeDistributedStore()
    code = store.setup(
        arguments.local_hostname,
        arguments.metadata,
        0,
        _LOCAL_BUFFER_BYTES,
        arguments.protocol,
        arguments.device,
        arguments.master,
    )
    if code != ReturnCode.OK:
        raise StoreUnavailableError(
            f"Mooncake's client cannot be set up (code {code}): master {arguments.master}, "
            f"metadata server {arguments.metadata}, protocol {arguments.protocol}"
        )
    return NativeStore(store, native.ReplicateConfig)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="snapd.putter")
    for name in ("socket", "master", "metadata", "protocol", "local-hostname"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--device", default="")
    parser.add_argument("--group-shared", action="store_true")
    parser.add_argument("--log-format", default="text")
    parser.add_argument("--log-level", default="info")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
