"""What the doctor says of a host, from facts about it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from snapd.doctor import Facts, FileSystem, Finding, Level, Mooncake, Speed, examine

GIB = 2**30
DISK = FileSystem(
    path="/nvme",
    kind="xfs",
    device="/dev/nvme0n1",
    options=frozenset({"rw", "noatime"}),
    capacity_bytes=1000 * GIB,
    free_bytes=900 * GIB,
    is_rotational=False,
    is_direct=True,
    mode=0o40700,
)
MEMORY = replace(DISK, path="/dev/shm", kind="tmpfs", capacity_bytes=96 * GIB, free_bytes=96 * GIB)
GOOD = Facts(
    repository=DISK,
    shared_memory=MEMORY,
    runtime_problem="",
    cache_bytes=40 * GIB,
    segments_bytes=0,
    memory_bytes=128 * GIB,
    memory_limit_bytes=64 * GIB,
    newest_snapshot_at=1000.0,
    now=1100.0,
    is_clock_synchronised=True,
    snapd_commands=("/opt/mooncake-snapd/bin/snapd",),
    own_command="/opt/mooncake-snapd/bin/snapd",
    mooncake=Mooncake("0.3.13.post1", "", ()),
    speed=Speed(2e9, 3e9),
)


def found(facts: Facts, name: str) -> Finding:
    (one,) = [finding for finding in examine(facts) if finding.name == name]
    return one


def disk(**changed: Any) -> Facts:
    return replace(GOOD, repository=replace(DISK, **changed))


def shared(**changed: Any) -> Facts:
    return replace(GOOD, shared_memory=replace(MEMORY, **changed))


def test_a_good_host_is_good_all_over() -> None:
    findings = examine(GOOD)
    assert {finding.level for finding in findings} == {Level.OK}
    assert {finding.advice for finding in findings} == {""}
    assert len({finding.name for finding in findings}) == len(findings) >= 12


@pytest.mark.parametrize(
    ("facts", "name", "level", "said"),
    [
        (disk(kind="nfs4"), "file system", Level.ERROR, "nfs4"),
        (disk(kind="fuse.sshfs"), "file system", Level.ERROR, "sshfs"),
        (disk(kind="tmpfs"), "file system", Level.ERROR, "tmpfs"),
        (disk(kind="overlay"), "file system", Level.WARNING, "overlay"),
        (disk(options=frozenset({"rw"})), "mount options", Level.WARNING, "access time"),
        (disk(options=frozenset({"ro"})), "mount options", Level.ERROR, "read-only"),
        (disk(is_direct=False), "direct I/O", Level.WARNING, "O_DIRECT"),
        (disk(problem="Permission denied"), "repository", Level.ERROR, "Permission denied"),
        (disk(mode=0o40755), "repository", Level.WARNING, "755"),
        (disk(free_bytes=50 * GIB), "disk space", Level.WARNING, "60.0 GiB wanted"),
        (disk(capacity_bytes=30 * GIB), "disk space", Level.ERROR, "30.0 GiB"),
        (shared(kind="ext4"), "shared memory", Level.ERROR, "ext4"),
        (shared(free_bytes=70 * GIB), "shared memory", Level.WARNING, "80.0 GiB wanted"),
        (shared(free_bytes=30 * GIB), "shared memory", Level.ERROR, "30.0 GiB"),
        (replace(GOOD, runtime_problem="no /run/x"), "runtime directory", Level.ERROR, "/run/x"),
        (replace(GOOD, memory_limit_bytes=40 * GIB), "memory", Level.ERROR, "this container"),
        (replace(GOOD, memory_limit_bytes=None, memory_bytes=9), "memory", Level.ERROR, "machine"),
        (replace(GOOD, newest_snapshot_at=5000.0), "clock", Level.WARNING, "3900 s"),
        (replace(GOOD, is_clock_synchronised=False), "clock", Level.WARNING, "synchronised"),
        (replace(GOOD, snapd_commands=("/usr/bin/snapd",)), "commands", Level.WARNING, "/usr/bin"),
        (replace(GOOD, speed=Speed(3e8, 3e9)), "speed", Level.WARNING, "0.30 GB/s"),
        (replace(GOOD, mooncake=Mooncake("", "", ())), "Mooncake's wheel", Level.WARNING, "none"),
        (replace(GOOD, mooncake=Mooncake("9.9", "", ())), "Mooncake's wheel", Level.WARNING, "9.9"),
        (
            replace(GOOD, mooncake=Mooncake("9.9", "refused", ())),
            "Mooncake's master",
            Level.ERROR,
            "refused",
        ),
        (
            replace(GOOD, mooncake=Mooncake("9.9", "", ("nobody at :8088",))),
            "Mooncake's stores",
            Level.ERROR,
            ":8088",
        ),
    ],
)
def test_what_is_wrong_is_said_with_a_way_out(
    facts: Facts, name: str, level: Level, said: str
) -> None:
    one = found(facts, name)
    assert one.level is level
    assert said in one.said
    assert one.advice


def test_a_disk_that_says_it_turns_is_believed_unless_it_is_fast() -> None:
    turning = disk(is_rotational=True)
    assert found(turning, "device").level is Level.OK
    assert found(replace(turning, speed=None), "device").level is Level.WARNING
    assert found(replace(turning, speed=Speed(1e8, 1e8)), "device").level is Level.WARNING


def test_segments_that_are_there_need_no_room_again() -> None:
    facts = replace(shared(free_bytes=45 * GIB), segments_bytes=40 * GIB)
    assert found(facts, "shared memory").level is Level.OK


def test_the_bundled_store_needs_its_segment_once() -> None:
    facts = replace(shared(free_bytes=45 * GIB), mooncake=None)
    assert found(facts, "shared memory").level is Level.OK
    assert not [one for one in examine(facts) if "Mooncake" in one.name]
