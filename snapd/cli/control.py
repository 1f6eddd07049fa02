"""`ControlClient`: asks the daemon over HTTP on its Unix socket, with the standard library only."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Mapping
from typing import Any

from snapd.errors import (
    IntegrityError,
    NothingThereError,
    ProtocolError,
    RefusedError,
    SettingError,
    SnapdError,
)
from snapd.wire.control import control_socket

ANSWER_BYTES_MAX = 64 * 2**20
"""Longest answer accepted."""

_ERRORS: dict[int, type[SnapdError]] = {
    kind.exit_code: kind
    for kind in (SnapdError, SettingError, NothingThereError, IntegrityError, RefusedError)
}


class ControlClient:
    """One request a connection; `runtime_dir` holds the daemon's socket."""

    def __init__(self, runtime_dir: str, timeout_seconds: float = 10.0) -> None:
        self._path = control_socket(runtime_dir)
        self._timeout_seconds = timeout_seconds

    def status(self) -> dict[str, Any]:
        """What the daemon says of itself. Raises as `request` does."""
        return self.request("GET", "/status")

    def snapshot(self) -> dict[str, Any]:
        """Commit a snapshot now: `generation`, `blocks`, `bytes_written`, `duration_seconds`.

        Raises as `request` does.
        """
        return self.request("POST", "/snapshot")

    def request(self, method: str, target: str) -> dict[str, Any]:
        """Send a request without a body and return the JSON object that answers it.

        Raises NothingThereError when no daemon listens, ProtocolError when what answers is not the
        daemon, SnapdError at the deadline, and the error that the daemon reports by its exit code.
        """
        connection = _UnixConnection(self._path, self._timeout_seconds)
        try:
            connection.request(method, target, headers={"Host": "snapd"})
            response = connection.getresponse()
            body = response.read(ANSWER_BYTES_MAX + 1)
            if response.length and len(body) <= ANSWER_BYTES_MAX:
                raise http.client.IncompleteRead(body, response.length)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise NothingThereError(
                f"no daemon answers at {self._path}: {error.strerror}; start it with `snapd run`, "
                "or name the right --runtime-dir"
            ) from error
        except TimeoutError as error:
            raise SnapdError(
                f"the daemon at {self._path} did not answer {method} {target} within "
                f"{self._timeout_seconds:g} s; it may still be at work: see its log"
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise SnapdError(f"cannot talk to the daemon at {self._path}: {error}") from error
        finally:
            connection.close()
        answer = self._decode(body)
        if response.status >= 400:
            raise _reported_error(response.status, answer)
        return answer

    def _decode(self, body: bytes) -> dict[str, Any]:
        if len(body) > ANSWER_BYTES_MAX:
            raise ProtocolError(f"answer from {self._path} is over {ANSWER_BYTES_MAX} bytes")
        try:
            answer = json.loads(body)
        except ValueError as error:
            raise ProtocolError(f"answer from {self._path} is not JSON: {error}") from error
        if not isinstance(answer, dict):
            raise ProtocolError(f"answer from {self._path} is not a JSON object")
        return answer


def _reported_error(status: int, answer: Mapping[str, Any]) -> SnapdError:
    """The error that the daemon reported, of the class that has its exit code."""
    kind = _ERRORS.get(answer.get("exit_code", 1), SnapdError)
    return kind(str(answer.get("error", f"the daemon answered HTTP {status}")))


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str, timeout_seconds: float) -> None:
        super().__init__("localhost", timeout=timeout_seconds)
        self._path = path
        self._timeout_seconds = timeout_seconds

    def connect(self) -> None:
        """Connect to the path given."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self.sock.settimeout(self._timeout_seconds)
        self.sock.connect(self._path)
