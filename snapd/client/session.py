"""`ClientSession`: batches of keys against the bundled store, as arrays of codes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from snapd.blocks.keys import I64
from snapd.client import requests
from snapd.client.link import LinkOptions, StoreLink
from snapd.client.names import split_batch
from snapd.client.pool import LinkPool
from snapd.client.reading import Delivery, ReadCounters, read_blocks
from snapd.client.requests import PutOptions
from snapd.client.transfer import Destinations, Sources
from snapd.errors import ProtocolError, StoreUnavailableError
from snapd.wire.codes import ReturnCode
from snapd.wire.connection import RequestFailedError


KeyRequest = Callable[[StoreLink, Sequence[bytes]], I64]
"""A request about n keys on a link; int64 [n]."""


class ClientSession:
    """Safe for use by many threads. Keys are 1 to `KEY_BYTES_MAX` bytes.

    Nothing here raises because the store is away or refuses: the rows concerned get its code, or
    `RPC_FAIL` where there was no answer. Batches of any length are cut into requests.
    """

    def __init__(self, options: LinkOptions) -> None:
        self._pool = LinkPool(options)
        self.counters = ReadCounters()

    def ping(self) -> int:
        """0 when the store answers, else a negative code."""
        return self._value(requests.ping)

    def exist(self, keys: Sequence[bytes]) -> I64:
        """1, 0 or a negative code for each key, int64 [n]."""
        return self._by_key(keys, requests.exist)

    def sizes(self, keys: Sequence[bytes]) -> I64:
        """Size in bytes or a negative code for each key, int64 [n]."""
        return self._by_key(keys, requests.sizes)

    def remove(self, keys: Sequence[bytes], *, force: bool) -> I64:
        """0 or a negative code for each key, int64 [n]."""
        return self._by_key(keys, partial(requests.remove, force=force))

    def remove_all(self, *, force: bool) -> int:
        """Number of keys removed, or a negative code."""
        return self._value(partial(requests.remove_all, force=force))

    def put(self, keys: Sequence[bytes], sources: Sources, options: PutOptions) -> I64:
        """0 or a negative code for each key, int64 [n]; blocks have at least 1 byte."""
        result = np.empty(len(keys), np.int64)
        for part in split_batch(keys, sources.sizes):
            names, taken = keys[part], sources.take(range(part.start, part.stop))
            operation = partial(requests.put, keys=names, sources=taken, options=options)
            result[part] = self._codes(operation, len(names))
        return result

    def get(
        self,
        keys: Sequence[bytes],
        destinations: Destinations,
        capacities: Sequence[int] | None = None,
    ) -> I64:
        """Deliver blocks; bytes delivered or a negative code for each key, int64 [n].

        `capacities` (bytes) are upper bounds of the blocks' sizes, where they are known.
        """
        result = np.empty(len(keys), np.int64)
        for part in split_batch(keys, capacities):
            names, delivery = keys[part], Delivery(destinations, part.start, self.counters)
            operation = partial(read_blocks, keys=names, delivery=delivery)
            result[part] = self._codes(operation, len(names))
            delivery.discard_failed(result[part])
        return result

    def close(self) -> None:
        """End all connections; transfers of other threads end first."""
        self._pool.close()

    def _by_key(self, keys: Sequence[bytes], request: KeyRequest) -> I64:
        result = np.empty(len(keys), np.int64)
        for part in split_batch(keys):
            names = keys[part]
            result[part] = self._codes(partial(_apply, request, names), len(names))
        return result

    def _codes(self, operation: Callable[[StoreLink], I64], count: int) -> I64:
        try:
            return self._pool.run(operation)
        except (RequestFailedError, StoreUnavailableError, ProtocolError) as error:
            return np.full(count, _code_of(error), np.int64)

    def _value(self, operation: Callable[[StoreLink], int]) -> int:
        try:
            return self._pool.run(operation)
        except (RequestFailedError, StoreUnavailableError, ProtocolError) as error:
            return _code_of(error)


def _apply(request: KeyRequest, names: Sequence[bytes], link: StoreLink) -> I64:
    return request(link, names)


def _code_of(error: RequestFailedError | StoreUnavailableError | ProtocolError) -> int:
    if isinstance(error, RequestFailedError):
        return min(error.code, int(ReturnCode.INTERNAL_ERROR))
    return int(ReturnCode.RPC_FAIL)
