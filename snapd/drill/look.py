"""Looks from outside: what a kill left behind, read without asking store or daemon."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from snapd.blocks import KeyColumn
from snapd.disk import DISK_ALIGNMENT, PosixDisk
from snapd.drill.content import I64, U8, U32, U64, Bools, stamped_versions, wrong_bytes
from snapd.formats.segment import DATA_UNIT_BYTES, HEADER_BYTES, SlotState, decode_header
from snapd.repository import Repository
from snapd.segment import SegmentView

LOOK_BLOCKS = 256
"""Blocks that are read at a time."""

Rows = npt.NDArray[np.integer]


class BlockNames:
    """The drill's blocks by their keys."""

    def __init__(self, keys: Sequence[str], hashes: U64) -> None:
        self.hashes = hashes
        self._numbers = {key.encode(): number for number, key in enumerate(keys)}

    def __len__(self) -> int:
        return len(self._numbers)

    def numbers(self, keys: KeyColumn) -> I64:
        """The number of each block, int64 [n]; -1 for a key that is none of the drill's."""
        found = (self._numbers.get(key, -1) for key in keys.to_list())
        return np.fromiter(found, np.int64, len(keys))

    def marked(self, keys: Iterable[str]) -> Bools:
        """Which blocks are among these keys, bool [names]."""
        numbers = (self._numbers.get(key.encode()) for key in keys)
        marks = np.zeros(len(self), np.bool_)
        marks[[number for number in numbers if number is not None]] = True
        return marks

    def versions_in(self, numbers: I64, blocks: U8) -> U32:
        """The version that whole bytes of each block have, uint32 [n]; 0 where they are wrong."""
        versions = stamped_versions(blocks)
        wrong = wrong_bytes(blocks, self.hashes[numbers], versions)
        right: U32 = np.where(wrong == 0, versions, 0).astype(np.uint32)
        return right


@dataclass(frozen=True, slots=True)
class Published:
    """n published blocks of a segment, each the newest of its key."""

    numbers: I64
    offsets: I64
    """Where their bytes are in the segment file."""
    sizes: I64


def newest_manifest_at(repository: Path) -> float | None:
    """When the newest manifest was committed (seconds of the system's clock); None if none was."""
    manifests = repository / "manifests"
    if not manifests.is_dir():
        return None
    times = [path.stat().st_mtime for path in manifests.glob("*.manifest")]
    return max(times, default=None)


def repository_versions(repository: Path, names: BlockNames, block_bytes: int) -> U32:
    """The version of each block that recovery finds in the repository, uint32 [names]; 0 is none.

    Every byte is read and compared. Nothing is changed: the repository is opened for reading.
    """
    versions = np.zeros(len(names), np.uint32)
    padded = -(-block_bytes // DISK_ALIGNMENT) * DISK_ALIGNMENT
    # Mapped, because direct reads go to page-aligned memory.
    room: U8 = np.frombuffer(mmap.mmap(-1, LOOK_BLOCKS * padded), np.uint8).reshape(-1, padded)
    disk = PosixDisk(repository)
    opened = Repository.open(disk, read_only=True)
    try:
        opened.recover()
        rows = opened.catalog.live_rows()
        numbers = names.numbers(opened.catalog.take(rows).keys)
        rows, numbers = rows[numbers >= 0], numbers[numbers >= 0]
        for first in range(0, len(rows), LOOK_BLOCKS):
            part, those = rows[first : first + LOOK_BLOCKS], numbers[first : first + LOOK_BLOCKS]
            blocks = room[: len(part)]
            good = opened.read(part, [block.data for block in blocks])
            found = names.versions_in(those, blocks[:, :block_bytes])
            versions[those] = np.where(good, found, 0)
    finally:
        opened.close()
        disk.close()
    return versions


def segment_versions(segment: Path, names: BlockNames, block_bytes: int) -> U32:
    """The version of each block that is published in the segment, uint32 [names]; 0 is none.

    For a segment whose store is dead. Every byte is read and compared.
    """
    versions = np.zeros(len(names), np.uint32)
    published = published_blocks(segment, names)
    with segment.open("rb") as file:
        pages = np.memmap(file, np.uint8, mode="r").reshape(-1, DATA_UNIT_BYTES)
        for first in range(0, len(published.numbers), LOOK_BLOCKS):
            numbers = published.numbers[first : first + LOOK_BLOCKS]
            offsets = published.offsets[first : first + LOOK_BLOCKS]
            length = np.arange(-(-block_bytes // DATA_UNIT_BYTES))
            blocks: U8 = pages[offsets[:, None] // DATA_UNIT_BYTES + length]
            blocks = blocks.reshape(len(numbers), -1)[:, :block_bytes]
            versions[numbers] = names.versions_in(numbers, blocks)
    return versions


def published_blocks(segment: Path, names: BlockNames) -> Published:
    """Published blocks whose key has no newer slot, such as a removal. Raises SegmentError or
    CorruptError when the file is no segment."""
    with segment.open("rb") as file:
        geometry = decode_header(file.read(HEADER_BYTES))
    view = SegmentView(str(segment), geometry.segment_id)
    try:
        slots, whole = view.read_slots()
        served = whole & (slots["epoch"] >= view.epoch)
        served &= np.isin(slots["state"], (SlotState.PUBLISHED, SlotState.COLD, SlotState.REMOVED))
        slots, keys, good = view.read_blocks(np.flatnonzero(served))
    finally:
        view.close()
    numbers = np.where(good, names.numbers(keys), -1)
    by_age = np.argsort(slots["sequence"], kind="stable")
    newest = np.full(len(names), -1)
    known = by_age[numbers[by_age] >= 0]
    newest[numbers[known]] = known
    rows = newest[newest >= 0]
    rows = rows[slots["state"][rows] == SlotState.PUBLISHED]
    starts = slots["extent"][rows].astype(np.int64) * DATA_UNIT_BYTES + geometry.data_offset
    return Published(numbers[rows], starts, slots["size"][rows].astype(np.int64))


def evicted_keys(event_log: Path) -> frozenset[str]:
    """Keys that the store logged as evicted (`evict KEY`, one a line); a missing log has none."""
    if not event_log.exists():
        return frozenset()
    with event_log.open(encoding="ascii") as lines:
        words = (line.split() for line in lines)
        return frozenset(word[1] for word in words if len(word) == 2 and word[0] == "evict")
