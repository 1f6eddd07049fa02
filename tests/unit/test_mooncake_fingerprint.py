"""The label of blocks: what SGLang says of itself, and when nobody knows."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sglang_frontend import LABEL, MODEL, SERVER, SglangFrontend

from snapd.attach.mooncake.fingerprint import (
    Fingerprints,
    ModelInfo,
    ServerInfo,
    SglangServer,
    label_of,
)
from snapd.errors import ProtocolError, RefusedError, StoreUnavailableError
from snapd.formats.tables import FINGERPRINT_BYTES_MAX


@pytest.fixture
def sglang() -> Iterator[SglangFrontend]:
    frontend = SglangFrontend()
    frontend.say("/model_info", MODEL)
    frontend.say("/server_info", SERVER)
    frontend.start()
    yield frontend
    frontend.stop()


class Table:
    """Ids of labels as a repository gives them."""

    def __init__(self, labels_max: int = 100) -> None:
        self.labels: list[str] = []
        self._labels_max = labels_max

    def number(self, label: str) -> int:
        if not label:
            return 0
        if label not in self.labels:
            if len(self.labels) == self._labels_max:
                raise RefusedError("the table of fingerprints is full")
            self.labels.append(label)
        return self.labels.index(label) + 1


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


Make = Callable[..., Fingerprints]


@pytest.fixture
def fingerprints() -> Iterator[Make]:
    made: list[Fingerprints] = []

    def make(url: str, configured: str = "", **options: Any) -> Fingerprints:
        table = options.pop("table", None) or Table()
        made.append(Fingerprints(configured, url, table.number, threading.Event(), **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_label_is_canonical_and_leaves_out_what_a_version_does_not_say() -> None:
    server = ServerInfo(
        model_path="a b=c/ü", tp_size=8, dtype="bfloat16", quantization="", revision=None
    )
    assert label_of(server, None) == "dtype=bfloat16 model_path=a%20b%3Dc/%C3%BC tp_size=8"


def test_label_follows_an_update_of_the_weights() -> None:
    server = ServerInfo(model_path="m", weight_version="1")
    assert label_of(server, ModelInfo("n", "2")) == "model_path=n weight_version=2"


def test_label_tells_every_field_apart() -> None:
    names = [n for n in ServerInfo.__struct_fields__ if n != "hicache_object_layout"]
    base = dict.fromkeys(names, "x")
    labels = {label_of(ServerInfo(**{**base, name: "y"}), None) for name in names}
    assert len(labels) == len(names)
    assert label_of(ServerInfo(**base), None) not in labels


def test_label_that_is_too_long_is_named_by_its_digest() -> None:
    first = label_of(ServerInfo(model_path="m" * 5000), None)
    assert len(first) <= FINGERPRINT_BYTES_MAX
    assert first != label_of(ServerInfo(model_path="m" * 5001), None)


def test_learns_from_what_sglang_answers(sglang: SglangFrontend, fingerprints: Make) -> None:
    known = fingerprints(sglang.url)
    assert (known.label, known.present()) == ("", 0)
    known.look()
    assert (known.label, known.present(), known.problem) == (LABEL, 1, "")


def test_learns_from_a_version_that_has_only_the_older_pages(
    sglang: SglangFrontend, fingerprints: Make
) -> None:
    del sglang.pages["/server_info"], sglang.pages["/model_info"]
    sglang.say("/get_server_info", SERVER)
    known = fingerprints(sglang.url)
    known.look()
    assert known.label == LABEL


def test_the_long_answer_is_asked_for_once_in_a_while(
    sglang: SglangFrontend, fingerprints: Make
) -> None:
    clock = Clock()
    known = fingerprints(sglang.url, clock=clock)
    for _ in range(3):
        known.look()
    assert sglang.asked.count("/server_info") == 1
    assert sglang.asked.count("/model_info") == 3
    clock.now += 31
    sglang.say("/server_info", SERVER | {"page_size": 1})
    known.look()
    assert "page_size=1 " in known.label


def test_new_weights_are_another_label_at_once(sglang: SglangFrontend, fingerprints: Make) -> None:
    known = fingerprints(sglang.url)
    known.look()
    first = known.present()
    sglang.say("/model_info", MODEL | {"weight_version": "2"})
    known.look()
    assert known.label == LABEL.replace("weight_version=default", "weight_version=2")
    assert {first, known.present()} == {1, 2}


def test_no_label_is_in_force_once_sglang_is_gone(
    sglang: SglangFrontend, fingerprints: Make
) -> None:
    known = fingerprints(sglang.url)
    known.look()
    sglang.stop()
    known.look()
    assert (known.label, known.present()) == ("", 0)
    assert "sglang_url" in known.problem
    sglang.start()
    known.look()
    assert (known.label, known.present(), known.problem) == (LABEL, 1, "")


def test_a_busy_sglang_keeps_its_label_for_a_while(
    sglang: SglangFrontend, fingerprints: Make
) -> None:
    clock = Clock()
    known = fingerprints(sglang.url, clock=clock, timeout_seconds=0.2)
    known.look()
    sglang.slow_seconds = 0.5
    clock.now += 29
    known.look()
    assert known.label == LABEL
    assert "no answer" in known.problem
    clock.now += 2
    known.look()
    assert known.label == ""


@pytest.mark.parametrize(
    ("path", "status", "body"),
    [
        ("/model_info", 500, b"{}"),
        ("/model_info", 503, b"no backend"),
        ("/model_info", 200, b"<html>"),
        ("/model_info", 200, b"{}"),
        ("/server_info", 200, b'{"model_path": 1}'),
        ("/server_info", 200, b'{"model_path": "m", "dtype": ["bfloat16"]}'),
        ("/server_info", 200, b'{"model_path": "m", "x": ' + b"[" * 100_000),
        ("/server_info", 200, b"\xff\xfe"),
        ("/server_info", 401, b"{}"),
    ],
)
def test_an_answer_of_no_use_leaves_no_label_in_force(
    sglang: SglangFrontend, fingerprints: Make, path: str, status: int, body: bytes
) -> None:
    sglang.pages[path] = (status, body)
    known = fingerprints(sglang.url)
    known.look()
    assert known.present() == 0
    assert "SGLang at http://127.0.0.1" in known.problem


def test_a_server_that_is_not_sglang_says_what_to_do(sglang: SglangFrontend) -> None:
    sglang.pages.clear()
    server = SglangServer(sglang.url)
    with pytest.raises(ProtocolError, match="set fingerprint instead"):
        server.server_info()
    server.close()
    sglang.stop()
    with pytest.raises(StoreUnavailableError, match="sglang_url"):
        SglangServer(sglang.url).model_info()


def test_the_setting_stands_and_nobody_is_asked(sglang: SglangFrontend, fingerprints: Make) -> None:
    known = fingerprints(sglang.url, configured="mine")
    known.run()
    assert (known.label, known.present(), known.at_look()) == ("mine", 1, 1)
    assert sglang.asked == []


def test_blocks_are_labelled_only_if_no_other_label_was_in_force_since_the_look_before(
    sglang: SglangFrontend, fingerprints: Make
) -> None:
    known = fingerprints(sglang.url)
    known.look()
    assert known.at_look() == 0, "what was there before the daemon is whose?"
    assert known.at_look() == 1
    sglang.say("/model_info", MODEL | {"weight_version": "2"})
    known.look()
    assert [known.at_look(), known.at_look()] == [0, 2]
    sglang.say("/model_info", MODEL)
    known.look()
    sglang.say("/model_info", MODEL | {"weight_version": "2"})
    known.look()
    assert [known.at_look(), known.at_look()] == [0, 2]


def test_blocks_that_came_since_sglang_was_away_are_of_the_one_that_came(
    sglang: SglangFrontend, fingerprints: Make
) -> None:
    sglang.stop()
    known = fingerprints(sglang.url)
    assert known.at_look() == 0
    known.look()
    assert [known.at_look(), known.at_look()] == [0, 0]
    sglang.start()
    known.look()
    assert [known.at_look(), known.at_look()] == [1, 1]


def test_blocks_of_two_that_came_since_the_look_before_have_no_label(
    sglang: SglangFrontend, fingerprints: Make
) -> None:
    known = fingerprints(sglang.url)
    known.look()
    assert [known.at_look(), known.at_look()] == [0, 1]
    sglang.stop()
    known.look()
    sglang.say("/model_info", MODEL | {"weight_version": "2"})
    sglang.start()
    known.look()
    assert [known.at_look(), known.at_look()] == [0, 2]


def test_blocks_that_came_while_sglang_answered_nonsense_have_no_label(
    sglang: SglangFrontend, fingerprints: Make
) -> None:
    known = fingerprints(sglang.url)
    known.look()
    assert [known.at_look(), known.at_look()] == [0, 1]
    sglang.say("/model_info", {}, status=502)
    known.look()
    sglang.say("/model_info", MODEL)
    known.look()
    assert [known.at_look(), known.at_look()] == [0, 1]


def test_a_full_table_leaves_blocks_unlabelled(sglang: SglangFrontend, fingerprints: Make) -> None:
    known = fingerprints(sglang.url, table=Table(labels_max=0))
    known.look()
    assert known.present() == 0


def test_its_thread_follows_sglang_and_ends_with_the_daemon(sglang: SglangFrontend) -> None:
    stopping = threading.Event()
    known = Fingerprints("", sglang.url, Table().number, stopping)
    thread = threading.Thread(target=known.run)
    thread.start()
    deadline = time.monotonic() + 10
    while not known.label and time.monotonic() < deadline:
        time.sleep(0.01)
    stopping.set()
    thread.join(5)
    assert not thread.is_alive()
    assert known.label == LABEL
