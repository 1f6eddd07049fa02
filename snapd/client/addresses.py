"""Calls that put from memory at addresses, and get into it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from snapd.blocks.keys import I64
from snapd.client.arguments import as_sequence, encode_keys_of
from snapd.client.calls import DEFAULT_CONFIG, INVALID_PARAMS, NOT_FOUND, OK, Calls, pick
from snapd.client.memory import as_unsigned, as_unsigned_list
from snapd.client.parts import PartDestinations, Parts, PartSources
from snapd.client.ranges import RangeDestinations, RangedRead
from snapd.client.replicate import ReplicateConfig
from snapd.client.session import ClientSession
from snapd.client.transfer import PointerDestinations, PointerSources


class AddressCalls(Calls):
    """Bytes go straight between the caller's memory and the segment."""

    def register_buffer(self, buffer_ptr: int, size: int) -> int:
        """Note memory. INVALID_PARAMS when it is empty, null or overlaps what is registered."""
        address, length = as_unsigned(buffer_ptr, "buffer_ptr"), as_unsigned(size, "size")
        if self._session is None or not self._buffers.register(address, length):
            return INVALID_PARAMS
        return OK

    def unregister_buffer(self, buffer_ptr: int) -> int:
        """Forget memory. INVALID_PARAMS unless it was registered at this address."""
        address = as_unsigned(buffer_ptr, "buffer_ptr")
        if self._session is None or not self._buffers.unregister(address):
            return INVALID_PARAMS
        return OK

    def put_from(
        self, key: str, buffer_ptr: int, size: int, config: ReplicateConfig = DEFAULT_CONFIG
    ) -> int:
        """`put` of memory at an address."""
        return self.batch_put_from([key], [buffer_ptr], [size], config)[0]

    def upsert_from(
        self, key: str, buffer_ptr: int, size: int, config: ReplicateConfig = DEFAULT_CONFIG
    ) -> int:
        """`upsert` of memory at an address."""
        return self.batch_upsert_from([key], [buffer_ptr], [size], config)[0]

    def get_into(self, key: str, buffer_ptr: int, size: int) -> int:
        """Copy a value to an address. Bytes copied, OBJECT_NOT_FOUND, or INVALID_PARAMS when
        `size` is less than the value's."""
        return self.batch_get_into([key], [buffer_ptr], [size])[0]

    def batch_put_from(
        self,
        keys: list[str],
        buffer_ptrs: list[int],
        sizes: list[int],
        config: ReplicateConfig = DEFAULT_CONFIG,
    ) -> list[int]:
        """`put_from` of many; a code for each key."""
        return self._put_memory(keys, buffer_ptrs, sizes, config, upsert=False)

    def batch_upsert_from(
        self,
        keys: list[str],
        buffer_ptrs: list[int],
        sizes: list[int],
        config: ReplicateConfig = DEFAULT_CONFIG,
    ) -> list[int]:
        """`upsert_from` of many; a code for each key."""
        return self._put_memory(keys, buffer_ptrs, sizes, config, upsert=True)

    def batch_get_into(
        self, keys: list[str], buffer_ptrs: list[int], sizes: list[int]
    ) -> list[int]:
        """`get_into` of many; bytes copied or a code for each key."""
        names, pointers, lengths = _memory_batch(keys, buffer_ptrs, sizes)
        if not len(names) == len(pointers) == len(lengths):
            return [INVALID_PARAMS] * len(names)

        def read(session: ClientSession, rows: Sequence[int]) -> I64:
            capacities = [lengths[row] for row in rows]
            destinations = PointerDestinations([pointers[row] for row in rows], capacities)
            return session.get(pick(names, rows), destinations, capacities)

        return self._ask(names, read, NOT_FOUND)

    def batch_put_from_multi_buffers(
        self,
        keys: list[str],
        all_buffer_ptrs: list[list[int]],
        all_sizes: list[list[int]],
        config: ReplicateConfig = DEFAULT_CONFIG,
    ) -> list[int]:
        """`batch_put_from` of blocks whose bytes lie in several places each, in that order.

        INVALID_PARAMS for all when any block's lists differ in length."""
        names, parts = encode_keys_of(keys), Parts(all_buffer_ptrs, all_sizes)
        if len(parts) != len(names) or not parts.even:
            return [INVALID_PARAMS] * len(names)
        return self._put(names, PartSources(parts, range(len(parts))), config, upsert=False)

    def batch_get_into_multi_buffers(
        self,
        keys: list[str],
        all_buffer_ptrs: list[list[int]],
        all_sizes: list[list[int]],
        prefer_alloc_in_same_node: bool = False,
    ) -> list[int]:
        """`batch_get_into` of blocks that go to several places each, in that order; together they
        have the value's size: INVALID_PARAMS when they are smaller, TRANSFER_FAIL when larger.
        There is one replica, so `prefer_alloc_in_same_node` has no effect."""
        names, parts = encode_keys_of(keys), Parts(all_buffer_ptrs, all_sizes)
        if len(parts) != len(names):
            return [INVALID_PARAMS] * len(names)

        def read(session: ClientSession, rows: Sequence[int]) -> I64:
            capacities = [parts.sizes[row] for row in rows]
            return session.get(pick(names, rows), PartDestinations(parts, rows), capacities)

        return self._ask(names, read, NOT_FOUND)

    def get_into_ranges(
        self,
        buffer_ptrs: list[int],
        all_keys: list[list[str]],
        all_dst_offsets: list[list[list[int]]],
        all_src_offsets: list[list[list[int]]],
        all_sizes: list[list[list[int]]],
    ) -> list[list[list[int]]]:
        """Copy ranges of values into registered memory: for each buffer its keys, and for each of
        those its ranges, from an offset in the value to one in the buffer.

        Bytes copied or a code for each range: INVALID_PARAMS where it leaves the value or what is
        registered, or where the lists do not fit together.
        """
        pointers = as_unsigned_list(as_sequence(buffer_ptrs, "buffer_ptrs"), "buffer_ptr")
        read = RangedRead(all_keys, all_dst_offsets, all_src_offsets, all_sizes)
        if len(pointers) == read.buffers:
            read.plan(pointers, [self._buffers.bytes_from(pointer) for pointer in pointers])

        def ask(session: ClientSession, rows: Sequence[int]) -> I64:
            return session.get(pick(read.names, rows), RangeDestinations(read, rows))

        read.answer(self._ask(read.names, ask, NOT_FOUND))
        return read.results(len(pointers))

    def _put_memory(
        self, keys: Any, buffer_ptrs: Any, sizes: Any, config: ReplicateConfig, *, upsert: bool
    ) -> list[int]:
        names, pointers, lengths = _memory_batch(keys, buffer_ptrs, sizes)
        if not len(names) == len(pointers) == len(lengths):
            return [INVALID_PARAMS] * len(names)
        return self._put(names, PointerSources(pointers, lengths), config, upsert=upsert)


def _memory_batch(
    keys: Any, buffer_ptrs: Any, sizes: Any
) -> tuple[list[bytes], list[int], list[int]]:
    """Keys, addresses and sizes (bytes), lengths of the lists unchecked. Raises TypeError."""
    return (
        encode_keys_of(keys),
        as_unsigned_list(as_sequence(buffer_ptrs, "buffer_ptrs"), "buffer_ptr"),
        as_unsigned_list(as_sequence(sizes, "sizes"), "size"),
    )
