"""Where the daemon's control socket is: HTTP for `snapctl`, and for a store service that ends."""

from __future__ import annotations

import os

CONTROL_SOCKET = "snapd.sock"
"""Its name in the runtime directory."""


def control_socket(runtime_dir: str) -> str:
    """Its path."""
    return os.path.join(runtime_dir, CONTROL_SOCKET)
