"""What a Mooncake master or store service may answer: each bad answer is a typed error that names
who was asked, what, and the way out, within the deadline."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from contextlib import closing

import numpy as np
import pytest
from fault_ledger import FaultClass, case
from lying_http import LyingServer, Reply, answer, late, raw, reset, trickle

from snapd.attach.mooncake import http as peer_module
from snapd.attach.mooncake.counters import COUNTERS, NEW_OBJECTS, REQUIRED
from snapd.attach.mooncake.http import HttpPeer
from snapd.attach.mooncake.master import MasterAdmin, MasterSegment, split_keys
from snapd.attach.mooncake.service import StoreService
from snapd.blocks import KeyColumn
from snapd.errors import (
    ProtocolError,
    SegmentError,
    SettingError,
    SnapdError,
    StoreUnavailableError,
)

DEADLINE = 0.2
SEGMENT = MasterSegment("1-2", "3-4", 0x7F0000000000, 1 << 20, "10.0.0.1:13000", 0, is_ok=True)
KEYS = KeyColumn.from_list([b"a", b"b"])

QUESTIONS: dict[str, Callable[[MasterAdmin], object]] = {
    "/metrics": MasterAdmin.counters,
    "/get_segments_detail": MasterAdmin.segments,
    "/get_all_keys": MasterAdmin.keys,
    "/batch_query_keys": lambda admin: admin.locate(KEYS, [SEGMENT]),
}


def ask(server: str, question: str) -> object:
    with closing(
        MasterAdmin(server, timeout_seconds=DEADLINE, listing_timeout_seconds=DEADLINE)
    ) as admin:
        return QUESTIONS[question](admin)


def check_error(error: SnapdError, address: str, question: str) -> None:
    text = str(error)
    assert address in text
    assert question in text
    assert "check that" in text
    assert len(text) < 800
    assert "\n" not in text


HTML = b"<!DOCTYPE html><html><body><h1>It works!</h1>\n</body></html>"
DEEP = b"[" * 200_000 + b"]" * 200_000
HEAD = b"HTTP/1.1 200 OK\r\n"

BROKEN: dict[str, tuple[Reply, type[SnapdError]]] = {
    "never answers": (late(30, answer(b"")), StoreUnavailableError),
    "answers after the deadline": (late(1.0, answer(b"")), StoreUnavailableError),
    "headers byte by byte": (trickle(HEAD + b"A: b\r\n" * 90, 0.05), StoreUnavailableError),
    "body byte by byte": (
        trickle(HEAD + b"Content-Length: 500\r\n\r\n" + b"x" * 500, 0.01),
        StoreUnavailableError,
    ),
    "says continue for ever": (
        trickle(b"HTTP/1.1 100 Continue\r\n\r\n" * 5000, 0.0),
        StoreUnavailableError,
    ),
    "closes without a word": (raw(b""), StoreUnavailableError),
    "resets": (reset(), StoreUnavailableError),
    "resets in the body": (reset(HEAD + b"Content-Length: 9\r\n\r\nab"), StoreUnavailableError),
    "HTTP 500": (answer(b"Failed", "500 Internal Server Error"), StoreUnavailableError),
    "HTTP 503 of a standby": (
        answer(b'{"error":"service plane is not active"}', "503 Service Unavailable"),
        StoreUnavailableError,
    ),
    "closes in the headers": (raw(HEAD + b"Content-Le"), ProtocolError),
    "closes in the body": (raw(HEAD + b"Content-Length: 100\r\n\r\nmaster"), ProtocolError),
    "a body without a length": (raw(HEAD + b"\r\nmaster_x 1\n"), ProtocolError),
    "chunks": (
        raw(HEAD + b"Transfer-Encoding: chunked\r\n\r\n-5\r\nab\r\n0\r\n\r\n"),
        ProtocolError,
    ),
    "a negative length": (raw(HEAD + b"Content-Length: -1\r\n\r\n"), ProtocolError),
    "a length over the limit": (
        raw(HEAD + b"Content-Length: 99999999999\r\n\r\nx"),
        ProtocolError,
    ),
    "a header without an end": (raw(HEAD + b"A: " + b"x" * 100_000), ProtocolError),
    "too many headers": (raw(HEAD + b"A: b\r\n" * 1000), ProtocolError),
    "another protocol": (raw(b"SSH-2.0-OpenSSH_9.2\r\n"), ProtocolError),
    "HTTP 404 of another version": (answer(b"not found", "404 Not Found"), ProtocolError),
    "a redirect": (answer(b"", "302 Found", "Location: http://other/"), ProtocolError),
    "a page": (answer(HTML), ProtocolError),
    "bytes that are no text": (answer(bytes(range(256)) * 4), ProtocolError),
}


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_master_is_a_typed_error_in_time(question: str, fault: str) -> None:
    reply, expected = BROKEN[fault]
    with (
        case(FaultClass.NEIGHBOUR, f"Mooncake's master {fault}: {question}"),
        LyingServer([reply]) as server,
    ):
        began = time.monotonic()
        with pytest.raises(expected) as caught:
            ask(server.address, question)
        assert time.monotonic() - began < DEADLINE + 1.0
        check_error(caught.value, server.address, question)


@pytest.mark.parametrize("question", QUESTIONS)
def test_nobody_listens(question: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    with (
        case(FaultClass.NEIGHBOUR, f"Mooncake's master is away: {question}"),
        pytest.raises(StoreUnavailableError, match="refused") as caught,
    ):
        ask(address, question)
    check_error(caught.value, address, question)


def test_a_host_that_has_no_address() -> None:
    with pytest.raises(StoreUnavailableError) as caught:
        ask("no-such-host.invalid:9003", "/metrics")
    check_error(caught.value, "no-such-host.invalid:9003", "/metrics")


def test_a_port_that_is_none() -> None:
    with pytest.raises(SettingError, match="99999"):
        MasterAdmin("127.0.0.1:99999")


def segments_answer(**changes: object) -> bytes:
    segment = {
        "segment_name": "10.0.0.1:13000",
        "segment_id": "1-2",
        "client_id": "3-4",
        "base_address": "0x7f0000000000",
        "size_bytes": 1 << 20,
        "te_endpoint": "10.0.0.1:13000",
        "protocol": "tcp",
        "status": "OK",
        "allocator_used_bytes": 5,
        **changes,
    }
    segment = {name: value for name, value in segment.items() if value != "left out"}
    return json.dumps({"total_segments": 1, "segments": [segment]}).encode()


def query_answer(**changes: object) -> bytes:
    replica = {
        "size_": 100,
        "buffer_address_": 0x7F0000000010,
        "protocol_": "tcp",
        "transport_endpoint_": "10.0.0.1:13000",
        **changes,
    }
    replica = {name: value for name, value in replica.items() if value != "left out"}
    found = {"ok": True, "error": None, "values": [replica]}
    return json.dumps({"success": True, "data": {"a": found, "b": found}}).encode()


NONSENSE: list[tuple[str, str, bytes]] = [
    ("/metrics", "nothing", b""),
    ("/metrics", "counters of something else", b"process_cpu_seconds_total 5\n"),
    (
        "/metrics",
        "a counter that an older version lacks",
        b"\n".join(f"{name} 1".encode() for name in sorted(REQUIRED)[1:]),
    ),
    ("/metrics", "negative counters", b"\n".join(f"{name} -1".encode() for name in COUNTERS)),
    ("/metrics", "counters that are no numbers", b"\n".join(f"{n} NaN".encode() for n in COUNTERS)),
    (
        "/metrics",
        "counters of 5000 digits",
        b"\n".join(name.encode() + b" " + b"9" * 5000 for name in COUNTERS),
    ),
    ("/get_segments_detail", "deep JSON", DEEP),
    ("/get_segments_detail", "cut JSON", segments_answer()[:-3]),
    ("/get_segments_detail", "a list", b"[]"),
    ("/get_segments_detail", "null", b"null"),
    ("/get_segments_detail", "no segments", b"{}"),
    ("/get_segments_detail", "JSON that is not UTF-8", segments_answer().replace(b"OK", b"\xff")),
    *(
        ("/get_segments_detail", f"{name} = {value!r:.20}", segments_answer(**{name: value}))
        for name, value in [
            ("segment_id", 5),
            ("segment_id", "left out"),
            ("client_id", None),
            ("base_address", "0xzz"),
            ("base_address", "12"),
            ("base_address", "-0x1"),
            ("base_address", "0x" + "f" * 17),
            ("base_address", "0x" + "f" * 16),
            ("base_address", 12),
            ("size_bytes", -1),
            ("size_bytes", 1.5),
            ("size_bytes", "12"),
            ("size_bytes", 1 << 70),
            ("te_endpoint", "left out"),
            ("status", None),
            ("allocator_used_bytes", -1),
            ("allocator_used_bytes", "left out"),
        ]
    ),
    ("/get_all_keys", "the last key cut", b"a\nb"),
    ("/get_all_keys", "an error that looks like one key", b"Failed to get all keys"),
    ("/batch_query_keys", "deep JSON", DEEP),
    ("/batch_query_keys", "deep JSON in it", b'{"success":true,"data":{"a":' + DEEP + b"}}"),
    ("/batch_query_keys", "cut JSON", query_answer()[:-3]),
    ("/batch_query_keys", "a failure", b'{"success":false,"data":{}}'),
    ("/batch_query_keys", "a key left out", b'{"success":true,"data":{"a":{"ok":false}}}'),
    ("/batch_query_keys", "data of another type", b'{"success":true,"data":[]}'),
    *(
        ("/batch_query_keys", f"{name} = {value!r:.20}", query_answer(**{name: value}))
        for name, value in [
            ("size_", -1),
            ("size_", 1 << 64),
            ("size_", 0.5),
            ("size_", None),
            ("size_", "left out"),
            ("buffer_address_", -1),
            ("buffer_address_", 1 << 64),
            ("buffer_address_", "0x7f"),
            ("buffer_address_", "left out"),
            ("transport_endpoint_", 7),
            ("transport_endpoint_", "left out"),
        ]
    ),
]


@pytest.mark.parametrize(("question", "fault", "body"), NONSENSE, ids=lambda one: f"{one!r:.40}")
def test_nonsense_is_a_typed_error(question: str, fault: str, body: bytes) -> None:
    with (
        case(FaultClass.NEIGHBOUR, f"Mooncake's master answers nonsense: {question}: {fault}"),
        LyingServer([answer(body)]) as server,
        pytest.raises(ProtocolError) as caught,
    ):
        ask(server.address, question)
    check_error(caught.value, server.address, question)


OUTSIDE = {
    "before the segment": {"buffer_address_": 0x7F0000000000 - 1},
    "over its end": {"buffer_address_": 0x7F0000000000 + (1 << 20) - 99},
    "behind it": {"buffer_address_": 0x7F0000000000 + (1 << 20)},
    "at the end of all addresses": {"buffer_address_": (1 << 64) - 1},
    "at address 0": {"buffer_address_": 0},
    "larger than it": {"size_": (1 << 20) + 1, "buffer_address_": 0x7F0000000000},
    "as large as all addresses": {"size_": (1 << 64) - 1},
    "of no bytes": {"size_": 0},
    "of another store": {"transport_endpoint_": "10.0.0.2:13000"},
}


@pytest.mark.parametrize("fault", OUTSIDE)
def test_a_replica_that_is_not_wholly_in_a_segment_is_not_in_it(fault: str) -> None:
    body = query_answer(**OUTSIDE[fault])
    with (
        case(FaultClass.NEIGHBOUR, f"Mooncake's master lists a replica {fault}"),
        LyingServer([answer(body)]) as server,
        closing(MasterAdmin(server.address)) as admin,
    ):
        places = admin.locate(KEYS, [SEGMENT])
    assert places.found.tolist() == [True, True]
    assert places.segment.tolist() == [-1, -1]
    assert places.offset.tolist() == places.size.tolist() == [0, 0]


def test_a_replica_inside_counts_to_its_last_byte() -> None:
    last = 0x7F0000000000 + (1 << 20) - 100
    other = MasterSegment("5-6", "3-4", 0x7E0000000000, 1 << 20, "10.0.0.1:13000", 0, is_ok=True)
    body = query_answer(buffer_address_=last)
    with LyingServer([answer(body)]) as server, closing(MasterAdmin(server.address)) as admin:
        places = admin.locate(KEYS, [other, SEGMENT])
        nowhere = admin.locate(KEYS, [])
    assert places.segment.tolist() == [1, 1]
    assert places.offset.tolist() == [(1 << 20) - 100] * 2
    assert places.size.tolist() == [100, 100]
    assert nowhere.found.tolist() == [True, True]
    assert nowhere.segment.tolist() == [-1, -1]


def test_a_connection_is_kept_and_made_again_when_it_went_stale() -> None:
    segments = answer(segments_answer())
    with (
        case(FaultClass.NEIGHBOUR, "Mooncake's master closes a kept connection"),
        LyingServer([segments, segments, raw(b""), segments]) as server,
        closing(MasterAdmin(server.address)) as admin,
    ):
        for _ in range(3):
            assert [each.base_address for each in admin.segments()] == [0x7F0000000000]
        assert server.connections == 2
        assert len(server.requests) == 4


def test_after_an_error_the_next_question_gets_its_own_answer() -> None:
    """An answer that came too late must not be taken for that of the next question."""
    slow = late(DEADLINE + 0.3, answer(segments_answer(segment_id="late")))
    with (
        case(FaultClass.NEIGHBOUR, "Mooncake's master answers the question before"),
        LyingServer([slow, answer(segments_answer(segment_id="prompt"))]) as server,
        closing(MasterAdmin(server.address, timeout_seconds=DEADLINE)) as admin,
    ):
        with pytest.raises(StoreUnavailableError):
            admin.segments()
        assert [each.segment_id for each in admin.segments()] == ["prompt"]


def test_a_body_stops_at_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_module, "_PIECE_BYTES", 16)
    with LyingServer([answer(b"x" * 1000)]) as server:
        peer = HttpPeer("somebody", server.url, "go away")
        with closing(peer):
            options = {"question": "GET /", "timeout_seconds": 5.0}
            whole = peer.ask("GET", "/", body_bytes_max=1000, **options)
            assert (whole.status, bytes(whole.body)) == (200, b"x" * 1000)
            with pytest.raises(ProtocolError, match="999 are the limit"):
                peer.ask("GET", "/", body_bytes_max=999, **options)


def test_keys_that_cannot_be_asked_about_are_counted() -> None:
    keys = split_keys(bytearray(b"a\nb,c\n\n\xff\xfe\n" + b"x" * 1025 + b"\nd\na\n\xc3\xa4\n"))
    assert keys.to_list() == [b"a", b"d", b"\xc3\xa4"]
    assert keys.unlistable == 4
    assert split_keys(bytearray()).to_list() == []
    assert split_keys(bytearray(b"\n")).unlistable == 1


def test_a_listing_of_many_keys_is_split_as_lines_are() -> None:
    names = [f"model_{i:064x}_{i % 8}_k".encode() for i in range(5000)]
    keys = split_keys(bytearray(b"".join(name + b"\n" for name in names)))
    assert keys.to_list() == names
    assert keys.unlistable == 0


def test_questions_are_cut_by_number_and_by_bytes() -> None:
    found = {"ok": False, "error": "OBJECT_NOT_FOUND"}
    names = [f"{i:04d}".encode() + b"x" * 1000 for i in range(700)]
    everything = {name.decode(): found for name in names}
    body = json.dumps({"success": True, "data": everything}).encode()
    with LyingServer([answer(body)]) as server, closing(MasterAdmin(server.address)) as admin:
        places = admin.locate(KeyColumn.from_list([*names, b"a,b", b"\xff", b""]), [SEGMENT])
    assert not places.found.any()
    assert len(places.found) == 703
    asked = b",".join(r.split(b"keys=")[1].split(b" HTTP")[0] for r in server.requests)
    assert asked.split(b",") == names
    assert max(map(len, server.requests)) < 1 << 18


# --- a store service ------------------------------------------------------------------------------

SERVICE_REFUSALS = {
    "refuses": answer(b'{"error": "Mount failed, ret=-1"}', "500 Internal Server Error"),
    "refuses at length": answer(
        json.dumps({"error": "no\n" * 100_000}).encode(), "500 Internal Server Error"
    ),
    "refuses without JSON": answer(HTML, "500 Internal Server Error"),
    "refuses with deep JSON": answer(DEEP, "400 Bad Request"),
    "demands a login": answer(b"", "401 Unauthorized"),
}
SERVICE_NONSENSE = {
    "a page": answer(HTML),
    "deep JSON": answer(DEEP),
    "no ids": answer(b'{"status": "success"}'),
    "an empty list of ids": answer(b'{"status": "success", "segment_ids": []}'),
    "ids that are numbers": answer(b'{"status": "success", "segment_ids": [1]}'),
    "ids that are paths": answer(b'{"status": "success", "segment_ids": ["../1-2"]}'),
    "too many ids": answer(
        json.dumps({"status": "success", "segment_ids": ["1-2"] * 5000}).encode()
    ),
    "a huge body": answer(b" " * (2 << 20)),
}


@pytest.mark.parametrize("fault", SERVICE_REFUSALS)
def test_a_service_that_refuses_the_mount(fault: str) -> None:
    with (
        case(FaultClass.NEIGHBOUR, f"Mooncake's store service {fault}"),
        LyingServer([SERVICE_REFUSALS[fault]]) as server,
        closing(StoreService(server.url + "/")) as service,
    ):
        with pytest.raises(SegmentError, match=r"refused to mount /dev/shm/f of 4096") as caught:
            service.mount("f", 4096)
        check_error(caught.value, server.url, "mount")
        with pytest.raises(SegmentError, match="refused to unmount 1-2"):
            service.unmount(["1-2"])


def test_who_is_too_old_is_told_which_version_it_takes() -> None:
    with (
        case(FaultClass.NEIGHBOUR, "Mooncake of a version without what we ask"),
        LyingServer([answer(b"404: Not Found", "404 Not Found")]) as server,
        closing(StoreService(server.url)) as service,
        closing(MasterAdmin(server.address)) as admin,
    ):
        with pytest.raises(ProtocolError, match=r"mount_shm of f .*Mooncake 0\.3\.12 or newer"):
            service.mount("f", 4096)
        with pytest.raises(ProtocolError, match=r"segments_detail .*Mooncake 0\.3\.12 or newer"):
            admin.segments()


def test_a_master_without_any_object_yet_shows_no_histogram() -> None:
    names = sorted(COUNTERS - {NEW_OBJECTS})
    fresh = answer("".join(f"{name} 0\n" for name in names).encode())
    with LyingServer([fresh]) as server, closing(MasterAdmin(server.address)) as admin:
        counters = admin.counters()
    assert counters.new_objects == 1
    assert counters.put_ends == counters.removes == 0


@pytest.mark.parametrize("fault", SERVICE_NONSENSE)
def test_a_service_that_answers_nonsense(fault: str) -> None:
    with (
        case(FaultClass.NEIGHBOUR, f"Mooncake's store service answers a mount with {fault}"),
        LyingServer([SERVICE_NONSENSE[fault]]) as server,
        closing(StoreService(server.url)) as service,
        pytest.raises(ProtocolError) as caught,
    ):
        service.mount("f", 4096)
    check_error(caught.value, server.url, "POST /api/mount_shm of f")


@pytest.mark.parametrize("fault", ["never answers", "closes without a word", "resets"])
def test_a_mount_whose_answer_is_lost_is_not_sent_twice(fault: str) -> None:
    """It may have been carried out, and a second mount of one file overlays two allocators."""
    alive = answer(b"", "404 Not Found")
    with (
        case(FaultClass.NEIGHBOUR, f"Mooncake's store service {fault} in a mount"),
        LyingServer([alive, BROKEN[fault][0]]) as server,
        closing(StoreService(server.url, timeout_seconds=DEADLINE)) as service,
    ):
        assert service.alive()
        with pytest.raises(StoreUnavailableError) as caught:
            service.mount("f", 4096)
        check_error(caught.value, server.url, "POST /api/mount_shm of f")
        time.sleep(0.05)
        assert sum(request.startswith(b"POST") for request in server.requests) == 1


def test_a_service_that_hangs_is_not_alive() -> None:
    with (
        LyingServer([late(30, answer(b""))]) as server,
        closing(StoreService(server.url, timeout_seconds=0.2)) as service,
    ):
        assert not service.alive()


def test_a_mount_says_what_and_gives_the_ids() -> None:
    body = b'{"status": "success", "segment_ids": ["1-2", "18446744073709551615-0"]}'
    with LyingServer([answer(body)]) as server, closing(StoreService(server.url)) as service:
        assert service.mount("f", 4096).segment_ids == ("1-2", "18446744073709551615-0")
        service.unmount(["1-2", "3-4"])
    sent = [json.loads(request.partition(b"\r\n\r\n")[2]) for request in server.requests]
    assert sent == [{"name": "f", "size": 4096}, {"segment_ids": ["1-2", "3-4"]}]


def test_places_have_the_types_that_users_count_on() -> None:
    with (
        LyingServer([answer(query_answer())]) as server,
        closing(MasterAdmin(server.address)) as admin,
    ):
        places = admin.locate(KEYS, [SEGMENT])
    dtypes = [places.found.dtype, places.segment.dtype, places.offset.dtype, places.size.dtype]
    assert dtypes == [np.bool_, np.int64, np.uint64, np.uint64]
    assert places.offset.tolist() == [16, 16]
