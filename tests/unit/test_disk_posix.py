"""PosixDisk: links, odd files, locks that die with their process, file systems without O_DIRECT."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from snapd.disk import PosixDisk
from snapd.disk import posix as posix_module
from snapd.errors import DiskError, LockHeldError


def test_symbolic_links_are_refused(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "f").write_bytes(b"secret")
    root = tmp_path / "root"
    disk = PosixDisk(root, create=True)
    (root / "directory").symlink_to(outside)
    (root / "file").symlink_to(outside / "f")
    for call in (
        lambda: disk.open("directory/f", "r"),
        lambda: disk.open("directory/g", "x"),
        lambda: disk.open("file", "r"),
        lambda: disk.open("file", "a", direct=True),
        lambda: disk.list("directory"),
        lambda: disk.sync_directory("directory"),
        lambda: disk.make_directory("directory"),
        lambda: disk.lock("file"),
    ):
        with pytest.raises(DiskError):
            call()
    assert (outside / "f").read_bytes() == b"secret"
    assert os.listdir(outside) == ["f"]


def test_a_pipe_in_place_of_a_file_neither_blocks_nor_opens(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DiskError, match="not a regular file"):
        PosixDisk(tmp_path).open("pipe", "r")


def test_a_missing_root_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="No such file"):
        PosixDisk(tmp_path / "missing")


def test_files_are_private(tmp_path: Path) -> None:
    disk = PosixDisk(tmp_path / "root", create=True)
    disk.open("f", "x")
    assert (tmp_path / "root").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "root/f").stat().st_mode & 0o777 == 0o600


def test_a_lock_is_free_again_when_its_holder_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys; from snapd.disk import PosixDisk; "
        "lock = PosixDisk(sys.argv[1]).lock('lock'); print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        disk = PosixDisk(tmp_path)
        with pytest.raises(LockHeldError, match=str(tmp_path / "lock")):
            disk.lock("lock")
        child.send_signal(signal.SIGKILL)
        child.wait()
    disk.lock("lock").release()


def test_a_full_device_poisons_the_file(tmp_path: Path) -> None:
    """A size limit of the process stands for a full device: the kernel refuses the write."""
    code = (
        "import resource, signal, sys; from snapd.disk import PosixDisk\n"
        "from snapd.errors import DiskError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))\n"
        "file = PosixDisk(sys.argv[1]).open('f', 'x')\n"
        "codes = []\n"
        "for call in (lambda: file.write([bytes(9000)], 0), file.sync):\n"
        "    try: call()\n"
        "    except DiskError as error: codes.append(error.errno)\n"
        "print(codes)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == str([errno.EFBIG, errno.EIO])


def test_without_direct_io_files_are_buffered_and_one_warning_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real_open = os.open

    def without_direct(
        path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None
    ) -> int:
        if flags & os.O_DIRECT:
            os.close(real_open(path, flags & ~os.O_DIRECT, mode, dir_fd=dir_fd))
            raise OSError(errno.EINVAL, "Invalid argument")
        return real_open(path, flags, mode, dir_fd=dir_fd)

    disk = PosixDisk(tmp_path)
    monkeypatch.setattr(posix_module.os, "open", without_direct)
    with caplog.at_level(logging.WARNING):
        for name in ("a", "b"):
            file = disk.open(name, "x", direct=True)
            assert not file.direct
            file.write([b"any length"], 3)
    assert caplog.text.count("direct_io_unavailable") == 1


def test_direct_io_is_real_where_the_file_system_has_it(tmp_path: Path) -> None:
    file = PosixDisk(tmp_path).open("f", "x", direct=True)
    flags = fcntl.fcntl(file._descriptor, fcntl.F_GETFL)
    assert bool(flags & os.O_DIRECT) == file.direct
