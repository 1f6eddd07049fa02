"""Real file systems for tests: small ones in memory, and ext4 in a file that can be broken."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

_SHUTDOWN = 0x8004587D
"""FS_IOC_SHUTDOWN of ext4 and XFS: from now on the file system answers EIO."""
_SHUTDOWN_WITHOUT_FLUSH = 2


def run(*words: object) -> None:
    """A command that must work."""
    done = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{words}: {done.stderr}{done.stdout}"


@contextlib.contextmanager
def memory_disk(path: Path, options: str) -> Iterator[None]:
    """A tmpfs, such as with `size=2m` or `nr_inodes=40`."""
    path.mkdir(parents=True, exist_ok=True)
    run("mount", "-t", "tmpfs", "-o", options, "tmpfs", path)
    try:
        yield
    finally:
        run("umount", "-l", path)


class LoopDisk:
    """ext4 in a file. A context manager."""

    def __init__(self, path: Path, image: Path, size_bytes: int = 96 << 20) -> None:
        self.path, self.image = path, image
        with image.open("wb") as file:
            file.truncate(size_bytes)
        run("mkfs.ext4", "-q", "-E", "nodiscard,lazy_itable_init=1", image)
        path.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> LoopDisk:
        self.mount()
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["fsfreeze", "-u", self.path], capture_output=True, check=False)
        run("umount", "-l", self.path)

    def mount(self) -> None:
        run("mount", "-o", "loop,errors=remount-ro,noatime", self.image, self.path)

    def repair(self) -> None:
        """What an operator does after it broke; nobody may use it now."""
        run("umount", self.path)
        subprocess.run(["fsck.ext4", "-fy", self.image], capture_output=True, check=False)
        self.mount()

    def fail_read_only(self) -> None:
        """As ext4 does when it meets an error, files that are open for writing or not."""
        device = subprocess.run(
            ["findmnt", "-n", "-o", "SOURCE", str(self.path)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        trigger = Path("/sys/fs/ext4") / Path(device).name / "trigger_fs_error"
        with contextlib.suppress(OSError):  # the kernel reports the error that it was told to make
            trigger.write_text("1")

    def die(self) -> None:
        """Every operation that reaches the medium fails from now on."""
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, _SHUTDOWN, struct.pack("I", _SHUTDOWN_WITHOUT_FLUSH))
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Every write hangs for the length of the block."""
        run("fsfreeze", "-f", self.path)
        try:
            yield
        finally:
            run("fsfreeze", "-u", self.path)


@contextlib.contextmanager
def filled(directory: Path) -> Iterator[None]:
    """No room left for the length of the block."""
    ballast = directory / "ballast"
    descriptor = os.open(ballast, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        size, step = 0, 64 << 20
        while step >= 4096:
            try:
                os.posix_fallocate(descriptor, size, step)
                size += step
            except OSError:
                step //= 2
        yield
    finally:
        os.close(descriptor)
        ballast.unlink()
