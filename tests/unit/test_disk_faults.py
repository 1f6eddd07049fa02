"""SimulatedDisk: each way in which a disk may fail, be slow, or lie."""

from __future__ import annotations

import errno
import threading

import pytest

from snapd.disk.simulated import (
    KEEPS_ALL,
    KEEPS_DATA,
    KEEPS_NAMES,
    KEEPS_NAMES_AND_SIZES,
    LOSES_ALL,
    Effect,
    Operation,
    Side,
    SimulatedCrash,
    SimulatedDisk,
)
from snapd.errors import DiskError


def make(disk: SimulatedDisk, name: str, data: bytes) -> None:
    file = disk.open(name, "x")
    file.write([data], 0)
    file.sync()
    file.close()
    disk.sync_directory("")


def read(disk: SimulatedDisk, name: str) -> bytes:
    file = disk.open(name, "r")
    data = bytearray(file.size())
    assert file.read([data], 0) == len(data)
    file.close()
    return bytes(data)


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE])
@pytest.mark.parametrize(
    "kind",
    ["open", "create", "list", "mkdir", "rename", "remove", "syncdir", "lock", "usage", "size"],
)
def test_an_operation_that_fails_says_why_and_does_nothing(kind: str, code: int) -> None:
    disk = SimulatedDisk(1)
    make(disk, "f", b"data")
    file = disk.open("f", "r")
    before = disk.medium_digest()
    calls = {
        "open": lambda: disk.open("f", "r"),
        "create": lambda: disk.open("g", "x"),
        "list": lambda: disk.list(""),
        "mkdir": lambda: disk.make_directory("d"),
        "rename": lambda: disk.rename("f", "g"),
        "remove": lambda: disk.remove("f"),
        "syncdir": lambda: disk.sync_directory(""),
        "lock": lambda: disk.lock("l"),
        "usage": disk.usage,
        "size": file.size,
    }
    disk.fail_kind(kind, code=code)
    with pytest.raises(DiskError) as caught:
        calls[kind]()
    assert caught.value.errno == code
    assert disk.medium_digest() == before
    calls[kind]()


def test_a_failed_call_may_have_been_carried_out() -> None:
    disk = SimulatedDisk(1)
    make(disk, "f", b"data")
    disk.fail_kind("rename", code=Effect(errno.EIO, done=True))
    with pytest.raises(DiskError):
        disk.rename("f", "g")
    assert disk.list("") == ["g"]


def test_short_writes_and_reads_are_gone_on_with() -> None:
    disk = SimulatedDisk(1)
    data = bytes(range(256)) * 40
    disk.fault = lambda operation: Effect(short_bytes=700)
    file = disk.open("f", "x")
    file.write([data[:5000], data[5000:]], 3)
    first, second = bytearray(2000), bytearray(len(data) - 1000)
    assert file.read([first, second], 3) == len(data)
    assert bytes(first + second)[: len(data)] == data
    assert disk.counts["write"] == 15
    file.sync()
    assert disk.contents("f") == bytes(3) + data


def test_a_write_without_progress_is_an_error_and_poisons() -> None:
    disk = SimulatedDisk(1)
    file = disk.open("f", "x")
    disk.fault = lambda operation: Effect(short_bytes=0) if operation.kind == "write" else 0
    with pytest.raises(DiskError, match="no progress"):
        file.write([b"data"], 0)
    with pytest.raises(DiskError, match="given up"):
        file.sync()


def test_a_read_only_file_system_refuses_changes_from_then_on() -> None:
    disk = SimulatedDisk(1)
    make(disk, "f", b"data")
    file = disk.open("f", "a")
    disk.lock("l").release()
    disk.read_only_from = len(disk.operations)
    for call in (
        lambda: disk.open("g", "x"),
        lambda: disk.remove("f"),
        lambda: disk.rename("f", "g"),
        lambda: disk.make_directory("d"),
        lambda: disk.lock("l"),
        lambda: file.write([b"x"], 0),
        file.sync,
        lambda: disk.sync_directory(""),
    ):
        with pytest.raises(DiskError):
            call()
    assert read(disk, "f") == b"data"
    disk.lock("l", shared=True).release()
    disk.crash(KEEPS_ALL)
    disk.remove("f")


def test_capacity_and_quota_have_their_own_errors() -> None:
    for disk, code in (
        (SimulatedDisk(1, capacity_bytes=1000), errno.ENOSPC),
        (SimulatedDisk(1, quota_bytes=1000), errno.EDQUOT),
    ):
        file = disk.open("f", "x")
        with pytest.raises(DiskError) as caught:
            file.write([bytes(1001)], 0)
        assert caught.value.errno == code


def test_a_call_that_hangs_lets_others_go_on_until_it_is_released() -> None:
    disk = SimulatedDisk(1)
    make(disk, "f", b"data")
    released = threading.Event()
    done = threading.Event()
    disk.fail_kind("remove", code=Effect(hang=released))

    def remove() -> None:
        disk.remove("f")
        done.set()

    worker = threading.Thread(target=remove)
    worker.start()
    assert read(disk, "f") == b"data"
    assert not done.wait(0.02)
    released.set()
    worker.join()
    assert disk.list("") == []


def test_the_power_may_go_while_a_call_hangs() -> None:
    disk = SimulatedDisk(1)
    make(disk, "f", b"data")
    disk.fail_kind("remove", code=Effect(hang=threading.Event()))
    ended: list[BaseException] = []

    def remove() -> None:
        try:
            disk.remove("f")
        except SimulatedCrash as crash:
            ended.append(crash)

    worker = threading.Thread(target=remove)
    worker.start()
    while not disk.counts["remove"]:
        pass
    disk.crash(KEEPS_ALL)
    worker.join()
    assert ended
    assert read(disk, "f") == b"data"


def test_latency_delays_and_changes_nothing() -> None:
    disk = SimulatedDisk(1)
    disk.fault = lambda operation: Effect(latency_seconds=0.001)
    make(disk, "f", b"data")
    assert read(disk, "f") == b"data"


def test_writes_and_syncs_that_lie() -> None:
    disk = SimulatedDisk(1)
    make(disk, "f", b"old")
    file = disk.open("f", "a")
    disk.fail_kind("write", code=Effect(lie=True))
    file.write([b"new"], 0)
    assert read(disk, "f") == b"old"
    file.write([b"new"], 0)
    disk.fail_kind("sync", code=Effect(lie=True))
    file.sync()
    assert read(disk, "f") == b"new"
    disk.fail_kind("syncdir", code=Effect(lie=True))
    disk.open("g", "x")
    disk.sync_directory("")
    disk.crash(LOSES_ALL)
    assert disk.files() == {"f": b"old"}


def test_a_misdirected_write_lands_elsewhere_and_reports_success() -> None:
    disk = SimulatedDisk(1)
    make(disk, "f", b"f" * 10)
    make(disk, "g", b"g" * 10)
    file = disk.open("f", "a")
    disk.fail_kind("write", code=Effect(misdirect=("g", 4)))
    file.write([b"xx"], 0)
    assert disk.files() == {"f": b"f" * 10, "g": b"ggggxxgggg"}


def test_bits_flip_on_one_read_at_rest_and_at_a_crash() -> None:
    disk = SimulatedDisk(1)
    make(disk, "f", bytes(10))
    disk.fail_kind("read", code=Effect(flip_bit=9))
    assert read(disk, "f") == b"\0\x02" + bytes(8)
    assert read(disk, "f") == bytes(10)
    disk.flip("f", 79)
    assert read(disk, "f") == bytes(9) + b"\x80"
    disk.flip("f", 79)
    disk.crash(KEEPS_ALL, flips=1)
    assert sum(byte.bit_count() for byte in read(disk, "f")) == 1


def test_a_durable_name_can_be_lost() -> None:
    disk = SimulatedDisk(1)
    make(disk, "f", b"data")
    disk.vanish("f")
    assert disk.files() == {}


def test_losses_that_are_asked_for() -> None:
    endings = {}
    for loss in (KEEPS_ALL, LOSES_ALL, KEEPS_NAMES, KEEPS_NAMES_AND_SIZES, KEEPS_DATA):
        disk = SimulatedDisk(1)
        make(disk, "f", b"old")
        disk.open("f", "a").write([b"newer"], 0)
        disk.open("g", "x").write([b"g"], 0)
        disk.crash(loss)
        endings[loss] = disk.files()
    assert endings == {
        KEEPS_ALL: {"f": b"newer", "g": b"g"},
        LOSES_ALL: {"f": b"old"},
        KEEPS_NAMES: {"f": b"old", "g": b""},
        KEEPS_NAMES_AND_SIZES: {"f": b"old\0\0", "g": b"\0"},
        KEEPS_DATA: {"f": b"newer"},
    }


def test_a_fork_has_the_same_past_and_its_own_future() -> None:
    disk = SimulatedDisk(1)
    make(disk, "f", b"old")
    file = disk.open("f", "a")
    file.write([b"new"], 0)
    fork = disk.fork(2)
    assert fork.medium_digest() == disk.medium_digest()
    file.sync()
    fork.crash(LOSES_ALL)
    disk.crash(LOSES_ALL)
    assert (fork.contents("f"), disk.contents("f")) == (b"old", b"new")
    assert fork.medium_digest() != disk.medium_digest()


def test_operations_know_their_step_and_can_be_watched() -> None:
    disk = SimulatedDisk(1)
    seen: list[tuple[int, Side]] = []

    def watch(operation: Operation, side: Side) -> None:
        seen.append((operation.number, side))

    disk.watch = watch
    with disk.step("flush"):
        disk.open("f", "x")
        with disk.step("retention"):
            disk.remove("f")
    disk.list("")
    assert [operation.step for operation in disk.operations] == ["flush", "retention", ""]
    assert seen == [(number, side) for number in range(3) for side in ("before", "after")]


def test_files_left_open_are_counted() -> None:
    disk = SimulatedDisk(1)
    file, other = disk.open("f", "x"), disk.open("f", "r")
    assert disk.open_files == 2
    file.close()
    file.close()
    assert disk.open_files == 1
    disk.crash()
    other.close()
    assert disk.open_files == 0
