"""Who is at the other end of a Unix socket, by the kernel's word."""

from __future__ import annotations

import os
import socket
import struct
from dataclasses import dataclass

_CREDENTIALS = struct.Struct("@iII")
_SO_PEERGROUPS = 59
"""Linux 4.13; not named by the socket module."""

_GROUPS_MAX = 256
"""As many as `getsockopt` has room for; a process in more of them is known by its first group."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A process as it was when it connected. A process of another PID namespace is 0."""

    process: int
    user: int
    group: int


def peer_of(connected: socket.socket) -> Peer:
    """Raises OSError unless it is a connected Unix socket."""
    raw = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return Peer(*_CREDENTIALS.unpack(raw))


def refusal_of_peer(connected: socket.socket, *, group_shared: bool) -> str | None:
    """Why this peer may not be served; None for root, our own user and, where the socket is
    shared with a group, processes of our group.

    The mode of a socket's file says the same; this also holds where somebody has changed it.
    Raises OSError unless it is a connected Unix socket.
    """
    peer = peer_of(connected)
    if peer.user in (0, os.geteuid()):
        return None
    if group_shared and os.getegid() in (peer.group, *_groups(connected)):
        return None
    whom = f"user {os.geteuid()}" + (f" and group {os.getegid()}" if group_shared else "")
    return f"user {peer.user} is refused: this socket serves {whom} (setting group_shared)"


def _groups(connected: socket.socket) -> tuple[int, ...]:
    """Supplementary groups of the peer; none where the kernel does not tell."""
    try:
        raw = connected.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 4 * _GROUPS_MAX)
    except OSError:
        return ()
    return struct.unpack(f"@{len(raw) // 4}I", raw[: len(raw) // 4 * 4])
