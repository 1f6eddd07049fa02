"""`Looker`: when to look at the master, for whoever wants to know what is in the store."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, fields
from typing import Protocol

from snapd.attach.mooncake.attachment import Attachment
from snapd.attach.mooncake.counters import Counters
from snapd.attach.mooncake.life import Activity
from snapd.attach.mooncake.poll import Look, Poll
from snapd.plans.listing import seconds_to_next_look

_AMBIGUOUS_SECONDS = 0.25
"""Until the next look where a dead segment was in the way."""


class LookObserver(Protocol):
    """Who counts; see `snapd.metrics.Metrics`."""

    def looked(self, look: Look) -> None:
        """A look ended well."""


@dataclass
class LookTotals:
    """Sums over all looks of this daemon."""

    looks: int = 0
    new: int = 0
    rewritten: int = 0
    vanished: int = 0
    hashed_bytes: int = 0
    moved: int = 0
    in_doubt: int = 0

    def add(self, look: Look) -> None:
        """One more."""
        self.looks += 1
        for one in fields(self):
            if one.name != "looks":
                setattr(self, one.name, getattr(self, one.name) + getattr(look, one.name))


class Looker:
    """Looks one at a time, from any thread."""

    def __init__(self, poll: Poll, poll_seconds: float, observer: LookObserver) -> None:
        self._poll = poll
        self._poll_seconds = poll_seconds
        self._observer = observer
        self._looking = threading.Lock()
        self._wake = threading.Condition()
        self._due_at = 0.0
        self._is_poked = False
        self.last = Look()
        """The last look that asked for keys."""
        self.totals = LookTotals()

    def look(self, attachment: Attachment) -> Look:
        """Look now. Raises StoreUnavailableError when the session is over or the master does not
        answer, ProtocolError."""
        with self._looking:
            started = time.monotonic()
            with self._wake:
                self._is_poked = False
            attachment.check_current()
            try:
                look = self._poll.look(attachment.layout, attachment.dead)
            finally:
                seconds = time.monotonic() - started
                wait = seconds_to_next_look(self._poll_seconds, seconds)
                self._due_at = time.monotonic() + wait
            if look.is_ambiguous:
                self._due_at = time.monotonic() + min(wait, _AMBIGUOUS_SECONDS)
            if look.listed:
                self.last = look
            self.totals.add(look)
            self._observer.looked(look)
            return look

    def look_if_due(self, attachment: Attachment, wait_seconds: float) -> None:
        """Wait until a look is due, at most so long, and look if it is. Raises as `look` does."""
        deadline = time.monotonic() + wait_seconds
        with self._wake:
            while not self._is_due():
                left = min(deadline, self._due_at) - time.monotonic()
                if left <= 0 and time.monotonic() >= deadline:
                    return
                self._wake.wait(max(0.0, left))
        self.look(attachment)

    def watch(self, now: Counters) -> None:
        """Counters that somebody saw: what may not stay unnoticed has a look taken at once."""
        baseline = self._poll.baseline
        if baseline is None:
            return
        activity = Activity(baseline, now)
        if activity.may_have_removed or activity.may_have_removed_unseen:
            with self._wake:
                self._is_poked = True
                self._wake.notify_all()

    def _is_due(self) -> bool:
        return self._is_poked or time.monotonic() >= self._due_at
