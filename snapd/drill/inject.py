"""Damage on purpose: one byte of a block, in memory or on disk."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np

from snapd.disk import PosixDisk
from snapd.drill.look import BlockNames, published_blocks
from snapd.repository import Repository

FLIPPED_BITS = 0xFF


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
        live = opened.catalog.take(opened.catalog.live)
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
