"""The receiver of traces: its share of the processor, and its end of the socket."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from snapd.attach.traced import TracedHeat
from snapd.client.trace import Tracer
from snapd.daemon.trace import CPU_SHARE_MAX, TraceReceiver
from snapd.metrics import Metrics
from snapd.repository import Catalog


class NoBlocks:
    """A repository in which nothing is."""

    def __init__(self) -> None:
        self.catalog = Catalog()


class Rests(threading.Event):
    """An event that notes how long somebody would wait for it, instead of waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0

    def wait(self, timeout: float | None = None) -> bool:
        self.seconds += timeout or 0.0
        return self.is_set()


def test_who_used_more_than_his_share_of_the_processor_rests(tmp_path: Path) -> None:
    rests = Rests()
    receiver = TraceReceiver(str(tmp_path / "t"), TracedHeat(NoBlocks()), Metrics(), rests)
    receiver._rest(0.05)
    assert rests.seconds == 0.0, "within what was saved up"
    for _ in range(10):
        receiver._rest(0.1)
    # Debts of 0.05 + 0.1, + 0.2 ... seconds of work, each rested for at one tenth of a processor.
    assert rests.seconds > 1.05 / CPU_SHARE_MAX - 0.25 / CPU_SHARE_MAX


def test_what_is_told_is_known_a_second_later(tmp_path: Path) -> None:
    ended, traced = threading.Event(), TracedHeat(NoBlocks())
    receiver = TraceReceiver(str(tmp_path / "t"), traced, Metrics(), ended)
    receiver.open()
    assert receiver.problem == ""
    thread = threading.Thread(target=receiver.run)
    thread.start()
    tracer = Tracer(str(tmp_path / "t"))
    tracer.lookup([1, 2, 3], hits=2)
    until = time.monotonic() + 10
    while traced.pages < 3 and time.monotonic() < until:
        time.sleep(0.02)
    document = receiver.document()
    ended.set()
    thread.join(10)
    assert (document["lookups"], document["pages_known"]) == (1, 3)
    assert document["half_life_seconds"] == 300.0
    assert not (tmp_path / "t").exists()
    tracer.lookup([4], hits=0)
    assert tracer.dropped == 1
    tracer.close()


def test_a_second_receiver_takes_nothing_from_the_first(tmp_path: Path) -> None:
    ended, traced = threading.Event(), TracedHeat(NoBlocks())
    first = TraceReceiver(str(tmp_path / "t"), traced, Metrics(), ended)
    first.open()
    second = TraceReceiver(str(tmp_path / "t"), traced, Metrics(), ended)
    second.open()
    second.run()
    assert "another daemon" in second.problem
    assert not second.document()["listening"]
    assert (tmp_path / "t").is_socket()
    ended.set()
    first.run()


def test_a_directory_that_is_not_there_is_a_problem_and_no_end(tmp_path: Path) -> None:
    receiver = TraceReceiver(
        str(tmp_path / "no" / "t"), TracedHeat(NoBlocks()), Metrics(), threading.Event()
    )
    receiver.open()
    receiver.run()
    assert "No such file" in receiver.problem
