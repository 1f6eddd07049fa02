"""Damage on purpose: one byte of a block, in memory or on disk."""

from __future__ import annotations

import random
from pathlib import Path


def flip_in_segment(segment: Path, keys: list[str], rng: random.Random) -> frozenset[int]:
    """Flip one byte of a published block; returns the number of the block that it is."""
    raise NotImplementedError


def flip_in_pack(repository: Path, keys: list[str], rng: random.Random) -> frozenset[int]:
    """Flip one byte of a live block in a pack; returns the number of the block that it is."""
    raise NotImplementedError
