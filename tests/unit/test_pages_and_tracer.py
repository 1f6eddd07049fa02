"""Page ids in keys, and the sending end of the trace channel: it never blocks and never raises."""

from __future__ import annotations

import hashlib
import os
import socket
import time
from pathlib import Path

import numpy as np
import pytest

from snapd.blocks import KeyColumn, page_id, page_ids, page_ids_of_hashes
from snapd.client.trace import Tracer
from snapd.errors import ProtocolError
from snapd.wire.trace import (
    DATAGRAM_BYTES_MAX,
    PAGES_MAX,
    Lookup,
    decode_lookup,
    encode_lookup,
)

_DIGEST = hashlib.sha256(b"one page").hexdigest()
_OTHER = hashlib.sha256(b"another").hexdigest()


@pytest.mark.parametrize(
    "key",
    [
        f"{_DIGEST}_0_k",
        f"{_DIGEST}_0_v",
        f"{_DIGEST}_3_1_v",
        f"{_DIGEST}__k",
        f"tag_model-7b_{_DIGEST}_0_k",
        f"abc_{_DIGEST}_0_k",
        f"{_OTHER}_{_DIGEST}_0_k",
        _DIGEST,
    ],
)
def test_every_part_of_a_page_has_the_same_id(key: str) -> None:
    assert page_id(key) == int(_DIGEST[:16], 16)
    assert page_ids(KeyColumn.from_list([key.encode()])).tolist() == [page_id(key)]


@pytest.mark.parametrize("key", ["", "k", _DIGEST[:63], _DIGEST + "0", _DIGEST.upper(), "f" * 128])
def test_keys_that_name_no_page_have_id_0(key: str) -> None:
    assert page_id(key) == 0
    assert page_ids(KeyColumn.from_list([key.encode()])).tolist() == [0]


@pytest.mark.parametrize("label", [0, 12345])
@pytest.mark.parametrize(
    "hashes",
    [
        [],
        [_DIGEST, _OTHER],
        ["1" * 64],
        [_DIGEST, "no hash"],
        [_DIGEST.upper()],
        [" " * 64, _DIGEST],
        ["g" * 64],
        [_DIGEST[:63] + "g"],
        ["\u0661" * 64],
    ],
)
def test_hashes_at_once_are_the_ids_of_each(hashes: list[str], label: int) -> None:
    ids = page_ids_of_hashes(hashes, label)
    assert ids.dtype == np.uint64
    if hashes != [_DIGEST[:63] + "g"]:  # only the digits that make the id are looked at
        assert ids.tolist() == [page_id(one, label) for one in hashes]


def test_neighbours_in_the_heap_do_not_make_a_hash_together() -> None:
    halves = [_DIGEST[:32].encode(), _DIGEST[32:].encode(), b"", _DIGEST.encode(), b""]
    assert page_ids(KeyColumn.from_list(halves)).tolist() == [0, 0, 0, page_id(_DIGEST), 0]


def test_a_column_of_many_keys_is_cut_where_it_begins_and_ends() -> None:
    names = [hashlib.sha256(b"%d" % at).hexdigest() + "_0_k" for at in range(70_000)]
    names[65_535] = "no page"
    column = KeyColumn.from_list([name.encode() for name in names])
    assert page_ids(column).tolist() == [page_id(name) for name in names]


def test_a_lookup_survives_the_wire() -> None:
    pages = np.array([1, 2**64 - 1, 7], np.uint64)
    back = decode_lookup(encode_lookup(Lookup(pages, 2**64 - 1, 5, 2)))
    assert back.pages.tolist() == pages.tolist()
    assert (back.parent, back.depth, back.hits) == (2**64 - 1, 5, 2)


def test_the_longest_lookup_fits_its_bound() -> None:
    pages = np.full(PAGES_MAX, 2**64 - 1, np.uint64)
    raw = encode_lookup(Lookup(pages, 2**64 - 1, 2**32 - 1, PAGES_MAX))
    assert len(raw) <= DATAGRAM_BYTES_MAX


def test_what_is_no_lookup_is_refused() -> None:
    good = encode_lookup(Lookup(np.array([1, 2], np.uint64), 0, 0, 1))
    bad = [
        b"",
        b"\xc1",
        good[:-1],
        good + b"\x00",
        encode_lookup(Lookup(np.array([1], np.uint64), 0, 0, 2)),
        encode_lookup(Lookup(np.array([], np.uint64), 0, 0, 0)),
        encode_lookup(Lookup(np.zeros(PAGES_MAX + 1, np.uint64), 0, 0, 0)),
        encode_lookup(Lookup(np.array([1], np.uint64), 0, 2**32, 0)),
        encode_lookup(Lookup(np.array([1], np.uint64), -1, 0, 0)),
        bytes([good[0], 9]) + good[2:],
    ]
    for raw in bad:
        with pytest.raises(ProtocolError):
            decode_lookup(raw)


def _listener(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.bind(str(path))
    listener.settimeout(5.0)
    return listener


def test_a_long_chain_goes_in_parts_that_hang_together(tmp_path: Path) -> None:
    with _listener(tmp_path / "t") as listener:
        tracer = Tracer(str(tmp_path / "t"))
        chain = np.arange(1, PAGES_MAX + 11, dtype=np.uint64)
        tracer.lookup(chain, hits=PAGES_MAX + 3)
        first, second = (decode_lookup(listener.recv(2 * DATAGRAM_BYTES_MAX)) for _ in range(2))
        tracer.close()
    assert (first.parent, first.depth, first.hits, len(first.pages)) == (0, 0, PAGES_MAX, PAGES_MAX)
    assert (second.parent, second.depth, second.hits) == (PAGES_MAX, PAGES_MAX, 3)
    assert second.pages.tolist() == chain[PAGES_MAX:].tolist()
    assert tracer.sent == 2


def test_a_full_queue_costs_a_count_and_no_time(tmp_path: Path) -> None:
    with _listener(tmp_path / "t"):
        tracer = Tracer(str(tmp_path / "t"))
        started = time.monotonic()
        for at in range(2000):
            tracer.lookup([at + 1], hits=1)
        assert time.monotonic() - started < 2.0
        assert tracer.dropped > 1000
        assert tracer.sent + tracer.dropped == 2000
        tracer.close()


def test_a_daemon_that_comes_late_or_again_is_found(tmp_path: Path) -> None:
    path = tmp_path / "t"
    tracer = Tracer(str(path))
    tracer.lookup([1], hits=0)
    assert (tracer.sent, tracer.dropped) == (0, 1)
    for _ in range(2):
        with _listener(path) as listener:
            until = time.monotonic() + 5.0
            before = tracer.sent
            while tracer.sent == before and time.monotonic() < until:
                tracer.lookup([7], hits=1)
                time.sleep(0.02)
            assert decode_lookup(listener.recv(DATAGRAM_BYTES_MAX)).pages.tolist() == [7]
        path.unlink()
    tracer.close()
    tracer.close()
    tracer.lookup([7], hits=1)


@pytest.mark.parametrize(
    ("pages", "arguments"),
    [
        ([-1], {}),
        ([2**64], {}),
        (["a"], {}),
        (None, {}),
        (np.zeros((2, 2), np.uint64), {}),
        (np.zeros(2), {}),
        ([1], {"parent": -1}),
        ([1], {"parent": 2**64}),
        ([1], {"depth": 2**32}),
        ([1], {"depth": "x"}),
    ],
)
def test_arguments_that_make_no_lookup_are_dropped(
    tmp_path: Path, pages: object, arguments: dict[str, object]
) -> None:
    with _listener(tmp_path / "t") as listener:
        tracer = Tracer(str(tmp_path / "t"))
        tracer.lookup(pages, hits=1, **arguments)  # type: ignore[arg-type]
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.recv(64)
        assert (tracer.sent, tracer.dropped) == (0, 1)
        tracer.lookup([], hits=0)
        assert (tracer.sent, tracer.dropped) == (0, 1)
        tracer.close()


def test_a_forked_child_sends_on_a_socket_of_its_own(tmp_path: Path) -> None:
    with _listener(tmp_path / "t") as listener:
        tracer = Tracer(str(tmp_path / "t"))
        tracer.lookup([1], hits=1)
        # The child finds the lock held, as by a thread that was not forked along.
        with tracer._lock:
            child = os.fork()
            if child == 0:
                tracer.lookup([2], hits=1)
                os._exit(0 if tracer.sent == 2 else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        tracer.lookup([3], hits=1)
        seen = [decode_lookup(listener.recv(DATAGRAM_BYTES_MAX)).pages[0] for _ in range(3)]
        assert seen == [1, 2, 3]
        tracer.close()
