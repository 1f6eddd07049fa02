"""`Facts`: what is known of this host. Plain values, so that the rules over them need no host."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FileSystem:
    """Of one directory."""

    path: str
    """The directory that was asked about, or its nearest parent that exists."""
    kind: str
    """As mount(8) names it: ext4, xfs, tmpfs, nfs4."""
    device: str
    options: frozenset[str]
    capacity_bytes: int
    free_bytes: int
    """For this user."""
    is_rotational: bool | None
    """Whether the disk says that it turns; None where nobody says."""
    is_direct: bool | None
    """Whether files open with O_DIRECT; None where none could be made."""
    problem: str = ""
    """Why nothing can be written there; empty if it can."""
    mode: int = 0
    """Permission bits of the directory."""


@dataclass(frozen=True, slots=True)
class Mooncake:
    """Of a real Mooncake."""

    wheel: str
    """Version of the wheel that `mooncake_python` has; empty: it has none."""
    master_problem: str
    """Why the master's admin cannot be used; empty if it can."""
    store_problems: tuple[str, ...]
    """Of store services that do not answer."""


@dataclass(frozen=True, slots=True)
class Speed:
    """Sequential, with direct I/O where there is any; bytes a second."""

    write_bytes_per_sec: float
    read_bytes_per_sec: float

    @property
    def slower(self) -> float:
        """The smaller of the two."""
        return min(self.write_bytes_per_sec, self.read_bytes_per_sec)


@dataclass(frozen=True, slots=True)
class Facts:
    """All that the rules look at."""

    repository: FileSystem
    shared_memory: FileSystem
    runtime_problem: str
    """Why no socket can be made in the runtime directory; empty if one can."""
    cache_bytes: int
    """What the store of this host may hold."""
    segments_bytes: int
    """Of shared memory that exists already."""
    memory_bytes: int
    """Of the machine."""
    memory_limit_bytes: int | None
    """Of this control group; None without one."""
    newest_snapshot_at: float
    """Unix time; 0 without one."""
    now: float
    """Unix time."""
    is_clock_synchronised: bool | None
    """What the kernel says; None where it does not."""
    snapd_commands: tuple[str, ...]
    """Every program called `snapd` on the search path, in its order."""
    own_command: str
    """Where ours would be."""
    mooncake: Mooncake | None
    """None with the bundled store."""
    speed: Speed | None
    """None if it was not measured."""
