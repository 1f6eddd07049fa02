"""A real Mooncake client, driven line by line: run by an interpreter that has the wheel.

    python mooncake_driver.py <master host:port> <metadata URL> [local buffer bytes]

Each line of input is a JSON object with `do` and its arguments, each line of output its answer. The
bytes of a key are a function of the key, a version and a size, so that whoever reads them knows
whether they are right, without a record of what was put. Only the standard library and NumPy.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

MISSING, WRONG = -1, -2


def content(key: str, version: int, size: int) -> bytes:
    """The bytes of one version of a key; differs in every run of 8 bytes from other versions'."""
    seed = int.from_bytes(hashlib.sha256(f"{key}\n{version}".encode()).digest()[:8], "little")
    return np.random.Generator(np.random.SFC64(seed)).bytes(size)


def version_of(key: str, data: bytes, versions: list[int]) -> int:
    """Which of these versions of the key the bytes are; MISSING where there are no bytes."""
    if not data:
        return MISSING
    return next((v for v in versions if content(key, v, len(data)) == data), WRONG)


class Driver:
    """The commands, one method each."""

    def __init__(self, store: Any, replicate: Any) -> None:
        self._store = store
        self._replicate = replicate

    def ping(self) -> int:
        return 0

    def put(self, keys: list[str], version: int, size: int, **options: Any) -> list[int]:
        """`put` of each key: codes."""
        config = self._config(options)
        return [self._store.put(key, content(key, version, size), config) for key in keys]

    def batch_put(
        self, keys: list[str], version: int, size: int, batch: int = 128, **options: Any
    ) -> list[int]:
        """`batch_put_from` of `batch` keys at a time, out of a registered buffer: codes."""
        return self._batches(
            self._store.batch_put_from, keys, version, size, batch=batch, **options
        )

    def batch_upsert(
        self, keys: list[str], version: int, size: int, batch: int = 128, **options: Any
    ) -> list[int]:
        """`batch_upsert_from`, as `batch_put`."""
        return self._batches(
            self._store.batch_upsert_from, keys, version, size, batch=batch, **options
        )

    def upsert(self, keys: list[str], version: int, size: int, **options: Any) -> list[int]:
        """`upsert` of each key: codes."""
        config = self._config(options)
        return [self._store.upsert(key, content(key, version, size), config) for key in keys]

    def read(self, keys: list[str], versions: list[int], batch: int = 64) -> list[int]:
        """What each key holds: one of `versions`, MISSING or WRONG."""
        found = []
        for first in range(0, len(keys), batch):
            part = keys[first : first + batch]
            values = self._store.get_batch(part)
            found += [
                version_of(key, value, versions) for key, value in zip(part, values, strict=True)
            ]
        return found

    def exist(self, keys: list[str]) -> list[int]:
        return list(self._store.batch_is_exist(keys))

    def remove(self, keys: list[str], force: bool = False) -> list[int]:
        return [self._store.remove(key, force) for key in keys]

    def replicas(self, keys: list[str]) -> dict[str, int]:
        """How many replicas each key has. Takes a lease."""
        return {key: len(r) for key, r in self._store.batch_get_replica_desc(keys).items()}

    def call(self, method: str, arguments: list[Any]) -> Any:
        """Any method of the store that takes and gives what JSON has."""
        return getattr(self._store, method)(*arguments)

    def _config(self, options: dict[str, Any]) -> Any:
        config = self._replicate()
        for name, value in options.items():
            setattr(config, name, value)
        return config

    def _batches(
        self,
        call: Callable[..., list[int]],
        keys: list[str],
        version: int,
        size: int,
        *,
        batch: int,
        **options: Any,
    ) -> list[int]:
        buffer = np.empty(max(1, batch * size), np.uint8)
        if self._store.register_buffer(buffer.ctypes.data, buffer.nbytes) != 0:
            raise RuntimeError("register_buffer failed")
        codes: list[int] = []
        try:
            for first in range(0, len(keys), batch):
                part = keys[first : first + batch]
                data = b"".join(content(key, version, size) for key in part)
                buffer[: len(data)] = np.frombuffer(data, np.uint8)
                places = [buffer.ctypes.data + size * row for row in range(len(part))]
                codes += call(part, places, [size] * len(part), self._config(options))
        finally:
            self._store.unregister_buffer(buffer.ctypes.data)
        return codes


def main() -> None:
    # The wheel's native code logs to descriptor 1 too; the answers get a descriptor of their own.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    import mooncake.store as mooncake  # noqa: PLC0415 - only now are its messages out of the way

    master, metadata, *rest = sys.argv[1:]
    buffer_bytes = int(rest[0]) if rest else 1 << 26
    store = mooncake.MooncakeDistributedStore()
    code = store.setup("127.0.0.1", metadata, 0, buffer_bytes, "tcp", "", master)
    print(json.dumps({"setup": code}), file=answers, flush=True)
    driver = Driver(store, mooncake.ReplicateConfig)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"answer": getattr(driver, request.pop("do"))(**request)}
        except Exception as error:  # noqa: BLE001 - the test decides what to make of it
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)
    store.close()


if __name__ == "__main__":
    main()
