"""`LoadQueue`: which cold blocks readers wait for, and which of those the daemon was asked for."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

import numpy as np

from snapd.blocks.keys import I64
from snapd.store.waits import Wait

LOADS_MAX = 65_536
"""Most cold blocks waited for; a get that would need more is answered at once."""

WANTED_MAX = 1024
"""Most slots in one answer to the daemon."""


class LoadQueue:
    """First wanted, first loaded; a slot is asked for once, however many readers wait."""

    def __init__(self) -> None:
        self._waiting: dict[int, set[Wait]] = {}
        self._missing: dict[Wait, set[int]] = {}
        self._queue: dict[int, None] = {}
        self._asked: dict[int, int] = {}
        self.on_wanted: Callable[[], None] = lambda: None
        self.on_complete: Callable[[Wait], None] = lambda _wait: None

    def __len__(self) -> int:
        return len(self._waiting)

    def has_room(self, count: int) -> bool:
        """Whether so many more slots may be waited for."""
        return len(self._waiting) + count <= LOADS_MAX

    def want(self, rows: I64, wait: Wait) -> None:
        """`wait` needs these cold slots."""
        slots = rows.tolist()
        self._missing[wait] = set(slots)
        for slot in slots:
            self._waiting.setdefault(slot, set()).add(wait)
            if slot not in self._asked:
                self._queue[slot] = None
        self.on_wanted()

    def take(self, connection: int) -> I64:
        """Slots to load next, for this connection of the daemon; none if nobody waits."""
        slots = list(islice(self._queue, WANTED_MAX))
        for slot in slots:
            del self._queue[slot]
            self._asked[slot] = connection
        return np.array(slots, np.int64)

    def settle(self, rows: I64) -> None:
        """These slots are not cold any more, or their load failed: nobody waits for them."""
        if not self._waiting and not self._asked:
            return
        for slot in rows.tolist():
            self._queue.pop(slot, None)
            self._asked.pop(slot, None)
            for wait in self._waiting.pop(slot, ()):
                missing = self._missing[wait]
                missing.discard(slot)
                if not missing:
                    self.on_complete(wait)

    def leave(self, wait: Wait) -> None:
        """This reader waits no longer; what only it wanted is not asked for any more."""
        for slot in self._missing.pop(wait, ()):
            waiters = self._waiting[slot]
            waiters.discard(wait)
            if not waiters:
                del self._waiting[slot]
                self._queue.pop(slot, None)

    def asker_lost(self, connection: int, filling: I64) -> None:
        """What this connection of the daemon was asked for, or was filling, is asked for again."""
        asked = [slot for slot, asker in self._asked.items() if asker == connection]
        for slot in [*asked, *filling.tolist()]:
            self._asked.pop(slot, None)
            if slot in self._waiting:
                self._queue[slot] = None
        if self._queue:
            self.on_wanted()

    def give_up(self) -> None:
        """The daemon is gone: everybody is answered with what is there."""
        self._queue.clear()
        self._asked.clear()
        for wait in list(self._missing):
            self.on_complete(wait)
