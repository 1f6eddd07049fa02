"""Bounds on what one client takes, one eviction frees, and the log repeats."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
import pytest
from store_kit import LocalStore, shared_memory_path

from snapd.formats.segment import SLOT_DTYPE
from snapd.store import complaints, room
from snapd.store.complaints import Complaints
from snapd.store.unfinished import Unfinished

UNITS, SLOTS = 1000, 64_000


@pytest.fixture
def store() -> Iterator[LocalStore]:
    with shared_memory_path() as path:
        local = LocalStore(path)
        yield local
        local.close()


def reserved(writer: int, units: int, count: int = 1) -> np.ndarray:
    records = np.zeros(count, SLOT_DTYPE)
    records["writer"], records["size"] = writer, 4096 * units
    return records


def allowed(unfinished: Unfinished, writer: int, *units: int) -> list[bool]:
    may = unfinished.may_reserve(
        writer, np.array(units), units_capacity=UNITS, slots_capacity=SLOTS
    )
    return may.tolist()


def test_a_writer_may_have_half_and_all_writers_three_quarters() -> None:
    unfinished = Unfinished(reserved(1, 300))
    assert allowed(unfinished, 1, 100, 100, 1) == [True, True, False]
    unfinished.add(reserved(1, 200))
    assert allowed(unfinished, 1, 1) == [False]
    assert allowed(unfinished, 2, 250, 1) == [True, False]
    unfinished.add(reserved(2, 250))
    assert allowed(unfinished, 3, 32) == [False]
    assert allowed(unfinished, 3, 31, 1) == [True, False], "a little is always left"
    unfinished.end(reserved(1, 300))
    assert allowed(unfinished, 3, 300, 1) == [True, False]


def test_slots_are_bounded_like_space() -> None:
    unfinished = Unfinished(reserved(1, 0, SLOTS // 2))
    assert allowed(unfinished, 1, 0) == [False]
    assert allowed(unfinished, 2, 0) == [True]


def test_a_block_larger_than_the_bounds_is_taken_when_nothing_else_is_unfinished() -> None:
    unfinished = Unfinished(reserved(1, 0, 0))
    assert allowed(unfinished, 1, 900, 1) == [True, False]
    unfinished.add(reserved(2, 1))
    assert allowed(unfinished, 1, 900) == [False]


def test_nothing_is_remembered_of_a_writer_who_is_done() -> None:
    unfinished = Unfinished(reserved(1, 5))
    unfinished.add(reserved(2, 7, 3))
    unfinished.end(reserved(1, 5))
    unfinished.end(reserved(2, 7, 3))
    assert vars(unfinished) == vars(Unfinished(reserved(1, 0, 0)))


def test_one_eviction_takes_a_bounded_number_beyond_what_is_needed(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "EVICTED_AHEAD_MAX", 5)
    store.changes = {"eviction_ratio": 0.5}
    store.restart()
    client = store.client()
    client.put({b"k%d" % n: b"x" * 4096 for n in range(240)})
    store.advance(60)
    before = client.stats().evictions
    assert client.put({b"new": b"y" * 40_000}) == {b"new": 0}
    assert client.stats().evictions - before <= 10, "what is needed, or five"
    assert client.put({b"large": b"y" * 160_000}) == {b"large": 0}
    assert client.exist([b"new", b"large"]) == [1, 1]


def test_a_complaint_is_logged_once_in_an_interval_with_the_number_left_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [100.0]
    monkeypatch.setattr(complaints.time, "monotonic", lambda: now[0])
    heard = Complaints()
    with caplog.at_level(logging.WARNING, logger="snapd"):
        for _ in range(50):
            heard.log("bad message", why="x")
        heard.log("another kind")
        now[0] += complaints.INTERVAL_SECONDS
        heard.log("bad message", why="y")
        now[0] += complaints.INTERVAL_SECONDS
        heard.log("bad message", why="z")
    assert [record.message for record in caplog.records] == [
        "bad message",
        "another kind",
        "bad message",
        "bad message",
    ]
    left_out = [vars(record)["snapd_fields"]["not_logged"] for record in caplog.records]
    assert left_out == [0, 0, 49, 0]
