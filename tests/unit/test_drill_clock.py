"""The shared clock and tickets: every request once, at its time, also when the speed changes."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from snapd.drill.clock import TraceClock
from snapd.drill.shared import RECORD_DTYPE, FileLock, Tickets, create_records, open_records


@pytest.fixture
def clock(tmp_path: Path) -> TraceClock:
    return TraceClock.create(tmp_path / "clock", FileLock(tmp_path / "lock"))


def test_the_clock_stands_until_it_is_given_a_speed(clock: TraceClock) -> None:
    before = clock.now()
    assert -0.001 < before < 0, "a request that is due at 0 has to wait"
    time.sleep(0.01)
    assert clock.now() == before
    clock.set_speed(1000.0)
    assert clock.wait_until(20.0) is not None
    assert clock.now() >= 20.0


def test_a_change_of_speed_does_not_make_time_jump(clock: TraceClock) -> None:
    clock.set_speed(1000.0)
    clock.wait_until(10.0)
    before = clock.now()
    clock.set_speed(0.001)
    after = clock.now()
    assert before <= after < before + 1000.0
    time.sleep(0.02)
    assert clock.now() - after < 0.01


def test_what_is_overdue_fires_while_the_clock_stands(clock: TraceClock) -> None:
    clock.set_speed(1000.0)
    clock.wait_until(5.0)
    clock.set_speed(0.0)
    assert clock.wait_until(4.0) == 0.0


def test_waiting_says_by_how_much_a_moment_was_missed(clock: TraceClock) -> None:
    clock.set_speed(100.0)
    clock.wait_until(5.0)
    time.sleep(0.05)
    late = clock.wait_until(5.0)
    assert late is not None
    assert late >= 0.05


def test_stopping_ends_every_wait(clock: TraceClock) -> None:
    answers: list[float | None] = []
    thread = threading.Thread(target=lambda: answers.append(clock.wait_until(1e9)))
    thread.start()
    clock.stop()
    thread.join(5)
    assert answers == [None]
    assert clock.stopped


def test_each_ticket_is_given_out_once(tmp_path: Path) -> None:
    """Descriptors of one open file share its lock, so each taker has its own, as processes do."""
    Tickets.create(tmp_path / "tickets", FileLock(tmp_path / "lock"))
    taken: list[int] = []

    def take() -> None:
        tickets = Tickets(tmp_path / "tickets", FileLock(tmp_path / "lock"))
        tickets.arrive()
        taken.extend(tickets.take() for _ in range(300))

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(1200))
    assert Tickets(tmp_path / "tickets", FileLock(tmp_path / "lock")).arrived == 4


def test_records_are_shared_through_their_file(tmp_path: Path) -> None:
    mine = create_records(tmp_path / "records", 3)
    theirs = open_records(tmp_path / "records")
    record = mine[1]
    record["hits"] = 5
    assert theirs["hits"].tolist() == [0, 5, 0]
    assert theirs.dtype == RECORD_DTYPE
