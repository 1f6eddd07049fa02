"""`Ledger`: what every block must hold, shared by all clients through one mapped file.

Each block has these versions: `started` (the newest that anybody began to write or remove),
`acknowledged` (the newest that the store said yes to), `removing` and `removed` (the newest removal
begun, and said yes to; a removal takes a version of its own, whose content is absence). A read is
right if it brings a version from what was acknowledged when it began to what was started when it
ended. Bringing nothing is always allowed: it is a cache.

One client at a time writes a block (it *claims* it); everybody reads at any time.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from snapd.drill.content import U32, Bools, next_version

I64 = npt.NDArray[np.int64]
Lock = AbstractContextManager[Any]

_HEADER_WORDS = 16
_COLUMNS = 6


@dataclass(frozen=True, slots=True)
class Claim:
    """Blocks that one client may write now. End it with `Ledger.finish`."""

    blocks: I64
    versions: U32
    """The version of which each must be given the bytes, or that its removal has."""
    life: int
    removal: bool = False
    certain: bool = True
    """An acknowledgement means that the store holds these bytes."""


class Ledger:
    """The columns, uint32 [blocks] each. Readers need no lock: every field is one aligned word."""

    def __init__(self, path: Path, lock: Lock) -> None:
        """Map a ledger that `create` made; `lock` is one for all processes."""
        words = np.memmap(path, np.uint32, mode="r+")
        columns = words[_HEADER_WORDS:].reshape(_COLUMNS, -1)
        self._header = words[:_HEADER_WORDS]
        self._started, self._acknowledged, self._removing, self._removed = columns[:4]
        self._claimed, self._unsure = columns[4:]
        self._lock = lock

    @classmethod
    def create(cls, path: Path, blocks: int, lock: Lock) -> Ledger:
        """A ledger in which nothing was ever written."""
        np.zeros(_HEADER_WORDS + _COLUMNS * blocks, np.uint32).tofile(path)
        return cls(path, lock)

    def __len__(self) -> int:
        return len(self._started)

    def begin_put(self, blocks: I64, writer: int) -> Claim:
        """Claim those of `blocks` (no block twice) that nobody else is writing, for a put.

        A put of a key that is there writes nothing, so a block that may be there is put with the
        bytes it should have already; only one that cannot be there gets a new version.
        """
        with self._lock:
            free = blocks[self._claimed[blocks] == 0]
            live = self._acknowledged[free] > self._removed[free]
            fresh = np.where(
                self._unsure[free] > 0,
                self._started[free],
                next_version(self._started[free], writer),
            )
            versions = np.where(live, self._acknowledged[free], fresh).astype(np.uint32)
            self._started[free] = np.maximum(self._started[free], versions)
            self._claimed[free] = writer + 1
            return Claim(free, versions, self.life, certain=not self._uncertain)

    def begin_upsert(self, blocks: I64, writer: int) -> Claim:
        """Claim those that nobody else is writing, each for a new version."""
        return self._begin_new(blocks, writer, removal=False)

    def begin_remove(self, blocks: I64, writer: int) -> Claim:
        """Claim those that nobody else is writing, each for a removal."""
        return self._begin_new(blocks, writer, removal=True)

    def _begin_new(self, blocks: I64, writer: int, *, removal: bool) -> Claim:
        with self._lock:
            free = blocks[self._claimed[blocks] == 0]
            versions = next_version(self._started[free], writer)
            self._started[free] = versions
            self._claimed[free] = writer + 1
            if removal:
                self._removing[free] = versions
                self._unsure[free] = 0
            return Claim(free, versions, self.life, removal, not self._uncertain)

    def finish(self, claim: Claim, done: Bools) -> None:
        """End a claim; `done` [n] tells which the store acknowledged.

        What it did not acknowledge may or may not have happened: both stay right. The same goes
        for an answer that came over the end of the store's life, since the look at what survived
        (`restart`) has been taken without it, and for one from a time in which an acknowledgement
        says nothing (`set_uncertain`).
        """
        with self._lock:
            if claim.life == self.life and claim.certain and not self._uncertain:
                blocks, versions = claim.blocks[done], claim.versions[done]
                self._acknowledged[blocks] = versions
                if claim.removal:
                    self._removed[blocks] = versions
                else:
                    self._unsure[claim.blocks] = ~done
            elif not claim.removal:
                self._unsure[claim.blocks] = 1
            self._claimed[claim.blocks] = 0

    def set_uncertain(self, *, uncertain: bool) -> None:
        """From now on, what a store says yes to may or may not have been written.

        Mooncake acknowledges the put of a key that is still listed, though the process that held
        its bytes is dead, and writes nothing.
        """
        with self._lock:
            self._header[1] = uncertain

    def set_calm(self, *, calm: bool) -> None:
        """Whether clients shall leave blocks as they are: no rewrite, no removal."""
        self._header[2] = calm

    @property
    def is_calm(self) -> bool:
        """Whether clients shall leave blocks as they are."""
        return bool(self._header[2])

    @property
    def _uncertain(self) -> bool:
        return bool(self._header[1])

    def floor(self, blocks: I64) -> U32:
        """The oldest version that a read of each may bring, taken before the read."""
        floor: U32 = np.asarray(self._acknowledged[blocks])
        return floor

    def is_legal(self, blocks: I64, versions: U32, floor: U32) -> Bools:
        """Whether a read that began at `floor` and has just ended may bring these versions."""
        oldest = np.minimum(floor, self._acknowledged[blocks])
        legal: Bools = (versions >= oldest) & (versions <= self._started[blocks])
        return legal & (versions > 0)

    def acknowledged(self) -> U32:
        """The acknowledged version of every block; compare with `live`."""
        versions: U32 = np.array(self._acknowledged)
        return versions

    def live(self) -> Bools:
        """Which blocks the store has acknowledged and not removed since."""
        live: Bools = self._acknowledged > self._removed
        return live

    def removed_since(self, versions: U32) -> Bools:
        """For every block, whether a removal newer than this version was begun."""
        removed: Bools = self._removing > versions
        return removed

    def undurable_ratio(self, surviving: U32, evicted: Bools) -> float:
        """Of the blocks that the store has acknowledged, the part that did not survive a kill.

        `surviving` uint32 [blocks] is the version found of each, 0 for none. A write without an
        answer may have survived in place of the acknowledged one. Left out are blocks whose
        removal was begun, with an answer or without, and those that the store evicted (`evicted`,
        bool [blocks]) and nobody put again.
        """
        counted = self.live() & ~self.removed_since(self.acknowledged())
        counted &= ~(evicted & (surviving == 0))
        lost = counted & (surviving < self._acknowledged)
        return float(lost.sum() / max(int(counted.sum()), 1))

    @property
    def claims(self) -> int:
        """Blocks that are being written now."""
        return int(np.count_nonzero(self._claimed))

    @property
    def life(self) -> int:
        """How many restarts there have been."""
        return int(self._header[0])

    def restart(self, surviving: U32) -> None:
        """Begin the store's next life, with what a look from outside found to have survived.

        `surviving` uint32 [blocks] is the version found of each block, 0 for none. From now on a
        block holds that version or none: not an older one. Removals are durable before they are
        acknowledged, so those stay.
        """
        with self._lock:
            self._header[0] += 1
            self._acknowledged[:] = np.where(surviving > self._removed, surviving, self._removed)
            self._started[:] = np.maximum(self._started, surviving)
            self._unsure[:] = 0
