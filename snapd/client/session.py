"""`ClientSession`: batches of keys against the bundled store, as arrays of codes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TypeVar

import numpy as np

from snapd.blocks.keys import I64
from snapd.client import requests
from snapd.client.link import LinkOptions, StoreLink
from snapd.client.names import split_batch, usable_rows
from snapd.client.options import PutOptions
from snapd.client.pool import LinkPool
from snapd.client.reading import Delivery, ReadCounters, read_blocks
from snapd.client.requests import Listing
from snapd.client.transfer import Destinations, Sources
from snapd.errors import ProtocolError, StoreUnavailableError
from snapd.wire.codes import ReturnCode
from snapd.wire.connection import RequestFailedError

Operation = Callable[[StoreLink], I64]
"""What is done on a link, mostly once more if the link breaks; int64 [n]."""

Answer = TypeVar("Answer")

KeyRequest = Callable[[StoreLink, Sequence[bytes]], I64]
"""A request about n keys on a link; int64 [n]."""


class ClientSession:
    """Safe for use by many threads. Keys are those that `usable_rows` chooses.

    Nothing here raises because the store is away or refuses: the rows concerned get its code, or
    `RPC_FAIL` where there was no answer. Batches of any length are cut into requests.
    """

    def __init__(self, options: LinkOptions, pool: LinkPool | None = None) -> None:
        """`pool`: one with these options, closed with the session; None makes one."""
        self._options = options
        self._pool = pool or LinkPool(options)
        self._tag = options.tag
        self.counters = ReadCounters()

    def relabelled(self, fingerprint: str) -> ClientSession:
        """Another session with the same store, under another label."""
        options = self._options.relabelled(fingerprint)
        return ClientSession(options, self._pool.with_options(options))

    def usable_rows(self, names: Sequence[bytes]) -> Sequence[int]:
        """Rows of the keys that this client can name, see `snapd.client.names.usable_rows`."""
        return usable_rows(names, self._tag)

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
        """0 or a negative code for each key, int64 [n].

        A removal whose answer was lost with the store is not repeated, since it would also take
        what somebody has put since: RPC_FAIL says that it may have happened.
        """
        return self._by_key(keys, partial(requests.remove, force=force), repeatable=False)

    def remove_all(self, *, force: bool) -> int:
        """Number of keys removed, or a negative code; not repeated, as `remove`."""
        return self._value(partial(requests.remove_all, force=force), repeatable=False)

    def names(self) -> Listing | int:
        """All keys of this client's label, or a negative code."""
        return self._value(requests.names)

    def put(self, keys: Sequence[bytes], sources: Sources, options: PutOptions) -> I64:
        """0 or a negative code for each key, int64 [n]; blocks have at least 1 byte."""

        def operation(part: slice) -> Operation:
            taken = sources.take(range(part.start, part.stop))
            return partial(requests.put, keys=keys[part], sources=taken, options=options.take(part))

        parts = split_batch(keys, sources.sizes, self._pool.put_bytes_max)
        return self._by_part(parts, operation, len(keys))

    def get(
        self,
        keys: Sequence[bytes],
        destinations: Destinations,
        capacities: Sequence[int] | None = None,
    ) -> I64:
        """Deliver blocks; bytes delivered or a negative code for each key, int64 [n].

        `capacities` (bytes) are upper bounds of the blocks' sizes, where they are known.
        """

        def operation(part: slice) -> Operation:
            delivery = Delivery(destinations, part.start, self.counters)
            return partial(read_blocks, keys=keys[part], delivery=delivery)

        result = self._by_part(split_batch(keys, capacities), operation, len(keys))
        for row in np.flatnonzero(result < 0).tolist():
            destinations.discard(row)
        return result

    def close(self) -> None:
        """End all connections; transfers of other threads end first."""
        self._pool.close()

    def _by_key(
        self, keys: Sequence[bytes], request: KeyRequest, *, repeatable: bool = True
    ) -> I64:
        def operation(part: slice) -> Operation:
            return partial(_apply, request, keys[part])

        return self._by_part(split_batch(keys), operation, len(keys), repeatable=repeatable)

    def _by_part(
        self,
        parts: Iterable[slice],
        operation: Callable[[slice], Operation],
        count: int,
        *,
        repeatable: bool = True,
    ) -> I64:
        """Answers to all parts, int64 [count]. Once the store is away the rest is not tried: it
        could cost a deadline for each part."""
        result = np.full(count, ReturnCode.RPC_FAIL, np.int64)
        for part in parts:
            try:
                result[part] = self._pool.run(operation(part), repeatable=repeatable)
            except RequestFailedError as error:
                result[part] = _code_of(error)
            except (StoreUnavailableError, ProtocolError):
                break
        return result

    def _value(
        self, operation: Callable[[StoreLink], Answer], *, repeatable: bool = True
    ) -> Answer | int:
        try:
            return self._pool.run(operation, repeatable=repeatable)
        except RequestFailedError as error:
            return _code_of(error)
        except (StoreUnavailableError, ProtocolError):
            return int(ReturnCode.RPC_FAIL)


def _apply(request: KeyRequest, names: Sequence[bytes], link: StoreLink) -> I64:
    return request(link, names)


def _code_of(error: RequestFailedError) -> int:
    """The store's code, as long as it is one of an error."""
    return min(error.code, int(ReturnCode.INTERNAL_ERROR))
