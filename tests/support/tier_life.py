"""A store that is too small for its blocks, and a daemon that offloads: step by step."""

from __future__ import annotations

import os
import threading
import time
from contextlib import closing

from daemon_kit import LocalDaemon
from store_kit import LocalStore, StoreClient, key_batch

from snapd.disk import Disk
from snapd.warmup import Demand, Loader
from snapd.wire import messages as m

_WAIT_MS = 2000


class TierLife:
    """`read` is a whole get: it waits for cold blocks, which the loader brings in."""

    def __init__(self, path: str, disk: Disk, *, bytes_max: int = 0, slots: int = 256) -> None:
        """`bytes_max` is the repository's budget."""
        self.path, self.disk, self._bytes_max = path, disk, bytes_max
        self.store = LocalStore(path, segment_blocks_max=slots, lease_sec=0.001)
        # Heat is told by the wall clock, so the store's clock begins there.
        self.store.advance(time.time() - 1.7e9 - self.store.now)
        self.store.on_put_off = self.serve
        self.client: StoreClient = self.store.client()
        self.daemon: LocalDaemon | None = None
        self.attach()

    def attach(self, *, offloads: bool = True) -> LocalDaemon:
        """A new daemon."""
        self.daemon = LocalDaemon(
            self.store,
            self.disk,
            bytes_max=self._bytes_max,
            clock=lambda: self.store.now,
            offloads=offloads,
        )
        self.daemon.attach()
        return self.daemon

    def serve(self) -> None:
        """What a daemon's threads do while a request waits: load what readers want, journal."""
        daemon = self.daemon
        if daemon is None:
            return
        assert daemon.session is not None
        with (
            closing(daemon.session.open_sink()) as sink,
            closing(daemon.session.open_source()) as source,
        ):
            loader = Loader(
                daemon.repository, daemon.link, Demand(), daemon.metrics, threading.Event()
            )
            while len((wanted := sink.wanted(0))[0]):
                loader._load(daemon.session, sink, source, *wanted)
        daemon.pump()
        self.store.collect()

    def put(self, blocks: dict[bytes, bytes], **options: object) -> dict[bytes, int]:
        """Codes, one block at a time, so that the order of their use is theirs."""
        codes: dict[bytes, int] = {}
        for key, value in blocks.items():
            self.store.advance(0.01)
            codes |= self.client.put({key: value}, **options)
        return codes

    def read(self, keys: list[bytes], at_once: int = 1) -> list[bytes | None]:
        """The blocks of these keys, cold ones too; `at_once` of them have to fit into memory."""
        result: list[bytes | None] = []
        for first in range(0, len(keys), at_once):
            part = keys[first : first + at_once]
            self.store.advance(0.01)
            self.client.call(m.GetStart(key_batch(part), _WAIT_MS), m.Located)
            result += self.client.get(part)
        return result

    def kill_daemon(self) -> None:
        if self.daemon is not None:
            self.daemon.close()
            self.daemon = None

    def kill_store(self) -> None:
        """Its memory stays; a daemon that lives attaches again."""
        self.client.close()
        self.store.restart()
        self.client = self.store.client()
        if self.daemon is not None:
            self.daemon.attach()

    def power_cut(self) -> None:
        """Everything dies, and what was not synced is lost."""
        self.kill_daemon()
        self.client.close()
        self.store.kill()
        os.unlink(self.path)
        self.disk.crash()  # type: ignore[attr-defined]
        self.store.start()
        self.client = self.store.client()
        self.attach()

    def close(self) -> None:
        self.kill_daemon()
        self.store.close()
