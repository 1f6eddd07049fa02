"""`probe`: find out the facts. Reads, and makes a file without a name where it must."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path

import psutil

from snapd.attach.mooncake.master import MasterAdmin
from snapd.attach.mooncake.service import StoreService
from snapd.config import Settings
from snapd.config.settings import admin_address
from snapd.disk import survey
from snapd.doctor.facts import Facts, FileSystem, Mooncake, Speed
from snapd.doctor.rules import nothing_known
from snapd.errors import SnapdError

SHARED_MEMORY = "/dev/shm"  # noqa: S108 - shared memory is the point
SPEED_BYTES = 512 << 20
SPEED_SECONDS_MAX = 3.0
_ANSWER_SECONDS_MAX = 3.0
_WHEEL = "mooncake-transfer-engine-non-cuda"
_WHEELS = (_WHEEL, "mooncake-transfer-engine", "mooncake-transfer-engine-cuda13")
_UNLIMITED_BYTES = 1 << 60
"""Control groups write a number near 2^63 for no limit, or `max`."""


def probe(settings: Settings, *, newest_snapshot_at: float, measure_speed: bool) -> Facts:
    """All facts about this host under these settings. Never raises for what it finds."""
    is_mooncake = settings.store == "mooncake"
    stores = len(settings.mooncake_stores) if is_mooncake else 1
    repository = _file_system(settings.persistent_path)
    return Facts(
        repository=repository,
        shared_memory=_file_system(SHARED_MEMORY),
        runtime_problem=_runtime_problem(settings.runtime_dir),
        cache_bytes=stores * settings.global_segment_size,
        segments_bytes=_segments_bytes(settings.segment_path),
        memory_bytes=psutil.virtual_memory().total,
        memory_limit_bytes=_memory_limit(),
        newest_snapshot_at=newest_snapshot_at,
        now=time.time(),
        is_clock_synchronised=_is_clock_synchronised(),
        snapd_commands=_commands("snapd"),
        own_command=str(Path(sys.argv[0]).absolute().with_name("snapd")),
        mooncake=_mooncake(settings) if is_mooncake else None,
        speed=_speed(repository) if measure_speed else None,
    )


def _file_system(path: str) -> FileSystem:
    directory = survey.nearest(path)
    try:
        mount = survey.mount_of(directory)
        usage = os.statvfs(directory)
        mode = directory.stat().st_mode
    except OSError as error:
        return nothing_known(path, str(error))
    problem = survey.write_problem(directory)
    return FileSystem(
        path=str(directory),
        kind=mount.kind,
        device=mount.device,
        options=mount.options,
        capacity_bytes=usage.f_blocks * usage.f_frsize,
        free_bytes=usage.f_bavail * usage.f_frsize,
        is_rotational=survey.is_rotational(mount.number),
        is_direct=None if problem else survey.opens_direct(directory),
        problem=problem,
        mode=mode if str(directory) == str(Path(path).absolute()) else 0,
    )


def _runtime_problem(path: str) -> str:
    directory = Path(path)
    if directory.is_dir():
        problem = survey.write_problem(directory)
        return f"nothing can be made in {path}: {problem}" if problem else ""
    parent = survey.nearest(path)
    if os.access(parent, os.W_OK | os.X_OK):
        return ""
    return f"{path} is not there, and {parent} does not let it be made"


def _segments_bytes(segment_path: str) -> int:
    """Memory that segments take already: the bundled store's, and Mooncake's beside it."""
    path = Path(segment_path)
    found = 0
    for one in path.parent.glob(f"{path.name}*"):
        with suppress(OSError):
            found += one.stat().st_blocks * 512
    return found


def _memory_limit() -> int | None:
    """Of this control group, version 2 or 1; the lowest on the way up."""
    limits = []
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, name = line.split(":", 2)
            if controllers == "":
                root, file = Path("/sys/fs/cgroup"), "memory.max"
            elif "memory" in controllers.split(","):
                root, file = Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"
            else:
                continue
            folder = root / name.lstrip("/")
            for one in (folder, *folder.parents):
                with suppress(OSError, ValueError):
                    limits.append(int((one / file).read_text()))
    return min((limit for limit in limits if limit < _UNLIMITED_BYTES), default=None)


def _is_clock_synchronised() -> bool | None:
    """What systemd's time service or chrony left in /run; None where neither runs."""
    if Path("/run/systemd/timesync/synchronized").exists():
        return True
    return False if Path("/run/systemd/timesync").is_dir() else None


def _commands(name: str) -> tuple[str, ...]:
    found = [
        Path(folder) / name
        for folder in os.environ.get("PATH", os.defpath).split(os.pathsep)
        if folder and shutil.which(name, path=folder)
    ]
    return tuple(dict.fromkeys(str(one.absolute()) for one in found))


def _mooncake(settings: Settings) -> Mooncake:
    master_problem = ""
    with closing(
        MasterAdmin(admin_address(settings), timeout_seconds=_ANSWER_SECONDS_MAX)
    ) as admin:
        try:
            admin.counters()
            admin.segments()
        except SnapdError as error:
            master_problem = str(error)
    problems = []
    for url in settings.mooncake_stores:
        with closing(StoreService(url, timeout_seconds=_ANSWER_SECONDS_MAX)) as service:
            if not service.alive():
                problems.append(f"nobody answers at {url}")
    python = settings.mooncake_python or sys.executable
    return Mooncake(_wheel_version(python), master_problem, tuple(problems))


def _wheel_version(python: str) -> str:
    program = (
        "from importlib.metadata import version, PackageNotFoundError\n"
        f"for name in {_WHEELS!r}:\n"
        "    try: print(version(name)); break\n"
        "    except PackageNotFoundError: pass\n"
    )
    try:
        done = subprocess.run(
            [python, "-I", "-c", program],
            capture_output=True,
            text=True,
            timeout=_ANSWER_SECONDS_MAX,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


def _speed(disk: FileSystem) -> Speed | None:
    if disk.problem or disk.free_bytes < 2 * SPEED_BYTES:
        return None
    try:
        return Speed(*survey.measure(Path(disk.path), SPEED_BYTES, SPEED_SECONDS_MAX))
    except OSError:
        return None
