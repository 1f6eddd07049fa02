"""`Looker`: when to look at the master, for whoever wants to know what is in the store."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Protocol

from snapd.attach.mooncake.attachment import Attachment
from snapd.attach.mooncake.counters import Counters
from snapd.attach.mooncake.life import Activity
from snapd.attach.mooncake.poll import Look, Poll
from snapd.blocks.keys import I64
from snapd.config import event
from snapd.errors import StoreUnavailableError
from snapd.plans.listing import seconds_to_next_look

_POKED_SHARE = 2.0
"""A look that is taken out of turn, because of a removal, waits for so many times the length of the
one before: somebody may remove keys all the time."""

_AMBIGUOUS_SECONDS = 0.25
"""Until the next look where a dead segment was in the way."""
_logger = logging.getLogger(__name__)


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
        self._poked_at = 0.0
        self._is_poked = False
        self._is_held = False
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
            if self._is_held:
                raise StoreUnavailableError("segments died: the session is over")
            try:
                look = self._poll.look(attachment.layout, attachment.dead)
            finally:
                seconds = time.monotonic() - started
                wait = seconds_to_next_look(self._poll_seconds, seconds)
                self._due_at = time.monotonic() + wait
                self._poked_at = time.monotonic() + min(wait, _POKED_SHARE * seconds)
            if look.is_ambiguous:
                self._due_at = time.monotonic() + min(wait, _AMBIGUOUS_SECONDS)
            if look.listed:
                self._tell_limits(look)
                self.last = look
            self.totals.add(look)
            self._observer.looked(look)
            return look

    def look_if_due(self, attachment: Attachment, wait_seconds: float) -> None:
        """Wait until a look is due, at most so long, and look if it is. Raises as `look` does."""
        deadline = time.monotonic() + wait_seconds
        with self._wake:
            while (due_at := self._next_at()) > (now := time.monotonic()):
                if now >= deadline:
                    return
                self._wake.wait(min(deadline, due_at) - now)
        self.look(attachment)

    def end_segments(self, files: I64, dead: Mapping[str, int]) -> int:
        """See `Poll.end_segments`. No look is taken after this until `begin_session`: what died is
        still in the inventory, and would seem to have vanished."""
        with self._looking:
            self._is_held = True
            return self._poll.end_segments(files, dead)

    def end_life(self, files: I64, last: Counters) -> int:
        """See `Poll.end_life`; what is counted in the next life counts from its birth. No look is
        taken after this until `begin_session`."""
        with self._looking:
            self._is_held = True
            dropped = self._poll.end_life(files, last)
            self._poll.begin_life(Counters.at_birth(), known=True)
            return dropped

    def begin_session(self) -> None:
        """The inventory is of the new session."""
        with self._looking:
            self._is_held = False

    def durable_counters(self) -> Counters | None:
        """The counters that everything durable accounts for; None while something is not."""
        with self._looking:
            return self._poll.baseline if self._poll.inventory.changes.is_empty else None

    def settled(self) -> Counters | None:
        """The counters of the last look, whose consequences are drawn, from before its listing;
        None between sessions."""
        return None if self._is_held else self._poll.recent

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

    def _tell_limits(self, look: Look) -> None:
        """Log what is not saved when it begins, not at every look."""
        if look.unlistable and not self.last.unlistable:
            event(
                _logger,
                logging.WARNING,
                "keys that are empty, too long, not UTF-8, or contain a comma or line feed cannot "
                "be saved",
                keys=look.unlistable,
            )
        if look.without_slot and not self.last.without_slot:
            event(
                _logger,
                logging.WARNING,
                "too few slots for all blocks of the store: set segment_blocks_max higher",
                blocks=look.without_slot,
            )

    def _next_at(self) -> float:
        return self._poked_at if self._is_poked else self._due_at
