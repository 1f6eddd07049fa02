"""What the log says when removals do not get to the disk: whether the store or the disk is why."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import pytest

from snapd.attach.port import Changes, Sink, Source
from snapd.attach.session import Link, Session
from snapd.daemon.events import EventsWorker
from snapd.disk.simulated import SimulatedDisk
from snapd.errors import DiskError, ProtocolError, SnapdError, StoreUnavailableError
from snapd.plans.residency import Residency
from snapd.repository import Repository


class _Nobody:
    """Counts nothing."""

    def removals_journaled(self, removals: int) -> None:
        pass

    def quarantined(self, reason: str, blocks: int) -> None:
        pass


class _FailingFeed:
    def __init__(self, error: SnapdError) -> None:
        self._error = error

    def changes(self, ack: int, wait_ms: int) -> Changes:
        raise self._error

    def close(self) -> None:
        pass


def _none() -> Source:
    raise AssertionError("nobody asks for it")


def _no_sink() -> Sink:
    raise AssertionError("nobody asks for it")


def _wait(done: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ProtocolError("the master answers nonsense"), "cannot ask the store for removals"),
        (StoreUnavailableError("it is away"), "cannot ask the store for removals"),
        (DiskError("no space"), "cannot journal removals"),
    ],
)
def test_a_look_that_failed_is_not_told_as_the_disks_failure(
    caplog: pytest.LogCaptureFixture, error: SnapdError, words: str
) -> None:
    repository, ended, link = Repository.open(SimulatedDisk()), threading.Event(), Link()
    worker = EventsWorker(repository, link, _Nobody(), ended)
    link.publish(
        Session(
            segment_id=bytes(16),
            boot_id=bytes(16),
            ordinal=1,
            epoch_base=0,
            epoch=0,
            residency=Residency(16),
            open_source=_none,
            open_sink=_no_sink,
            open_feed=lambda: _FailingFeed(error),
        )
    )
    thread = threading.Thread(target=worker.run)
    with caplog.at_level(logging.WARNING):
        thread.start()
        _wait(lambda: worker.asking.error or worker.backoff.error)
        ended.set()
        thread.join()
    repository.close()
    told = [record.message for record in caplog.records if "removals" in record.message]
    assert told == [words]
    assert (worker.backoff.error == "") == (not isinstance(error, DiskError))
