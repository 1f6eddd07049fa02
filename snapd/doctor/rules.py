"""`examine`: what the facts mean, and what to do about it. Pure."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum

from snapd.doctor.facts import Facts, FileSystem

GOOD_FILE_SYSTEMS = frozenset({"ext4", "xfs"})
NETWORK_FILE_SYSTEMS = frozenset(
    {"9p", "afs", "beegfs", "ceph", "cifs", "gfs2", "glusterfs", "lustre", "ncpfs", "nfs", "nfs4"}
    | {"smb3", "smbfs", "virtiofs", "fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.s3fs"}
    | {"fuse.juicefs", "fuse.gcsfuse", "fuse.lustre", "ocfs2"}
)
MEMORY_FILE_SYSTEMS = frozenset({"tmpfs", "ramfs"})
QUIET_TIMES = frozenset({"noatime", "relatime", "ro"})
SPACE_FACTOR = 1.5
"""Space for a cache: itself, and half again for packs that wait to be compacted."""
MEMORY_FACTOR = 1.1
_CLOCK_SECONDS = 60.0
SLOW_BYTES_PER_SEC = 400e6
"""Below, a disk is no NVMe: it takes minutes to warm a cache of 100 GB."""
TESTED_WHEELS = ("0.3.12.post1", "0.3.13.post1")


class Level(Enum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    name: str
    level: Level
    said: str
    """What was found."""
    advice: str = ""
    """What to do; empty where all is well."""


def examine(facts: Facts) -> list[Finding]:
    """All findings, in the order of the rules."""
    return [finding for rule in _RULES for finding in rule(facts)]


def _gib(count: float) -> str:
    return f"{count / 2**30:.1f} GiB"


def _file_system(facts: Facts) -> Iterator[Finding]:
    disk = facts.repository
    said = f"{disk.kind} on {disk.device}, for {disk.path}"
    if disk.kind in NETWORK_FILE_SYSTEMS:
        yield Finding(
            "file system",
            Level.ERROR,
            said,
            "a network file system may lose writes that it has acknowledged, and its locks may not "
            "hold: set persistent_path to a directory on local NVMe",
        )
    elif disk.kind in MEMORY_FILE_SYSTEMS:
        yield Finding(
            "file system",
            Level.ERROR,
            said,
            "this is memory: nothing there survives a restart of the node; set persistent_path to "
            "a directory on local NVMe",
        )
    elif disk.kind in GOOD_FILE_SYSTEMS:
        yield Finding("file system", Level.OK, said)
    else:
        yield Finding(
            "file system",
            Level.WARNING,
            said,
            "snapd is tested on ext4 and XFS; overlay is a container's own layer, which goes with "
            "it: mount a volume there",
        )
    if "ro" in disk.options:
        yield Finding("mount options", Level.ERROR, "mounted read-only", "mount it with rw")
    elif not disk.options & QUIET_TIMES:
        yield Finding(
            "mount options",
            Level.WARNING,
            "each read writes an access time",
            "mount it with noatime",
        )
    else:
        yield Finding("mount options", Level.OK, ",".join(sorted(disk.options & QUIET_TIMES)))


def _device(facts: Facts) -> Iterator[Finding]:
    disk = facts.repository
    is_fast = facts.speed is not None and facts.speed.slower >= SLOW_BYTES_PER_SEC
    if disk.is_rotational and not is_fast:  # virtual disks say that they turn, whatever they are
        yield Finding(
            "device",
            Level.WARNING,
            f"{disk.device} says that it turns",
            "warming up reads in the order of heat, which a turning disk is slow at: use NVMe",
        )
    else:
        kind = "solid state" if disk.is_rotational is False else "of a kind that is not known"
        yield Finding("device", Level.OK, f"{disk.device}, {kind}")
    if disk.is_direct is False:
        yield Finding(
            "direct I/O",
            Level.WARNING,
            f"{disk.kind} refuses O_DIRECT",
            "snapd writes through the page cache there, which costs memory and time: use ext4 or "
            "XFS on a local disk",
        )
    elif disk.is_direct:
        yield Finding("direct I/O", Level.OK, "files open with O_DIRECT")


def _permissions(facts: Facts) -> Iterator[Finding]:
    disk = facts.repository
    user = f"user {os.geteuid()}"
    if disk.problem:
        yield Finding(
            "repository",
            Level.ERROR,
            f"{user} cannot write to {disk.path}: {disk.problem}",
            "run this as the daemon's user; make the directory, or give it to that user",
        )
    elif disk.mode & 0o077:
        yield Finding(
            "repository",
            Level.WARNING,
            f"{disk.path} has mode {disk.mode & 0o777:03o}: others may look into it",
            f"blocks disclose prompts: chmod 700 {disk.path}",
        )
    else:
        yield Finding("repository", Level.OK, f"{user} can write to {disk.path}")
    if facts.runtime_problem:
        yield Finding(
            "runtime directory",
            Level.ERROR,
            facts.runtime_problem,
            "make it, or set runtime_dir to a directory of the daemon's user",
        )
    else:
        yield Finding("runtime directory", Level.OK, "sockets can be made")


def _space(facts: Facts) -> Iterator[Finding]:
    disk, wanted = facts.repository, SPACE_FACTOR * facts.cache_bytes
    said = (
        f"{_gib(disk.free_bytes)} of {_gib(disk.capacity_bytes)} free, {_gib(wanted)} wanted for a "
        f"cache of {_gib(facts.cache_bytes)}"
    )
    if disk.capacity_bytes < facts.cache_bytes:
        yield Finding(
            "disk space",
            Level.ERROR,
            said,
            "the disk cannot hold the cache: the coldest blocks will never be saved; use a larger "
            "one",
        )
    elif disk.free_bytes < wanted:
        yield Finding(
            "disk space",
            Level.WARNING,
            said,
            "what the repository holds already counts as used; if it is none of that, make room or "
            "set repository_bytes_max",
        )
    else:
        yield Finding("disk space", Level.OK, said)


def _shared_memory(facts: Facts) -> Iterator[Finding]:
    memory = facts.shared_memory
    needed = facts.cache_bytes
    if facts.mooncake is not None:
        needed *= 2  # a store that returns mounts a new file while the old one is read
    missing = needed - facts.segments_bytes - memory.free_bytes
    said = (
        f"{_gib(memory.free_bytes)} of {_gib(memory.capacity_bytes)} free, {_gib(needed)} wanted, "
        f"{_gib(facts.segments_bytes)} there"
    )
    if memory.kind not in MEMORY_FILE_SYSTEMS:
        yield Finding(
            "shared memory",
            Level.ERROR,
            f"{memory.path} is {memory.kind}",
            "mount a tmpfs there: in Kubernetes an emptyDir with medium Memory",
        )
    elif missing > 0:
        yield Finding(
            "shared memory",
            Level.WARNING if needed > facts.cache_bytes >= missing else Level.ERROR,
            said,
            f"make it larger by {_gib(missing)} (mount -o remount,size=..., or the volume's "
            f"sizeLimit), or global_segment_size smaller",
        )
    else:
        yield Finding("shared memory", Level.OK, said)


def _memory(facts: Facts) -> Iterator[Finding]:
    limit = facts.memory_limit_bytes
    what = "of the machine" if limit is None else "this container may use"
    have = facts.memory_bytes if limit is None else min(limit, facts.memory_bytes)
    wanted = MEMORY_FACTOR * facts.cache_bytes
    said = f"{_gib(have)} {what}, {_gib(wanted)} wanted for the cache and what is around it"
    if have < wanted:
        yield Finding(
            "memory",
            Level.ERROR,
            said,
            "shared memory counts against the limit of whoever touches it first: raise the limit, "
            "or make global_segment_size smaller",
        )
    else:
        yield Finding("memory", Level.OK, said)


def _clock(facts: Facts) -> Iterator[Finding]:
    ahead = facts.newest_snapshot_at - facts.now
    if ahead > _CLOCK_SECONDS:
        yield Finding(
            "clock",
            Level.WARNING,
            f"the newest snapshot is {ahead:.0f} s in the future",
            "the clock was set back. Nothing that is restored depends on it, but ages and alerts "
            "do: start a time service",
        )
    elif facts.is_clock_synchronised is False:
        yield Finding(
            "clock",
            Level.WARNING,
            "the kernel says that the clock is not synchronised",
            "ages of snapshots and alerts depend on it: start a time service (chrony, "
            "systemd-timesyncd)",
        )
    else:
        yield Finding("clock", Level.OK, "nothing speaks against it")


def _names(facts: Facts) -> Iterator[Finding]:
    first = facts.snapd_commands[0] if facts.snapd_commands else ""
    if first and first != facts.own_command:
        yield Finding(
            "commands",
            Level.WARNING,
            f"`snapd` is {first}, and not {facts.own_command}",
            "Ubuntu has a snapd of its own: use mooncake-snapd and mooncake-snapctl, and the units "
            "of these names",
        )
    else:
        yield Finding("commands", Level.OK, "`snapd` is this one")


def _mooncake(facts: Facts) -> Iterator[Finding]:
    found = facts.mooncake
    if found is None:
        return
    if not found.wheel:
        yield Finding(
            "Mooncake's wheel",
            Level.WARNING,
            "mooncake_python has none",
            "blocks can only be put back by stores that `snapd mooncake-store` runs; else install "
            "mooncake-transfer-engine-non-cuda, or set mooncake_python",
        )
    elif found.wheel not in TESTED_WHEELS:
        yield Finding(
            "Mooncake's wheel",
            Level.WARNING,
            f"version {found.wheel}",
            f"snapd is tested with {' and '.join(TESTED_WHEELS)}: run `snapctl drill --store "
            f"mooncake` with yours first",
        )
    else:
        yield Finding("Mooncake's wheel", Level.OK, f"version {found.wheel}")
    for name, problem, good in (
        ("Mooncake's master", found.master_problem, "its admin answers as expected"),
        ("Mooncake's stores", "; ".join(found.store_problems), "all answer"),
    ):
        if problem:
            advice = "start it, or correct mooncake_master, mooncake_admin, mooncake_stores"
            yield Finding(name, Level.ERROR, problem, advice)
        else:
            yield Finding(name, Level.OK, good)


def _speed(facts: Facts) -> Iterator[Finding]:
    if facts.speed is None:
        return
    write, read = facts.speed.write_bytes_per_sec, facts.speed.read_bytes_per_sec
    minutes = facts.cache_bytes / max(read, 1.0) / 60
    said = (
        f"writes {write / 1e9:.2f} GB/s, reads {read / 1e9:.2f} GB/s: {minutes:.1f} minutes to "
        f"read a full cache"
    )
    if facts.speed.slower < SLOW_BYTES_PER_SEC:
        yield Finding("speed", Level.WARNING, said, "use local NVMe; look who else uses the disk")
    else:
        yield Finding("speed", Level.OK, said)


_RULES: tuple[Callable[[Facts], Iterator[Finding]], ...] = (
    _permissions,
    _file_system,
    _device,
    _space,
    _shared_memory,
    _memory,
    _clock,
    _names,
    _mooncake,
    _speed,
)


def nothing_known(path: str, problem: str) -> FileSystem:
    """Of a path that could not be looked at."""
    return FileSystem(path, "unknown", "unknown", frozenset(), 0, 0, None, None, problem)
