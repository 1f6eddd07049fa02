"""Pins: blocks that stay where they are while the daemon writes them to disk."""

from __future__ import annotations

import numpy as np

from snapd.blocks.keys import Bools
from snapd.formats.segment import SlotState
from snapd.store.batches import codes_reply, slots_and_sequences
from snapd.store.blocks import BlockStore
from snapd.wire.codes import ReturnCode
from snapd.wire.messages import Codes, PinBlocks, UnpinBlocks


class Pins:
    """A pin is a connection's, and ends with it. In `BlockStore.pin_owner` it is the connection's
    number and 1."""

    def __init__(self, blocks: BlockStore) -> None:
        self._blocks = blocks

    def pin(self, request: PinBlocks, connection: int) -> Codes:
        """Codes: OBJECT_NOT_FOUND for what is not resident any more, OBJECT_ALREADY_EXISTS for what
        another connection has pinned. Raises ProtocolError."""
        rows, sequences = slots_and_sequences(request.slots, request.sequences)
        book, owners = self._blocks.book, self._blocks.pin_owner
        held = book.holds(rows, sequences)
        at = np.where(held, rows, 0)
        held &= book.state[at] == SlotState.PUBLISHED
        mine: Bools = held & ((owners[at] == 0) | (owners[at] == connection + 1))
        owners[rows[mine]] = connection + 1
        codes = np.full(len(rows), ReturnCode.OBJECT_NOT_FOUND, np.int32)
        codes[held] = ReturnCode.OBJECT_ALREADY_EXISTS
        codes[mine] = ReturnCode.OK
        return codes_reply(codes)

    def unpin(self, request: UnpinBlocks, connection: int) -> Codes:
        """Codes: OBJECT_NOT_FOUND for what this connection has not pinned. Raises ProtocolError."""
        rows, sequences = slots_and_sequences(request.slots, request.sequences)
        held = self._blocks.book.holds(rows, sequences)
        mine = held & (self._blocks.pin_owner[np.where(held, rows, 0)] == connection + 1)
        self._blocks.pin_owner[rows[mine]] = 0
        return codes_reply(np.where(mine, ReturnCode.OK, ReturnCode.OBJECT_NOT_FOUND))

    def lost(self, connection: int) -> None:
        """A connection is gone."""
        owners = self._blocks.pin_owner
        owners[owners == connection + 1] = 0
