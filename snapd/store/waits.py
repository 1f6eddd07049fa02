"""Replies that come later: long polls, gets of cold blocks, removals that wait for the daemon."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from snapd.wire.messages import Reply


@dataclass(eq=False, slots=True)
class Wait:
    """One request whose reply is `finish(now)`, made when it is resolved or at its deadline."""

    connection: int
    deadline: float
    finish: Callable[[float], Reply]
    abandon: Callable[[], None]
    """Called instead when the connection is gone."""


class Waits:
    """At most one wait for each connection, since it sends one request at a time."""

    def __init__(self) -> None:
        self._waiting: dict[int, Wait] = {}
        self._resolved: deque[Wait] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, wait: Wait) -> Wait:
        """Put a request off."""
        self._waiting[wait.connection] = wait
        return wait

    def resolve(self, wait: Wait) -> None:
        """The reply can be made now. Without effect if it was made already."""
        if self._waiting.get(wait.connection) is wait:
            del self._waiting[wait.connection]
            self._resolved.append(wait)

    def lost(self, connection: int) -> None:
        """Nobody waits on this connection any more."""
        wait = self._waiting.pop(connection, None)
        gone = [w for w in self._resolved if w.connection == connection]
        self._resolved = deque(w for w in self._resolved if w.connection != connection)
        for abandoned in gone if wait is None else [*gone, wait]:
            abandoned.abandon()

    def next_deadline(self) -> float | None:
        """The earliest deadline, on the engine's clock."""
        return min((wait.deadline for wait in self._waiting.values()), default=None)

    def due(self, now: float) -> list[tuple[int, Reply]]:
        """(connection, reply) of everything resolved or past its deadline."""
        for wait in [w for w in self._waiting.values() if w.deadline <= now]:
            self.resolve(wait)
        replies: list[tuple[int, Reply]] = []
        while self._resolved:  # a reply may resolve further waits
            wait = self._resolved.popleft()
            replies.append((wait.connection, wait.finish(now)))
        return replies


class Polls:
    """Long polls of one kind: several connections may ask, one of them is answered."""

    def __init__(self, waits: Waits) -> None:
        self._waits = waits
        self._polls: list[Wait] = []

    def add(self, connection: int, deadline: float, finish: Callable[[float], Reply]) -> None:
        """Wait until `wake` or the deadline; `finish(now)` makes the reply."""

        def leave() -> None:
            if wait in self._polls:
                self._polls.remove(wait)

        def finished(now: float) -> Reply:
            leave()
            return finish(now)

        wait = self._waits.add(Wait(connection, deadline, finished, leave))
        self._polls.append(wait)

    def wake(self) -> None:
        """There is something for one of those who poll."""
        if self._polls:
            self._waits.resolve(self._polls[0])
