"""`notify`: tell systemd (or whoever set NOTIFY_SOCKET) how the daemon is."""

from __future__ import annotations

import contextlib
import os
import socket


def notify(state: str) -> None:
    """Send one datagram such as "READY=1"; without NOTIFY_SOCKET, or if nobody listens, nothing.

    The service manager's view is a courtesy: that it cannot be told must not stop a daemon.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):  # the abstract namespace
        address = "\0" + address[1:]
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as datagram,
    ):
        datagram.settimeout(1.0)
        datagram.connect(address)
        datagram.send(state.encode())


def watchdog_seconds() -> float | None:
    """How often to send "WATCHDOG=1": half of what the manager allows; None if it asks for none."""
    allowed = os.environ.get("WATCHDOG_USEC", "")
    meant_for = os.environ.get("WATCHDOG_PID", str(os.getpid()))
    if not allowed.isdigit() or int(allowed) == 0 or meant_for != str(os.getpid()):
        return None
    return int(allowed) / 2e6
