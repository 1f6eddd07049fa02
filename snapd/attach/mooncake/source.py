"""`MooncakeSource`: blocks from the inventory, bytes from our own mapping of the files.

Nothing is asked of the store to read a block, so a flush goes on while it is dead. Values are not
aligned in Mooncake's segments, so they are copied to a private buffer; what is hashed and written
is that copy, whatever happens to the segment meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from snapd.attach.mooncake.attachment import Attachment
from snapd.attach.mooncake.looker import Looker
from snapd.attach.mooncake.memory import hashes_of
from snapd.attach.mooncake.places import NOWHERE, Places
from snapd.attach.port import Scan
from snapd.blocks import BlockTable
from snapd.blocks.keys import I64, Bools
from snapd.blocks.table import F32
from snapd.disk.port import DISK_ALIGNMENT
from snapd.errors import SnapdError
from snapd.repository.files import aligned_buffer


class MooncakeSource:
    """A `Source` of one session; for one thread."""

    def __init__(self, attachment: Attachment, looker: Looker) -> None:
        self._attachment = attachment
        self._inventory = attachment.inventory
        self._looker = looker
        self._admin = attachment.open_admin()
        self._buffer = memoryview(b"")
        self._copies: list[memoryview | None] = []
        self._places = Places.none(0)

    def refresh(self) -> None:
        """Look at the master now, if it answers."""
        try:
            self._looker.look(self._attachment)
        except SnapdError:
            return  # whoever watches the store says so; what is known of it stays true

    def scan(self) -> Scan:
        """Of the inventory; of a session that is over nothing is there, and nothing is gone."""
        with self._inventory.lock:
            if not self._is_current:
                capacity = self._inventory.capacity
                return Scan(np.zeros(capacity, np.uint64), np.zeros(capacity, np.bool_), b"")
            return self._inventory.scan()

    def describe(self, slots: I64) -> BlockTable:
        """From the inventory."""
        with self._inventory.lock:
            return self._inventory.describe(slots) if self._is_current else BlockTable.empty()

    def heat(self, slots: I64) -> F32:
        """Since when a block is there is all that Mooncake tells."""
        return self._inventory.heat(slots)

    @contextmanager
    def pinned(self, table: BlockTable) -> Iterator[Bools]:
        """Nothing is held in place: blocks are copied, and the copies are checked."""
        try:
            yield np.zeros(len(table), np.bool_)
        finally:
            self._copies = []

    def buffers(self, table: BlockTable) -> Sequence[memoryview]:
        """Copies in private memory, aligned; zeros where the block is not there any more."""
        sizes = table.size.astype(np.int64)
        padded = -(-sizes // DISK_ALIGNMENT) * DISK_ALIGNMENT
        ends = np.cumsum(padded)
        total = int(ends[-1]) if len(table) else 0
        if total > len(self._buffer):
            self._buffer = aligned_buffer(total)
        self._places = self._inventory.places(table.slot, table.slot_sequence)
        views = self._attachment.memory.views(self._places)
        self._copies, padded_copies = [], []
        spans = zip((ends - padded).tolist(), ends.tolist(), sizes.tolist(), strict=True)
        for (start, end, size), view in zip(spans, views, strict=True):
            copy = self._buffer[start:end]
            padded_copies.append(copy.toreadonly())
            if view is None or len(view) != size:
                self._copies.append(None)
                continue
            copy[:size] = view
            self._copies.append(copy[:size])
        return padded_copies

    def still(self, table: BlockTable) -> Bools:
        """Whether what was copied has the checksums, the slots hold these versions, and the master,
        if it answers, lists them where they were.

        Without its answer the checksum speaks: it was taken between two looks, and a removal since
        then will be told when the master answers again.
        """
        checksums, there = hashes_of(self._copies)
        good = there & (checksums == table.checksum)
        with self._inventory.lock:
            if not self._is_current:
                return np.zeros(len(table), np.bool_)
            now = self._inventory.places(table.slot, table.slot_sequence)
            same = (now.file != NOWHERE) & (now.file == self._places.file)
            same &= now.offset == self._places.offset
            doubtful = same & ~good
            self._inventory.doubt(table.slot[doubtful], table.slot_sequence[doubtful])
        still: Bools = same & good
        return still & ~self._has_moved(table, now)

    def report_corrupt(self, table: BlockTable) -> None:
        """Have them hashed again: a client may just have written them."""
        self._inventory.doubt(table.slot, table.slot_sequence)

    def close(self) -> None:
        """Close the connection."""
        self._admin.close()

    # --- inside -------------------------------------------------------------------------------

    @property
    def _is_current(self) -> bool:
        return self._inventory.boot_id == self._attachment.boot_id

    def _has_moved(self, table: BlockTable, places: Places) -> Bools:
        """Which blocks the master lists elsewhere, or not any more, in segments that live."""
        layout = self._attachment.layout
        try:
            layout.check(self._admin.segments())
            now = layout.places(self._admin.locate(table.keys, layout.segments))
        except SnapdError:
            return np.zeros(len(table), np.bool_)
        moved: Bools = (now.file != places.file) | (now.offset != places.offset)
        return moved
