"""`DaemonSession`: the one daemon that may be attached, over several connections."""

from __future__ import annotations

import numpy as np

from snapd.blocks.keys import I64, Bools
from snapd.formats.segment import SlotState
from snapd.store.blocks import BlockStore


class DaemonSession:
    """Who is attached, and whether cold blocks are served.

    `generation` numbers the daemons of this store's life, so that a cold block which the daemon
    before registered is not served on the word of the present one.
    """

    def __init__(self, blocks: BlockStore) -> None:
        self._blocks = blocks
        self._daemon_id = b""
        self._connections: set[int] = set()
        self._cold_ready = False
        self.generation = 0
        self.offloads = False
        """Whether blocks that it has on disk stay, cold, when they are evicted: the SSD tier. It
        holds while the daemon is away, too: the next one registers them, or they go."""
        self.listening = False
        """Whether it takes events, so that removals wait for it."""
        self.late = False
        """Whether it did not make the last removals durable in time."""

    @property
    def attached(self) -> bool:
        """Whether a daemon is attached."""
        return bool(self._connections)

    @property
    def serves_cold(self) -> bool:
        """Whether cold blocks can be loaded now."""
        return self.attached and self._cold_ready

    def serves(self, rows: I64) -> Bools:
        """Which of these slots (-1 is none) are served: published, or cold and loadable."""
        state = self._blocks.book.state[np.where(rows >= 0, rows, 0)]
        served: Bools = state == SlotState.PUBLISHED
        if self.serves_cold:
            served |= state == SlotState.COLD
        return served & (rows >= 0)

    def attach(self, daemon_id: bytes, connection: int) -> bool | None:
        """Attach a connection. None if another daemon is attached, else whether this one is new:
        then everything cold has to be registered again before it is served."""
        if self._connections and daemon_id != self._daemon_id:
            return None
        is_new = daemon_id != self._daemon_id
        if is_new:
            self._daemon_id = daemon_id
            self.generation += 1
            self._cold_ready = self.offloads = False
            self.listening = self.late = False
        self._connections.add(connection)
        return is_new

    def is_attached(self, connection: int) -> bool:
        """Whether this is one of the daemon's connections."""
        return connection in self._connections

    def detach(self, connection: int) -> bool:
        """A connection is gone; True if it was the daemon's last one."""
        if connection not in self._connections:
            return False
        self._connections.remove(connection)
        if self._connections:
            return False
        self.listening = self.late = False
        return True

    def ready(self, *, offloads: bool) -> I64:
        """All cold blocks are registered. Returns the cold slots that were not: to be dropped."""
        self._cold_ready, self.offloads = True, offloads
        cold = np.flatnonzero(self._blocks.book.state == SlotState.COLD)
        stale: I64 = cold[self._blocks.durable[cold] != self.generation]
        return stale

    def awaits_disk(self) -> Bools | None:
        """Which slots' blocks would be lost by an eviction and will not be once they are on disk,
        bool [slots]; None without an SSD tier."""
        if not (self.offloads and self.attached):
            return None
        result: Bools = self._blocks.durable != self.generation
        return result

    def outlives_eviction(self, rows: I64) -> Bools:
        """Which of these published slots' blocks can be read from disk afterwards, bool [n]."""
        durable: Bools = self._blocks.durable[rows] == self.generation
        return durable if self.offloads else np.zeros(len(rows), np.bool_)
