"""What a store's neighbours see while one of them misbehaves: the witness, and rude clients."""

from __future__ import annotations

import contextlib
import itertools
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

import numpy as np
from store_kit import StoreProcess

from snapd.client import MooncakeDistributedStore
from snapd.wire import messages as m
from snapd.wire.codes import ReturnCode
from snapd.wire.framing import encode_frame

SLOWEST_SECONDS = 2.0
"""No operation of a well-behaved client may take longer, whatever its neighbours do."""

_numbers = itertools.count()


def connect(address: str) -> MooncakeDistributedStore:
    client = MooncakeDistributedStore()
    code = client.setup("witness", "P2PHANDSHAKE", 0, 1 << 24, "tcp", "", address)
    assert code == 0, code
    return client


class Witness(threading.Thread):
    """A well-behaved client: puts, gets and removes its own keys and compares every byte.

    A miss is allowed (the store may evict), a wrong byte is not, and neither is anything that was
    removed or replaced. `stop` and leaving the block assert that.
    """

    def __init__(self, address: str, seed: int, *, keys: int = 40, size: int = 9000) -> None:
        super().__init__(name="witness")
        self._client = connect(address)
        self._random = random.Random(seed)
        self._seed, self._keys, self._size = seed, keys, size
        self._prefix = f"witness-{next(_numbers)}"
        self._model: dict[str, set[bytes]] = {}
        """What each key may hold: more than one value after an upsert that was answered "not
        durable", which may stand or not."""
        self._ended = threading.Event()
        self.wrong: list[str] = []
        self.refused = self.misses = self.hits = 0
        self.seconds: list[float] = []

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: object, __: TracebackType | None
    ) -> None:
        self._ended.set()
        self.join(60)
        self._client.close()
        if kind is None:
            self.assert_well()

    def assert_well(self) -> None:
        """Right bytes, soon, all the time."""
        assert not self.is_alive(), "an operation hangs"
        assert not self.wrong, (self._seed, self.wrong[:5])
        assert len(self.seconds) > 20, "the witness saw too little"
        slowest = max(self.seconds)
        assert slowest < SLOWEST_SECONDS, f"{slowest} s, p99 {self.p99} s"

    @property
    def p99(self) -> float:
        """Seconds."""
        return float(np.percentile(self.seconds, 99))

    def run(self) -> None:
        while not self._ended.is_set():
            key = f"{self._prefix}-{self._random.randrange(self._keys)}"
            began = time.monotonic()
            self._step(key, self._random.random())
            self.seconds.append(time.monotonic() - began)
            time.sleep(0.001)
        for key in [f"{self._prefix}-{number}" for number in range(self._keys)]:
            self._compare(key)

    def _step(self, key: str, chance: float) -> None:
        if chance < 0.3:
            value = self._random.randbytes(self._random.randrange(1, self._size))
            code = self._client.upsert(key, value)
            if code == 0:
                self._model[key] = {value}
            else:
                self.refused += 1
                if code == ReturnCode.WRITE_FAIL:
                    self._model.setdefault(key, set()).add(value)
        elif chance < 0.4:
            if self._client.remove(key, force=True) in (0, -704):
                self._model.pop(key, None)
        else:
            self._compare(key)

    def _compare(self, key: str) -> None:
        got = self._client.get(key)
        if got == b"":
            self.misses += key in self._model
        elif got not in self._model.get(key, set()):
            self.wrong.append(f"{key}: {len(got)} bytes that it does not have")
        else:
            self._model[key] = {got}
            self.hits += 1


def raw_socket(path: str, timeout_seconds: float = 15.0) -> socket.socket:
    raw = socket.socket(socket.AF_UNIX)
    raw.connect(path)  # blocks while the backlog is full
    raw.settimeout(timeout_seconds)
    return raw


def closed_by_peer(raw: socket.socket) -> bool:
    """Wait for the end of the connection, reading what comes."""
    with contextlib.suppress(ConnectionResetError):
        while raw.recv(65_536):
            pass
    return True


def frame(number: int, message: m.Message) -> bytes:
    return encode_frame(number, m.encode_message(message))


def hello(role: str = "client") -> bytes:
    return frame(1, m.Hello(m.PROTOCOL_VERSION, role, "rude"))


def send_until_closed(raw: socket.socket, data: bytes, times: int) -> None:
    with contextlib.suppress(BrokenPipeError, ConnectionResetError, TimeoutError):
        for _ in range(times):
            raw.sendall(data)


def until(what: str, done: Callable[[], bool], seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)


@contextlib.contextmanager
def neighbourhood(store: StoreProcess, seed: int, **options: int) -> Iterator[Witness]:
    """A witness at this store; afterwards the store must still be the process that it was."""
    assert store.process is not None
    process = store.process.pid
    with Witness(f"unix:{store.socket.removesuffix('/store.sock')}", seed, **options) as witness:
        until("the witness is at work", lambda: len(witness.seconds) > 10)
        yield witness
        before = len(witness.seconds)
        until("the witness goes on", lambda: len(witness.seconds) > before + 10)
    assert store.exit_code() is None
    assert store.process.pid == process


def memory_bytes(process: int) -> int:
    """Private resident memory of a process."""
    with open(f"/proc/{process}/status", encoding="ascii") as file:
        line = next(text for text in file if text.startswith("RssAnon:"))
    return int(line.split()[1]) * 1024
