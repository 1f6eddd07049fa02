"""Weights that change at any moment: no page is ever written under the label of other weights."""

from __future__ import annotations

import random
import threading
import time
from typing import Any

from snapd.sglang.labelling import Labelling

REPEAT = "./check -- tests/unit/test_sglang_labelling.py"


class Pool:
    """A host pool as far as it is watched."""

    def __init__(self) -> None:
        self.cleared = 0

    def clear(self) -> None:
        self.cleared += 1


class Server:
    """The weights that are served, and the label that the store was told."""

    def __init__(self) -> None:
        self.weights = "a"
        self.label = ""
        self.pool = Pool()
        self.labelling = Labelling(lambda: self.weights, self._take)
        self.labelling.add_pool("kv", self.pool)

    def _take(self, weights: Any, pools: dict[str, Any]) -> None:
        assert pools == {"kv": self.pool}
        self.label = weights


def may_write(server: Server) -> bool:
    with server.labelling.writing() as may:
        return may


def test_pages_are_written_only_if_the_pool_was_cleared_under_their_weights() -> None:
    server = Server()
    assert (server.label, may_write(server)) == ("a", True)
    server.weights = "b"  # recorded; the flush comes after that
    assert not may_write(server)
    assert server.labelling.reading()
    assert server.label == "b"
    server.pool.clear()
    assert may_write(server)
    assert server.pool.cleared == 1


def test_a_flush_before_anybody_looks_is_noticed_as_well() -> None:
    server = Server()
    server.weights = "b"
    server.pool.clear()
    assert may_write(server)
    assert server.label == "b"


def test_weights_that_come_back_without_a_flush_do_not_vouch_for_the_pool() -> None:
    server = Server()
    server.weights = "b"
    assert server.labelling.reading()
    server.weights = "a"
    assert not may_write(server)
    server.pool.clear()
    assert may_write(server)


def test_a_pool_is_let_go_of() -> None:
    server = Server()
    server.labelling.close()
    server.labelling.close()
    assert server.pool.clear.__func__ is Pool.clear  # type: ignore[attr-defined]


def test_a_lookup_misses_while_a_write_holds_the_old_label() -> None:
    server = Server()
    with server.labelling.writing() as may:
        assert may
        server.weights = "b"
        answers: list[bool] = []
        begin = time.monotonic()
        reader = threading.Thread(target=lambda: answers.append(server.labelling.reading()))
        reader.start()
        reader.join()
        assert (answers, server.label) == ([False], "a")
        assert time.monotonic() - begin < 5
    assert server.labelling.reading()
    assert server.label == "b"


def test_no_schedule_writes_pages_of_one_label_under_another() -> None:
    """A scheduler that updates and flushes, a thread that writes what it had queued, readers."""
    seed = 7
    random_ = random.Random(seed)
    server = Server()
    written: list[tuple[str, str]] = []
    computed = [server.weights]
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            pages_of = computed[0]  # queued now, written a little later
            time.sleep(0)
            with server.labelling.writing() as may:
                if may and pages_of == computed[0]:
                    # SGLang empties the queue at a flush: what was queued before is not written.
                    written.append((pages_of, server.label))

    def read() -> None:
        while not stop.is_set():
            server.labelling.reading()

    threads = [threading.Thread(target=each) for each in (write, read, read)]
    for thread in threads:
        thread.start()
    for number in range(2000):
        if number >= 60 and len({label for _, label in written[:]}) > 10:
            break  # on a busy machine the writer needs longer to have its chance
        server.weights = f"weights-{number}"
        time.sleep(random_.random() * 0.002)
        with server.labelling._changing:  # the storage threads are stopped meanwhile
            server.pool.clear()
            computed[0] = server.weights
        time.sleep(random_.random() * 0.004)
    stop.set()
    for thread in threads:
        thread.join()
    wrong = [pair for pair in written if pair[0] != pair[1]]
    assert not wrong, f"seed={seed} {wrong[:3]}; repeat it with {REPEAT}"
    assert len({label for _, label in written}) > 10, "the writer had no chance"
