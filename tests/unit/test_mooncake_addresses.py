"""Where a file may be mapped in a store service, and when a service's process has ended."""

from __future__ import annotations

import socket

from snapd.attach.mooncake.addresses import Addresses
from snapd.attach.mooncake.files import PAGE_BYTES
from snapd.attach.mooncake.master import MasterSegment
from snapd.attach.mooncake.watch import ProcessWatch

SIZE = 64 << 20
TOP = 0x7F00_0000_0000


class Time:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def segment(name: str, base: int, size: int = SIZE) -> MasterSegment:
    return MasterSegment(
        segment_id=name,
        client_id="1-1",
        endpoint="host:1",
        base_address=base,
        size_bytes=size,
        used_bytes=0,
        is_ok=True,
    )


def after_a_death(time: Time) -> Addresses:
    """The second file lies right below the first one, which was unmounted."""
    addresses = Addresses(60.0, time)
    addresses.mapped([segment("first", TOP)])
    addresses.mapped([segment("second", TOP - SIZE)])
    addresses.given_up(["first"])
    return addresses


def test_a_place_is_not_used_again_until_its_time_is_over() -> None:
    time = Time()
    addresses = after_a_death(time)
    for base in (TOP - SIZE + PAGE_BYTES, TOP, TOP + SIZE - PAGE_BYTES):
        assert addresses.collides([segment("third", base)])
    for base in (TOP - 2 * SIZE, TOP + SIZE):
        assert not addresses.collides([segment("third", base)])
    time.now += 60.0
    assert not addresses.collides([segment("third", TOP)])


def test_a_file_that_does_not_fit_into_the_gap_need_not_wait() -> None:
    addresses = after_a_death(Time())
    assert addresses.wait_seconds(SIZE) == 60.0
    assert addresses.size_beside(SIZE) == SIZE + PAGE_BYTES
    assert addresses.wait_seconds(SIZE + PAGE_BYTES) == 0.0


def test_a_gap_of_two_files_has_the_third_wait() -> None:
    time = Time()
    addresses = after_a_death(time)
    addresses.mapped([segment("third", TOP - 3 * SIZE)])
    time.now += 10.0
    addresses.given_up(["second"])
    assert addresses.size_beside(SIZE) == 0
    assert addresses.wait_seconds(SIZE) == 60.0
    time.now += 50.0
    assert addresses.wait_seconds(SIZE) == 10.0
    time.now += 10.0
    assert addresses.wait_seconds(SIZE) == 0.0


def test_a_gap_that_nothing_is_known_below_of_has_any_file_wait() -> None:
    addresses = Addresses(60.0, Time())
    addresses.mapped([segment("first", TOP)])
    assert addresses.wait_seconds(SIZE) == 0.0
    addresses.given_up(["first", "never heard of"])
    assert addresses.wait_seconds(SIZE) == 60.0
    assert addresses.wait_seconds(100 * SIZE) == 60.0
    addresses.clear()
    assert addresses.wait_seconds(SIZE) == 0.0


def test_what_was_thought_to_be_mapped_counts_from_when_it_is_seen_not_to_be() -> None:
    time = Time()
    addresses = Addresses(60.0, time)
    addresses.mapped([segment("first", TOP)])
    assert addresses.collides([segment("second", TOP + SIZE // 2)])
    assert addresses.wait_seconds(SIZE) == 60.0


def test_a_process_that_was_started_again_has_ended() -> None:
    with socket.create_server(("127.0.0.1", 0)) as first:
        port = first.getsockname()[1]
        watch = ProcessWatch(f"http://127.0.0.1:{port}")
        watch.begin()
        accepted, _ = first.accept()
        assert not watch.has_ended()
    accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    accepted.close()
    with socket.create_server(("127.0.0.1", port)):
        assert watch.has_ended()
        assert watch.has_ended()
        watch.begin()
        assert not watch.has_ended()
    assert watch.has_ended()
    watch.close()


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    watch = ProcessWatch(f"http://127.0.0.1:{port}")
    watch.begin()
    assert watch.has_ended()
    watch.close()
