"""`NativeStore`: the part of Mooncake's Python client that a putter uses, failures as codes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from snapd.blocks import KeyColumn
from snapd.blocks.keys import U64
from snapd.config import event
from snapd.wire.codes import ReturnCode

I32 = npt.NDArray[np.int32]

_CALL_BLOCKS_MAX = 512
_CALL_BYTES_MAX = 8 * 2**20
"""Blocks and bytes in one native call: enough to pay for its round trips to the master, little
enough that a caller who goes away is not worked for much longer."""

_logger = logging.getLogger(__name__)


class NativeStore:
    """Around a `mooncake.store.MooncakeDistributedStore` that is set up.

    Safe for several threads, as the native client is. Whatever it raises becomes INTERNAL_ERROR of
    the blocks of that call, and one log line.
    """

    def __init__(self, store: Any, new_configuration: Callable[[], Any]) -> None:
        """`new_configuration` makes a `ReplicateConfig`."""
        self._store = store
        self._new_configuration = new_configuration

    def register(self, address: int, size_bytes: int) -> int:
        """Have the client know this memory; its code."""
        return int(self._call(1, lambda: [self._store.register_buffer(address, size_bytes)])[0])

    def unregister(self, address: int) -> int:
        """End `register`; its code."""
        return int(self._call(1, lambda: [self._store.unregister_buffer(address)])[0])

    def put(
        self,
        keys: KeyColumn,
        addresses: U64,
        sizes: U64,
        segment: str,
        *,
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> I32:
        """Put blocks, where they can be into the segment of this endpoint; codes int32 [n].

        A key that exists already is answered 0 and left alone. Before each native call `is_wanted`
        is asked whether anybody still wants it; if not, the rest is INTERNAL_ERROR.
        """
        codes = np.full(len(keys), ReturnCode.INTERNAL_ERROR, np.int32)
        names, starts, lengths = keys.to_list(), addresses.tolist(), sizes.tolist()
        first = 0
        while first < len(names) and is_wanted():
            end, held = first + 1, lengths[first]
            while (
                end < len(names)
                and end - first < _CALL_BLOCKS_MAX
                and held + lengths[end] <= _CALL_BYTES_MAX
            ):
                held += lengths[end]
                end += 1
            part = slice(first, end)
            codes[part] = self._put(names[part], starts[part], lengths[part], segment)
            first = end
        return codes

    def remove(self, keys: KeyColumn) -> I32:
        """Remove keys on which nobody holds a lease; codes int32 [n]."""
        names = keys.to_list()
        return self._call(len(names), lambda: self._store.batch_remove(names, force=False))

    def _put(self, names: list[bytes], starts: list[int], lengths: list[int], segment: str) -> I32:
        def call() -> Any:
            configuration = self._new_configuration()
            configuration.replica_num = 1
            if segment:
                configuration.preferred_segment = segment
            return self._store.batch_put_from(names, starts, lengths, configuration)

        return self._call(len(names), call)

    def _call(self, rows: int, call: Callable[[], Any]) -> I32:
        """The codes of a native call, int32 [rows]."""
        try:
            codes = np.asarray(call(), np.int32)
        except Exception as error:  # noqa: BLE001 - nothing of a native library may end a server
            event(_logger, logging.WARNING, "Mooncake's client failed", error=error)
            return np.full(rows, ReturnCode.INTERNAL_ERROR, np.int32)
        if codes.shape != (rows,):
            event(_logger, logging.WARNING, "Mooncake's client lost count", shape=codes.shape)
            return np.full(rows, ReturnCode.INTERNAL_ERROR, np.int32)
        return codes
