"""Calls that put and get values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from typing_extensions import Buffer

from snapd.blocks.keys import U8
from snapd.client.arguments import as_sequence, encode_key, encode_keys_of
from snapd.client.calls import DEFAULT_CONFIG, INVALID_PARAMS, OK, Calls, pick
from snapd.client.handle import BufferHandle
from snapd.client.memory import address_of, as_bytes_array
from snapd.client.options import put_options
from snapd.client.parts import Parts, PartSources
from snapd.client.replicate import ReplicateConfig
from snapd.client.transfer import (
    BytesDestinations,
    HandleDestinations,
    PointerSources,
    Value,
    ValueDestinations,
)


class ValueCalls(Calls):
    """Values as Python objects: they are copied, straight to and from the segment."""

    def put(self, key: str, value: Buffer, config: ReplicateConfig = DEFAULT_CONFIG) -> int:
        """Store a value. 0 also when the key exists: its bytes stay as they are."""
        return self._put_value(key, value, config, upsert=False)

    def put_batch(
        self, keys: list[str], values: list[Buffer], config: ReplicateConfig = DEFAULT_CONFIG
    ) -> int:
        """Store values. 0 when all are stored or existed, else the code of the first that failed.

        INVALID_PARAMS, with nothing stored, when the lists differ in length or a value is empty.
        """
        return self._put_values(keys, values, config, upsert=False)

    def put_parts(self, key: str, *parts: Buffer, config: ReplicateConfig = DEFAULT_CONFIG) -> int:
        """Store the parts, one after another, as one value. 0 also when they have no bytes: then
        nothing is stored."""
        return self._put_parts(key, parts, config, upsert=False)

    def upsert(self, key: str, value: Buffer, config: ReplicateConfig = DEFAULT_CONFIG) -> int:
        """Store a value, in place of the one that the key may have. WRITE_FAIL says that it is
        stored, but that the disk does not know yet that the one before it is gone."""
        return self._put_value(key, value, config, upsert=True)

    def upsert_batch(
        self, keys: list[str], values: list[Buffer], config: ReplicateConfig = DEFAULT_CONFIG
    ) -> int:
        """`put_batch` in place of the values that the keys may have."""
        return self._put_values(keys, values, config, upsert=True)

    def upsert_parts(
        self, key: str, *parts: Buffer, config: ReplicateConfig = DEFAULT_CONFIG
    ) -> int:
        """`put_parts` in place of the value that the key may have."""
        return self._put_parts(key, parts, config, upsert=True)

    def get(self, key: str, /) -> bytes:
        """The value; b"" when there is none, or no store answers."""
        return self.get_batch([key])[0]

    def get_batch(self, keys: list[str], /) -> list[bytes]:
        """The values, each b"" when there is none."""
        return self._get_values(encode_keys_of(keys), b"", BytesDestinations)

    def get_buffer(self, key: str, /) -> BufferHandle | None:
        """The value in a buffer of its own; None when there is none, or no store answers."""
        return self.batch_get_buffer([key])[0]

    def batch_get_buffer(self, keys: list[str], /) -> list[BufferHandle | None]:
        """`get_buffer` of many."""
        return self._get_values(encode_keys_of(keys), None, HandleDestinations)

    def _put_value(self, key: Any, value: Any, config: ReplicateConfig, *, upsert: bool) -> int:
        sources = PointerSources.of_arrays([as_bytes_array(value)])
        return self._put([encode_key(key)], sources, config, upsert=upsert)[0]

    def _put_values(self, keys: Any, values: Any, config: ReplicateConfig, *, upsert: bool) -> int:
        names, contents = encode_keys_of(keys), as_sequence(values, "values")
        if len(names) != len(contents):
            return INVALID_PARAMS
        arrays = [as_bytes_array(value) for value in contents]
        if not all(map(len, arrays)):
            return INVALID_PARAMS
        codes = self._put(names, PointerSources.of_arrays(arrays), config, upsert=upsert)
        return next((code for code in codes if code != OK), OK)

    def _put_parts(
        self, key: Any, values: tuple[Any, ...], config: ReplicateConfig, *, upsert: bool
    ) -> int:
        name = encode_key(key)
        arrays: list[U8] = [as_bytes_array(value) for value in values]
        if not any(map(len, arrays)) and self._session is not None:
            return INVALID_PARAMS if put_options(config, 1, upsert=upsert) is None else OK
        parts = Parts([list(map(address_of, arrays))], [list(map(len, arrays))], keep=arrays)
        return self._put([name], PartSources(parts, [0]), config, upsert=upsert)[0]

    def _get_values(
        self, names: list[bytes], nothing: Value, make: Callable[[int], ValueDestinations[Value]]
    ) -> list[Value]:
        values, session = [nothing] * len(names), self._session
        rows = session.usable_rows(names) if session is not None else []
        if session is None or not rows:
            return values
        destinations = make(len(rows))
        session.get(pick(names, rows), destinations)
        for row, value in zip(rows, destinations.values, strict=True):
            values[row] = value
        return values
