"""`ProcessWatch`: notices the end of a process by a connection to it that is never used.

Who only asks whether somebody listens does not notice a process that ended and was started again in
between. An open connection ends with the process that accepted it. Servers end idle connections,
too: so it is replaced long before that, and one that was left alone for too long says nothing.
"""

from __future__ import annotations

import contextlib
import socket
import time
from urllib.parse import urlsplit

_CONNECT_SECONDS_MAX = 1.0
_REPLACE_SECONDS = 20.0
"""A server that ends idle connections sooner than this after the last look is not to be had:
aiohttp does after 75 s or an hour."""
_TRUST_SECONDS = 60.0


class ProcessWatch:
    """Of the process that listens at a URL. For one thread."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._address = (parts.hostname or "127.0.0.1", parts.port or 80)
        self._line: socket.socket | None = None
        self._since = 0.0
        self._ended = False

    def begin(self) -> None:
        """From now on it is the process that listens now. Where none does, `has_ended` says so."""
        self.close()
        self._ended = False
        with contextlib.suppress(OSError):
            self._line, self._since = self._connect(), time.monotonic()

    def has_ended(self) -> bool:
        """Whether the process is gone, even if another one listens; until the next `begin`. A
        process that only hangs does not count: the master forgets its segments when it does not
        come back."""
        self._ended = self._ended or self._look()
        return self._ended

    def _look(self) -> bool:
        age = time.monotonic() - self._since
        if self._line is not None and _is_at_end(self._line):
            self.close()
            if age < _TRUST_SECONDS:
                return True
        if self._line is not None and age < _REPLACE_SECONDS:
            return False
        try:
            line = self._connect()
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
        # If the old one is open after that, both are of the same process.
        ended = self._line is not None and _is_at_end(self._line)
        self.close()
        self._line, self._since = line, time.monotonic()
        return ended

    def close(self) -> None:
        """Close the connection; idempotent."""
        if self._line is not None:
            self._line.close()
            self._line = None

    def _connect(self) -> socket.socket:
        line = socket.create_connection(self._address, _CONNECT_SECONDS_MAX)
        line.settimeout(0.0)
        return line


def _is_at_end(line: socket.socket) -> bool:
    try:
        return line.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
