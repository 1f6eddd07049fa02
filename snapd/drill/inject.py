"""Damage on purpose: one byte of a block, in memory or on disk."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np

from snapd.disk import PosixDisk
from snapd.drill.ledger import Ledger
from snapd.drill.look import BlockNames, published_blocks
from snapd.repository import Repository

FLIPPED_BITS = 0xFF


class Damage:
    """What the drill breaks in one scenario, and which blocks that leaves without a good copy."""

    def __init__(
        self, segment: Path, repository: Path, names: BlockNames, rng: random.Random
    ) -> None:
        self._segment = segment
        self._repository = repository
        self._names = names
        self._random = rng
        self._unseen: tuple[int, int] | None = None
        """The block that was damaged under the clients, and the version that it had."""
        self.beyond_repair: set[int] = set()
        """Blocks that the store may lose; others have a copy on disk to come back from."""

    def survivors(self, *, in_memory: bool) -> None:
        """Flip a byte in what survived, before it is read again: in the segment or in a pack.

        With the block in the segment its copy in a pack goes too: neither may stand in for the
        other.
        """
        flipped = flip_in_segment(self._segment, self._names, self._random) if in_memory else None
        on_disk = flip_in_pack(self._repository, self._names, self._random, only=flipped)
        self.beyond_repair.update(block for block in (flipped, on_disk) if block is not None)

    def under_clients(self, ledger: Ledger) -> None:
        """Flip a byte in memory while clients read."""
        flipped = flip_in_segment(self._segment, self._names, self._random)
        if flipped is not None:
            self._unseen = (flipped, int(ledger.acknowledged()[flipped]))

    def again_if_unseen(self, ledger: Ledger) -> None:
        """Flip another byte if the last was written over, perhaps before anybody read it."""
        if self._unseen is not None:
            block, version = self._unseen
            if int(ledger.acknowledged()[block]) == version and ledger.live()[block]:
                return
        self.under_clients(ledger)


def flip_in_segment(segment: Path, names: BlockNames, rng: random.Random) -> int | None:
    """Flip one byte of a published block, also under a running store.

    Returns the block's number; None if nothing is published.
    """
    published = published_blocks(segment, names)
    if not len(published.numbers):
        return None
    pick = rng.randrange(len(published.numbers))
    place = int(published.offsets[pick]) + rng.randrange(int(published.sizes[pick]))
    # Through a mapping: the store and its clients must see it at once, as they see a bad DIMM.
    memory = np.memmap(segment, np.uint8, mode="r+", offset=0)
    memory[place] ^= FLIPPED_BITS
    return int(published.numbers[pick])


def flip_in_pack(
    repository: Path, names: BlockNames, rng: random.Random, only: int | None = None
) -> int | None:
    """Flip one byte of a live block in a pack: of the block `only`, if it is there.

    Returns the block's number; None if nothing is live.
    """
    disk = PosixDisk(repository)
    opened = Repository.open(disk, read_only=True)
    try:
        opened.recover()
        live = opened.catalog.take(opened.catalog.live_rows())
    finally:
        opened.close()
        disk.close()
    numbers = names.numbers(live.keys)
    choice = np.flatnonzero(numbers == only) if only is not None else np.empty(0, np.int64)
    if not len(choice):
        choice = np.flatnonzero(numbers >= 0)
    if not len(choice):
        return None
    row = int(rng.choice(choice.tolist()))
    pack = next((repository / "packs").glob(f"{int(live.pack[row]):010d}-*.pack"))
    place = int(live.pack_offset[row]) + rng.randrange(int(live.stored_size[row]))
    with pack.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ FLIPPED_BITS]))
    return int(numbers[row])
