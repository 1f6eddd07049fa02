"""Whoever asks for a flush gets everything that was put before, also at the daemon's end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import pytest
from daemon_kit import LocalDaemon
from store_kit import LocalStore, content, shared_memory_path

from snapd.attach.bundled import BundledSource
from snapd.attach.labels import LabelIds
from snapd.attach.session import Link
from snapd.config import Settings
from snapd.disk.simulated import SimulatedDisk
from snapd.errors import RefusedError
from snapd.flusher import Flusher


class LateSource(BundledSource):
    """Knows of new blocks only after `refresh`, as a source does that has to ask."""

    blocks: dict[bytes, bytes]
    client: Any
    refreshes = 0

    def refresh(self) -> None:
        type(self).refreshes += 1
        self.client.put(dict(self.blocks))


@pytest.fixture
def site() -> Iterator[tuple[LocalDaemon, Flusher, type[LateSource]]]:
    with shared_memory_path() as path:
        store = LocalStore(path, global_segment_size=1 << 22, segment_blocks_max=256)
        daemon = LocalDaemon(store, SimulatedDisk(1))
        daemon.attach()
        assert daemon.session is not None
        view = daemon.session.open_source()._view  # type: ignore[attr-defined]
        labels = LabelIds(dict, lambda _: 0)
        blocks = {b"key-%d" % number: content(number, 1000) for number in range(10)}
        kind = type("Late", (LateSource,), {"client": store.client(), "blocks": blocks})
        daemon.session = replace(daemon.session, open_source=lambda: kind(view, None, labels))
        link = Link()
        link.publish(daemon.session)
        settings = Settings(flush_sec=3600, snapshot_interval_sec=3600)
        flusher = Flusher(
            daemon.repository,
            link,
            settings,
            pace=lambda _: None,
            observer=daemon.metrics,
            budget=daemon.budget,
        )
        yield daemon, flusher, kind
        daemon.close()
        store.close()


def run(flusher: Flusher) -> threading.Thread:
    thread = threading.Thread(target=flusher.run)
    thread.start()
    return thread


def test_a_flush_that_was_asked_for_looks_first(
    site: tuple[LocalDaemon, Flusher, type[LateSource]],
) -> None:
    _, flusher, late = site
    thread = run(flusher)
    flusher.flush_soon().result(10)
    written = flusher.last_flush.written
    flusher.stop(time.monotonic() + 5, lambda: None)
    thread.join(10)
    assert (written, late.refreshes) == (10, 3)


def test_the_last_flush_of_a_daemon_looks_before_it_and_after_the_store_was_stopped(
    site: tuple[LocalDaemon, Flusher, type[LateSource]],
) -> None:
    _, flusher, late = site
    at_stop: list[int] = []
    flusher.stop(time.monotonic() + 5, lambda: at_stop.append(late.refreshes))
    run(flusher).join(10)
    assert (at_stop, late.refreshes) == ([1], 2)
    assert flusher.last_snapshot is not None
    assert flusher.last_snapshot.blocks == 10


def test_a_lost_session_is_not_looked_at(
    site: tuple[LocalDaemon, Flusher, type[LateSource]],
) -> None:
    daemon, flusher, late = site
    assert daemon.session is not None
    daemon.session.lost.set()
    flusher.stop(time.monotonic() + 5, lambda: None)
    run(flusher).join(10)
    assert late.refreshes == 0


def test_who_asks_before_the_last_flush_begins_gets_it_and_who_comes_later_an_answer(
    site: tuple[LocalDaemon, Flusher, type[LateSource]],
) -> None:
    _, flusher, late = site
    asked: dict[str, Future[Any]] = {}

    def ask_meanwhile(_: LateSource) -> None:
        asked["too late"] = flusher.flush_soon()
        asked["snapshot"] = flusher.request_snapshot()
        asked["commit"] = flusher.request_commit()

    def quiesce() -> None:
        asked["in time"] = flusher.flush_soon()
        late.refresh = ask_meanwhile  # type: ignore[method-assign,assignment]

    flusher.stop(time.monotonic() + 5, quiesce)
    run(flusher).join(10)
    asked["after the end"] = flusher.flush_soon()
    assert asked.pop("in time").result(0) is None
    for future in asked.values():
        with pytest.raises(RefusedError, match="stopping"):
            future.result(0)
