"""`snapctl backup` and `restore` as an operator runs them: real processes, files, and a bucket."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from cli_site import BIN, Result
from fault_ledger import FaultClass, case
from real_disks import memory_disk
from repository_kit import contents_of
from sample_repository import Expected, build_sample

from snapd.cli.execute import execute
from snapd.cli.snapctl import snapctl as snapctl_group
from snapd.disk.posix import PosixDisk
from snapd.repository import Repository

SNAPCTL = str(BIN / "snapctl")


class Commands:
    """Runs commands in this process: to start another one takes a second each."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._capfd = capfd

    def __call__(self, *words: object) -> Result:
        self._capfd.readouterr()
        code = execute(snapctl_group, "snapctl", [str(word) for word in words])
        out, err = self._capfd.readouterr()
        return Result(code, out, err)


@pytest.fixture
def snapctl(capfd: pytest.CaptureFixture[str]) -> Commands:
    return Commands(capfd)


def piped(*words: object, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Snapctl as a process of its own, with its standard input and output."""
    return subprocess.run(
        [SNAPCTL, *(str(word) for word in words)],
        input=data,
        capture_output=True,
        timeout=60,
        check=False,
    )


def good(result: Result) -> Result:
    assert result.code == 0, result.err
    return result


def live(root: Path) -> dict[bytes, bytes]:
    disk = PosixDisk(root)
    try:
        with Repository.open(disk) as repository:
            repository.recover()
            return contents_of(repository)
    finally:
        disk.close()


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Expected]:
    root = tmp_path_factory.mktemp("backup") / "repository"
    return root, build_sample(root)


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_text("0f" * 32 + "\n")
    path.chmod(0o600)
    return path


def test_a_directory_a_file_and_a_stream(
    tmp_path: Path, sample: tuple[Path, Expected], key: Path, snapctl: Commands
) -> None:
    root, expected = sample
    place, file = tmp_path / "place", tmp_path / "one.snapbackup"
    first = good(snapctl("backup", f"{place}/", "--persistent-path", root, "--json")).document
    assert (first["packs_copied"], first["packs_there"], first["findings"]) == (4, 0, [])
    again = good(snapctl("backup", place, "--persistent-path", root, "--keep", 1)).out
    assert "0 copied, 4 there already" in again
    good(snapctl("backup", file, "--persistent-path", root, "--key-file", key))
    assert file.stat().st_mode & 0o777 == 0o600
    for number, words in enumerate([(place,), (file, "--key-file", key)]):
        target = tmp_path / f"target-{number}"
        dry = good(snapctl("restore", *words, "--dry-run", "--persistent-path", target))
        assert dry.out.startswith("whole: generation 4")
        assert not target.exists()
        done = good(snapctl("restore", *words, "--json", "--persistent-path", target))
        assert done.document["blocks"] == len(expected.live)
        assert good(snapctl("verify", "--all", "--persistent-path", target)).code == 0
        assert live(target) == expected.live
    stream = piped("backup", "-", "--persistent-path", root, "--level", 0)
    assert b"backed up generation 4" in stream.stderr
    target = tmp_path / "from-stream"
    done = piped("restore", "-", "--persistent-path", target, data=stream.stdout)
    assert (done.returncode, live(target)) == (0, expected.live)


def test_refusals_and_their_exit_codes(
    tmp_path: Path, sample: tuple[Path, Expected], key: Path, snapctl: Commands
) -> None:
    root, _ = sample
    file = tmp_path / "one"
    here = ("--persistent-path", root)
    there = ("--persistent-path", tmp_path / "target")
    good(snapctl("backup", file, *here, "--key-file", key))
    assert snapctl("backup", file, *here).code == 5
    assert snapctl("backup", "-", "--json", *here).code == 2
    assert snapctl("backup", tmp_path / "x", "--persistent-path", tmp_path / "none").code == 3
    assert snapctl("restore", tmp_path / "none", *there).code == 3
    assert snapctl("restore", f"{tmp_path}/none/", *there).code == 3
    assert snapctl("restore", tmp_path, *there).code == 3
    assert snapctl("restore", file, *there).code == 5
    other = tmp_path / "other"
    other.write_bytes(b"k" * 32)
    other.chmod(0o640)
    assert "can be read by others" in snapctl("restore", file, "--key-file", other, *there).err
    other.chmod(0o600)
    wrong = snapctl("restore", file, "--key-file", other, *there)
    assert wrong.code == 5
    assert "the key file holds" in wrong.err
    cut = tmp_path / "cut"
    cut.write_bytes(file.read_bytes()[:-20])
    assert snapctl("restore", cut, "--key-file", key, *there).code == 4
    refused = snapctl("list", *there)
    assert refused.code == 5
    assert "is not finished" in refused.err
    # Another archive is another restore: finish the first one, or say --force.
    assert snapctl("restore", file, "--key-file", key, *there).code == 0
    full = snapctl("restore", file, "--key-file", key, *there)
    assert full.code == 5
    assert "not empty" in full.err


@pytest.mark.long
def test_a_full_disk_leaves_nothing_visible_and_goes_on_later(
    tmp_path: Path, sample: tuple[Path, Expected], snapctl: Commands
) -> None:
    root, expected = sample
    file, target = tmp_path / "one", tmp_path / "small"
    good(snapctl("backup", file, "--persistent-path", root))
    with memory_disk(target, "size=400k"), case(FaultClass.FULL, "restore: the disk is full"):
        # It would fit; then somebody else takes the room while the archive comes in.
        source, sink = os.pipe()
        process = subprocess.Popen(
            [SNAPCTL, "restore", "-", "--persistent-path", str(target)],
            stdin=source,
            stderr=subprocess.PIPE,
        )
        os.close(source)
        data = file.read_bytes()
        os.write(sink, data[: len(data) // 2])
        wait_for(target / "restoring")
        (target / "hog").write_bytes(b"x" * (filled(target) - 8192))
        with os.fdopen(sink, "wb") as rest:
            rest.write(data[len(data) // 2 :])
        assert process.wait(60) == 1
        assert process.stderr is not None
        assert b"No space left" in process.stderr.read()
        process.stderr.close()
        assert snapctl("list", "--persistent-path", target).code == 5
        (target / "hog").unlink()
        again = good(snapctl("restore", file, "--persistent-path", target, "--json")).document
        assert again["files_there"] >= 1
        assert live(target) == expected.live
    with memory_disk(target, "size=64k"), case(FaultClass.FULL, "restore: too little room"):
        refused = snapctl("restore", file, "--persistent-path", target)
        assert refused.code == 1
        assert "bytes and the target has" in refused.err
        assert not (target / "restoring").exists()


def filled(target: Path) -> int:
    """Bytes that are free."""
    found = os.statvfs(target)
    return found.f_bavail * found.f_frsize


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.02)


@pytest.mark.long
def test_a_kill_in_the_middle_and_then_again(
    tmp_path: Path, sample: tuple[Path, Expected], snapctl: Commands
) -> None:
    root, expected = sample
    place = tmp_path / "place"
    with case(FaultClass.KILL, "backup killed, then run again"):
        killed_after("backup", f"{place}/", root, lambda: len(list(place.rglob("*.snapbackup"))))
        again = good(snapctl("backup", f"{place}/", "--persistent-path", root, "--json")).document
        assert again["packs_there"] >= 1
        assert not list(place.rglob("*.tmp"))
    target = tmp_path / "target"
    with case(FaultClass.KILL, "restore killed, then run again"):
        killed_after("restore", str(place), target, lambda: len(list(target.rglob("*.pack"))))
        assert snapctl("verify", "--persistent-path", target).code == 5
        again = good(snapctl("restore", place, "--persistent-path", target, "--json")).document
        assert again["files_there"] >= 1
        assert live(target) == expected.live
        assert not list(target.rglob("*.tmp"))


def killed_after(command: str, what: str, root: Path, count: object) -> None:
    """Start a slow run, and kill it once it has brought a file."""
    process = subprocess.Popen(
        [SNAPCTL, command, what, "--persistent-path", str(root), "--rate-limit", "30kb"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 30
    assert callable(count)
    while not count():
        assert process.poll() is None, "it ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait(10) == -signal.SIGKILL


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A real S3 server on loopback (moto's), with a bucket; the environment that finds it."""
    code = (
        "import sys; from moto.server import ThreadedMotoServer as S; "
        "s = S('127.0.0.1', 0, verbose=False); s.start(); "
        "print('port', s.get_host_and_port()[1], flush=True); sys.stdin.read()"
    )
    server = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        port = int(server.stdout.readline().rpartition(b" ")[2])
        environment = {
            "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "1",
        }
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="kv-backups")
        yield "s3://kv-backups/some/prefix"
    finally:
        server.stdin.close()
        server.stdout.close()
        server.kill()
        server.wait()


def test_a_bucket(
    tmp_path: Path, sample: tuple[Path, Expected], key: Path, bucket: str, snapctl: Commands
) -> None:
    root, expected = sample
    here = ("--persistent-path", root, "--key-file", key)
    first = good(snapctl("backup", bucket, *here, "--json")).document
    assert (first["packs_copied"], first["packs_there"]) == (4, 0)
    again = good(snapctl("backup", bucket, *here, "--keep", 1, "--json")).document
    assert (again["packs_copied"], again["packs_there"], again["removed"]) == (0, 4, 1)
    there = ("--persistent-path", tmp_path / "target", "--key-file", key)
    assert good(snapctl("restore", bucket, *there)).code == 0
    assert live(tmp_path / "target") == expected.live
    assert snapctl("restore", "s3://kv-backups/nothing", *there).code == 3
    gone = snapctl("backup", "s3://no-such-bucket/x", *here)
    assert (gone.code, "in the bucket" in gone.err) == (1, True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
        assert snapctl("restore", bucket, *there).code == 1


def test_the_commands_say_what_they_would_do(
    tmp_path: Path, sample: tuple[Path, Expected], snapctl: Commands
) -> None:
    root, _ = sample
    for where in (f"{tmp_path}/place/", f"{tmp_path}/file", "-"):
        done = good(
            snapctl("backup", where, "--dry-run", "--json", "--persistent-path", root)
        ).document
        assert done["blocks"] == 6
        assert done["bytes_written"] == 0
    assert os.listdir(tmp_path) == []
