"""`RemovalAnswers`: who removed or replaced is answered when the disk knows of it."""

from __future__ import annotations

import logging

from snapd.config import event
from snapd.store.daemon import DaemonSession
from snapd.store.events import EventQueue
from snapd.store.waits import Wait, Waits
from snapd.wire.messages import Reply

REMOVAL_ACK_SECONDS = 5.0
"""So long a removal waits for the daemon before it is answered that it may not last."""
REMOVAL_ACK_LATE_SECONDS = 0.2
"""So long while the daemon is known to be late: a disk that does not work must not cost each caller
the full time. It is enough for a daemon that works again to be noticed."""

_LOG = logging.getLogger(__name__)


class RemovalAnswers:
    """Replies that wait for the daemon to acknowledge events.

    Past the deadline the answer is the one of failure: the removal stands in memory and stays
    pending, but nobody was told that it lasts. Without a daemon what lies in the segment counts as
    kept; what no slot holds does not.
    """

    def __init__(self, waits: Waits, daemon: DaemonSession, events: EventQueue) -> None:
        self._waits = waits
        self._daemon = daemon
        self._events = events
        self._waiting: list[tuple[int, Wait]] = []
        self._acknowledged = 0

    def when_durable(
        self, connection: int, reply: Reply, failed: Reply, before: int, now: float
    ) -> Reply | None:
        """`reply` now, if no events were posted since `before`; else None, and it comes once the
        daemon has acknowledged them, or `failed` when it does not in time."""
        ordinal = self._events.posted
        if not self._daemon.listening or ordinal == before:
            return reply
        in_memory_only = self._events.slotless_last > before

        def leave() -> None:
            self._waiting.remove((ordinal, wait))

        def finish(_: float) -> Reply:
            leave()
            if self._events.acknowledged >= ordinal:
                return reply
            if not self._daemon.listening:
                return failed if in_memory_only else reply
            self._note_late()
            return failed

        seconds = REMOVAL_ACK_LATE_SECONDS if self._daemon.late else REMOVAL_ACK_SECONDS
        wait = self._waits.add(Wait(connection, now + seconds, finish, leave))
        self._waiting.append((ordinal, wait))
        return None

    def acknowledged(self) -> None:
        """The daemon has taken a step, perhaps: answer whom that concerns."""
        done = self._events.acknowledged
        if done > self._acknowledged and self._daemon.late:
            self._daemon.late = False
            event(_LOG, logging.INFO, "daemon journals removals again")
        self._acknowledged = done
        self._resolve(done)

    def daemon_gone(self) -> None:
        """Nobody is waited for any more."""
        self._resolve(self._events.posted)

    def _resolve(self, through: int) -> None:
        for ordinal, wait in self._waiting:
            if ordinal <= through:
                self._waits.resolve(wait)

    def _note_late(self) -> None:
        if not self._daemon.late:
            self._daemon.late = True
            event(
                _LOG,
                logging.WARNING,
                "removals are not durable in time; they are answered with an error until they are",
            )
