"""A store to test against: the engine in this process, or a real `snapd store` process.

Both work on a real segment in /dev/shm, and `StoreClient` speaks to either of them.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from snapd.blocks import KeyColumn, hash_keys
from snapd.config import Settings
from snapd.formats.segment import Slots, SlotState
from snapd.segment import DataGrowth, SegmentView, open_segment
from snapd.store.blocks import BlockStore
from snapd.store.engine import StoreEngine
from snapd.wire import messages as m
from snapd.wire.connection import Connection

Call = Callable[..., Any]
"""call(request, reply_type): the reply."""


@contextlib.contextmanager
def shared_memory_path() -> Iterator[str]:
    """A name in /dev/shm that is gone afterwards."""
    path = f"/dev/shm/snapd-test-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        yield path
    finally:
        for name in (path, path + ".bad"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)


def key_batch(keys: Sequence[bytes]) -> m.KeyBatch:
    return m.encode_keys(KeyColumn.from_list(keys))


def column(raw: bytes, dtype: type[np.generic]) -> Any:
    return np.frombuffer(raw, dtype)


def checksum_of(value: bytes) -> int:
    return int(xxhash.xxh3_64_intdigest(value))


def content(seed: int, size: int) -> bytes:
    return np.random.default_rng(seed).bytes(size)


class StoreClient:
    """A client that copies, hashes and verifies, as `snapd.client` does, one batch at a time."""

    def __init__(
        self,
        call: Call,
        role: str = "client",
        hang_up: Callable[[], None] = lambda: None,
        label: str = "",
    ) -> None:
        """`label`: its keys have to carry the tag of it."""
        self.call = call
        self.hang_up = hang_up
        self.hello = call(m.Hello(m.PROTOCOL_VERSION, role, "test", label), m.HelloReply)
        self.view = SegmentView(self.hello.segment_path, self.hello.segment_id)
        self.view.hold_writer(self.hello.writer)

    def reserve(
        self, keys: Sequence[bytes], sizes: Sequence[int], **options: Any
    ) -> tuple[Any, Any, Any, Any]:
        """Codes, slots, sequences, offsets."""
        request = m.PutStart(key_batch(keys), np.array(sizes, np.uint64).tobytes(), **options)
        return unpack_reserved(self.call(request, m.Reserved))

    def write(self, offset: int, value: bytes) -> None:
        self.view.data[offset : offset + len(value)] = value

    def publish(self, slots: Any, sequences: Any, checksums: Sequence[int]) -> list[int]:
        end = m.PutEnd(
            slots.tobytes(), sequences.tobytes(), np.array(checksums, np.uint64).tobytes()
        )
        codes: list[int] = column(self.call(end, m.Codes).codes, np.int32).tolist()
        return codes

    def put(self, blocks: dict[bytes, bytes], **options: Any) -> dict[bytes, int]:
        """Codes by key; 0 also when the key was there already.

        In batches of less than a writer may have unfinished (`snapd.store.unfinished`).
        """
        result: dict[bytes, int] = {}
        geometry = self.view.geometry
        part: dict[bytes, bytes] = {}
        total = 0
        for key, value in blocks.items():
            total += len(value) + 4096
            if part and (3 * total > geometry.data_bytes or 3 * len(part) > geometry.slot_count):
                result |= self.put_at_once(part, **options)
                part, total = {}, len(value) + 4096
            part[key] = value
        return result | (self.put_at_once(part, **options) if part else {})

    def put_at_once(self, blocks: dict[bytes, bytes], **options: Any) -> dict[bytes, int]:
        """`put` in one batch."""
        keys, values = list(blocks), list(blocks.values())
        codes, slots, sequences, offsets = self.reserve(keys, [len(v) for v in values], **options)
        good = np.flatnonzero(codes == 0)
        for at in good.tolist():
            self.write(int(offsets[at]), values[at])
        sums = [checksum_of(values[at]) for at in good.tolist()]
        result = codes.copy()
        if len(good):
            result[good] = self.publish(slots[good], sequences[good], sums)
        result[result == -705] = 0
        return dict(zip(keys, result.tolist(), strict=True))

    def get(self, keys: Sequence[bytes], wait_ms: int = 0) -> list[bytes | None]:
        """Verified bytes; AssertionError if bytes that verify are not the slot's block."""
        reply = self.call(m.GetStart(key_batch(keys), wait_ms), m.Located)
        codes = column(reply.codes, np.int32)
        sequences, offsets = column(reply.sequences, np.uint64), column(reply.offsets, np.uint64)
        sizes, sums = column(reply.sizes, np.uint64), column(reply.checksums, np.uint64)
        slots, whole = self.view.read_slots(column(reply.slots, np.uint32).astype(np.int64))
        result: list[bytes | None] = []
        for at in range(len(keys)):
            start, size = int(offsets[at]), int(sizes[at])
            value = bytes(self.view.data[start : start + size])
            alive = whole[at] and slots["state"][at] == SlotState.PUBLISHED
            hit = codes[at] == 0 and alive and slots["sequence"][at] == sequences[at]
            result.append(value if hit and checksum_of(value) == int(sums[at]) else None)
        return result

    def exist(self, keys: Sequence[bytes]) -> list[int]:
        reply = self.call(m.Exist(key_batch(keys)), m.Codes)
        codes: list[int] = column(reply.codes, np.int32).tolist()
        return codes

    def sizes(self, keys: Sequence[bytes]) -> list[int]:
        sizes: list[int] = column(
            self.call(m.Query(key_batch(keys)), m.Located).sizes, np.uint64
        ).tolist()
        return sizes

    def remove(self, keys: Sequence[bytes], *, force: bool = False) -> list[int]:
        reply = self.call(m.Remove(key_batch(keys), force), m.Codes)
        codes: list[int] = column(reply.codes, np.int32).tolist()
        return codes

    def remove_all(self, *, force: bool = False) -> int:
        count: int = self.call(m.RemoveAll(force), m.Count).value
        return count

    def stats(self) -> m.StatsReply:
        reply: m.StatsReply = self.call(m.Stats(), m.StatsReply)
        return reply

    def slots(self) -> Slots:
        """All whole slots that are not free."""
        slots, whole = self.view.read_slots()
        return slots[whole & (slots["state"] != SlotState.FREE)]

    def close(self) -> None:
        self.view.close()
        self.hang_up()


def unpack_reserved(reply: m.Reserved) -> tuple[Any, Any, Any, Any]:
    """Codes, slots, sequences, offsets."""
    return (
        column(reply.codes, np.int32).copy(),
        column(reply.slots, np.uint32),
        column(reply.sequences, np.uint64),
        column(reply.offsets, np.uint64),
    )


def store_settings(path: str, **changes: Any) -> Settings:
    values: dict[str, Any] = {
        "segment_path": path,
        "global_segment_size": 1 << 20,
        "segment_blocks_max": 256,
        "lease_sec": 10.0,
    }
    return Settings(**(values | changes))


class LocalStore:
    """The engine on a real segment, with a clock that only moves when told.

    `kill` ends it as SIGKILL would: nothing is tidied up, the segment stays as it is.
    """

    def __init__(self, path: str, **changes: Any) -> None:
        self.path = path
        self.changes = changes
        self.now = 1000.0
        self.events: list[tuple[str, list[bytes]]] = []
        self.replies: dict[int, Any] = {}
        self.on_put_off: Callable[[], None] = lambda: None
        """What makes a reply come that was put off: a daemon's work."""
        self._connections = 0
        self._clients: dict[int, StoreClient] = {}
        self.start()

    def start(self) -> None:
        settings = store_settings(self.path, **self.changes)
        self.segment = open_segment(
            self.path, settings.global_segment_size, settings.segment_blocks_max
        )
        self.growth = DataGrowth(self.segment, lambda error: None)
        self.growth.start()
        self.blocks = BlockStore(
            self.segment,
            self.growth,
            settings,
            now=self.now,
            wall_seconds=1.7e9 + self.now,
            event_log=lambda kind, keys: self.events.append((kind, keys)),
        )
        self.engine = StoreEngine(self.blocks, now=self.now, version="test")

    def kill(self) -> None:
        self.growth.stop()
        self.engine = None  # type: ignore[assignment]
        self.blocks = None  # type: ignore[assignment]
        self.segment.close()

    def restart(self) -> None:
        self.kill()
        self.start()

    def connect(self) -> tuple[int, Call]:
        """A connection number and its `call`, which fails when the reply stays put off."""
        self._connections += 1
        connection = self._connections

        def call(request: m.Request, reply_type: type[Any]) -> Any:
            reply = self.send(connection, request)
            if reply is None:
                self.on_put_off()
                reply = self.replies.pop(connection, None)
            assert isinstance(reply, reply_type), reply
            return reply

        return connection, call

    def send(self, connection: int, request: m.Request) -> Any:
        """The reply, or None while it is put off (`replies` has it later)."""
        self.replies.pop(connection, None)
        reply = self.engine.handle(connection, request, self.now)
        self.collect()
        return self.replies.pop(connection, None) if reply is None else reply

    def collect(self) -> None:
        self.replies.update(self.engine.due(self.now))

    def advance(self, seconds: float) -> None:
        self.now += seconds
        self.collect()

    def client(self, role: str = "client", label: str = "") -> StoreClient:
        connection, call = self.connect()
        client = StoreClient(call, role, label=label)
        self._clients[connection] = client
        client.connection = connection  # type: ignore[attr-defined]
        return client

    def drop(self, client: Any, *, process_is_gone: bool = True) -> None:
        """The client's connection breaks; with its process its lock goes, too."""
        if process_is_gone:
            client.close()
        self.engine.connection_lost(client.connection)
        self.collect()

    def close(self) -> None:
        for client in self._clients.values():
            client.close()
        if self.engine is not None:
            self.kill()


class Daemon(StoreClient):
    """A daemon's connection."""

    connection: int

    def __init__(self, store: LocalStore, daemon_id: bytes = b"daemon") -> None:
        self.connection, call = store.connect()
        super().__init__(call, "daemon")
        self.store = store
        self.epoch = call(m.Attach(daemon_id), m.Attached).epoch

    def register(
        self, blocks: dict[bytes, bytes], hashed: list[bytes] | None = None
    ) -> tuple[Any, Any, Any]:
        """Codes, slots, sequences. `hashed`: keys to take the hashes of instead."""
        count = len(blocks)
        request = m.RegisterCold(
            key_batch(list(blocks)),
            hash_keys(hashed or blocks).tobytes(),
            np.array([len(v) for v in blocks.values()], np.uint64).tobytes(),
            np.array([checksum_of(v) for v in blocks.values()], np.uint64).tobytes(),
            np.zeros(count, np.uint32).tobytes(),
            np.zeros(count, np.uint8).tobytes(),
            np.ones(count, np.float32).tobytes(),
        )
        return unpack_reserved(self.call(request, m.Reserved))[:3]

    def ready(self) -> None:
        self.call(m.ColdReady(), m.Codes)

    def fill_start(self, slots: Any, sequences: Any, *, demand: bool = True) -> Any:
        request = m.FillStart(
            slots.astype(np.uint32).tobytes(), sequences.astype(np.uint64).tobytes(), demand
        )
        return unpack_reserved(self.call(request, m.Reserved))

    def fill_end(self, cold: tuple[Any, Any], new: tuple[Any, Any], codes: list[int]) -> list[int]:
        request = m.FillEnd(
            *(part.tobytes() for part in (*cold, *new)), np.array(codes, np.int32).tobytes()
        )
        result: list[int] = column(self.call(request, m.Codes).codes, np.int32).tolist()
        return result

    def fill(self, cold: tuple[Any, Any], values: list[bytes]) -> list[int]:
        codes, slots, sequences, offsets = self.fill_start(*cold)
        assert not codes.any()
        for offset, value in zip(offsets.tolist(), values, strict=True):
            self.write(offset, value)
        return self.fill_end(cold, (slots, sequences), [0] * len(values))

    def wanted(self) -> tuple[Any, Any]:
        reply = self.call(m.LoadWait(0), m.Wanted)
        return column(reply.slots, np.uint32), column(reply.sequences, np.uint64)

    def events(self, ack: int = 0) -> m.Events:
        reply: m.Events = self.call(m.EventsWait(ack, 0), m.Events)
        return reply


class StoreProcess:
    """`python -m snapd.store` and connections to it."""

    def __init__(self, path: str, runtime_dir: Path, **environment: str) -> None:
        self.path = path
        self.socket = str(runtime_dir / "store.sock")
        self.event_log = runtime_dir / "events.log"
        self.errors = runtime_dir / "errors.log"
        """What this life wrote to stderr: a file, because a full pipe would stop the store."""
        self.environment = os.environ | {
            "SNAPD_RUNTIME_DIR": str(runtime_dir),
            "SNAPD_SEGMENT_PATH": path,
            "MOONCAKE_GLOBAL_SEGMENT_SIZE": "8mb",
            "SNAPD_SEGMENT_BLOCKS_MAX": "2048",
            **environment,
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, wait: bool = True) -> None:
        with self.errors.open("wb") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "snapd.store", str(self.event_log)],
                env=self.environment,
                stderr=stream,
            )
        if wait:
            self.connect().close()

    def connect(self, timeout_seconds: float = 10.0) -> Connection:
        deadline = time.monotonic() + timeout_seconds
        while True:
            try:
                return Connection(self.socket)
            except Exception:
                if time.monotonic() > deadline or self.exit_code() is not None:
                    raise
                time.sleep(0.005)

    def client(self, role: str = "client") -> StoreClient:
        connection = self.connect()
        return StoreClient(connection.call, role, connection.close)

    def exit_code(self) -> int | None:
        return None if self.process is None else self.process.poll()

    def wait(self) -> tuple[int, str]:
        """Exit code and what it wrote to stderr."""
        assert self.process is not None
        code = self.process.wait(timeout=20)
        self.process = None
        return code, self.errors.read_text(errors="replace")

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.wait()

    def terminate(self) -> tuple[int, str]:
        assert self.process is not None
        self.process.terminate()
        return self.wait()
