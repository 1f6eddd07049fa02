"""`StoreService`: the HTTP side of one Mooncake store service, which mounts our files."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import msgspec

from snapd.attach.mooncake.http import Answer, HttpPeer, one_line
from snapd.errors import SegmentError, StoreUnavailableError

_MASTER_CALLS = 8
"""Calls in a row that must succeed; the client takes its connections in turns."""
_BODY_BYTES_MAX = 1 << 20
_SEGMENT_IDS_MAX = 4096
SegmentId = Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,20}-[0-9]{1,20}$")]
_SegmentIds = Annotated[
    tuple[SegmentId, ...], msgspec.Meta(min_length=1, max_length=_SEGMENT_IDS_MAX)
]


@dataclass(frozen=True, slots=True)
class Mounted:
    """What a mount made: one file may become several segments."""

    segment_ids: tuple[str, ...]


class _MountAnswer(msgspec.Struct):
    status: str
    segment_ids: _SegmentIds


class _ErrorAnswer(msgspec.Struct):
    error: str


class StoreService:
    """One store service. Not safe for use by two threads at once."""

    def __init__(self, url: str, *, timeout_seconds: float = 10.0) -> None:
        """`url` is http://host:port; nothing is asked yet."""
        self.url = url.rstrip("/")
        self._timeout_seconds = timeout_seconds
        self._peer = HttpPeer(
            "the Mooncake store service",
            self.url,
            "check that mooncake_store_service runs, and that mooncake_stores names its --port",
        )

    def alive(self) -> bool:
        """Whether it answers at all, within the deadline. Never raises."""
        try:
            # It has no page at its root, and says so without asking the master anything.
            self._peer.ask(
                "GET",
                "/",
                question="GET /",
                timeout_seconds=self._timeout_seconds,
                body_bytes_max=_BODY_BYTES_MAX,
            )
        except StoreUnavailableError:
            return False
        return True

    def reaches_master(self) -> bool:
        """Whether its client reaches the master, on each of the connections that it keeps. Raises
        StoreUnavailableError when it does not answer itself.

        After a restart of the master the first call on an old connection fails. A mount that fails
        so leaves the memory registered in Mooncake's transfer engine and unmaps it: the next one
        gets the same address, and is refused for as long as the service lives.
        """
        # The existence of a key that is there would grant a lease; nobody has this one.
        target = f"/api/exist/snapd-{secrets.token_hex(8)}"
        return all(
            self._peer.ask(
                "GET",
                target,
                question=f"GET {target}",
                timeout_seconds=self._timeout_seconds,
                body_bytes_max=_BODY_BYTES_MAX,
            ).status
            == 200
            for _ in range(_MASTER_CALLS)
        )

    def mount(self, name: str, size_bytes: int) -> Mounted:
        """Mount the first `size_bytes` of the file `name` in /dev/shm as segments.

        Raises SegmentError when the service refuses, StoreUnavailableError when it does not answer
        (it may have mounted the file or not: that file must not be mounted again), ProtocolError
        when its answer cannot be used or it is too old to have the call.
        """
        question = f"POST /api/mount_shm of {name}"
        answer = self._post("/api/mount_shm", question, {"name": name, "size": size_bytes})
        if answer.status == 404:
            raise self._peer.outdated(question)
        if answer.status != 200:
            raise SegmentError(
                f"{self._peer.label} refused to mount /dev/shm/{name} of {size_bytes} bytes "
                f"(HTTP {answer.status}, {self._reason(answer)}): check that it has the same "
                f"directory there and may open files of this user; its log says more"
            )
        return Mounted(self._decode(answer, _MountAnswer, question).segment_ids)

    def unmount(self, segment_ids: Sequence[str]) -> None:
        """Unmount segments, one by one: the master drops their keys at once.

        Raises SegmentError when the service refuses at least one, which it also does where one is
        not mounted any more, and otherwise as `mount`.
        """
        question = f"POST /api/unmount_shm of {', '.join(segment_ids)}"
        answer = self._post("/api/unmount_shm", question, {"segment_ids": list(segment_ids)})
        if answer.status != 200:
            raise SegmentError(
                f"{self._peer.label} refused to unmount {', '.join(segment_ids)} "
                f"(HTTP {answer.status}, {self._reason(answer)}); its log says more"
            )

    def close(self) -> None:
        """Close the connection; idempotent."""
        self._peer.close()

    def _post(self, target: str, question: str, request: object) -> Answer:
        return self._peer.ask(
            "POST",
            target,
            question=question,
            timeout_seconds=self._timeout_seconds,
            body_bytes_max=_BODY_BYTES_MAX,
            body=msgspec.json.encode(request),
        )

    def _decode(self, answer: Answer, kind: type[_MountAnswer], question: str) -> _MountAnswer:
        try:
            return msgspec.json.decode(answer.body, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise self._peer.nonsense(question, f"{error} in {answer.excerpt()}") from error

    @staticmethod
    def _reason(answer: Answer) -> str:
        try:
            return one_line(msgspec.json.decode(answer.body, type=_ErrorAnswer).error)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return answer.excerpt()
