"""Files in shared memory of a store that the settings do not name any more: deleted when nobody can
have them mapped, and left with a word about it else."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator

import pytest

from snapd.attach.mooncake.adopt import adopt
from snapd.attach.mooncake.counters import Counters
from snapd.attach.mooncake.files import SegmentFile, create_segment_file
from snapd.attach.mooncake.master import MasterAdmin, MasterSegment
from snapd.attach.mooncake.memory import Memory
from snapd.attach.mooncake.mounts import Mounts
from snapd.attach.mooncake.record import TRAILER_BYTES, SegmentRecord
from snapd.config import Settings

STEM = f"snapd-abandoned-{os.getpid()}"
LISTED = MasterSegment("1-2", "3-4", 1 << 20, 1 << 16, "127.0.0.1:5", 0, is_ok=True)


class Nobody:
    """Counts nothing."""

    def mount_failed(self, reason: str) -> None:
        pass


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def leave_file(server: socket.socket) -> str:
    """A file that a daemon mounted in the store at this address."""
    file = create_segment_file(STEM, 1 << 16, group_shared=False)
    file.write_record(
        SegmentRecord(
            store_url=f"http://127.0.0.1:{server.getsockname()[1]}",
            segment_ids=("1-2",),
            base_addresses=(1 << 20,),
            sizes=(1 << 16,),
            client_id="3-4",
            endpoint="127.0.0.1:5",
            life_id=bytes(16),
            counters={},
            mounted_at=0.0,
        )
    )
    return closed(file)


def closed(file: SegmentFile) -> str:
    file.close()
    return file.path


def begin(listed: list[MasterSegment]) -> None:
    """What a daemon does first."""
    settings = Settings(store="mooncake", segment_path=f"/dev/shm/{STEM}")
    mounts = Mounts(settings, MasterAdmin("127.0.0.1:1"), Memory(), Nobody())
    adopt(mounts, Memory(), Counters.at_birth(), listed)
    mounts.close()


@pytest.fixture(autouse=True)
def tidy() -> Iterator[None]:
    yield
    for name in os.listdir("/dev/shm"):
        if name.startswith(STEM):
            os.unlink(f"/dev/shm/{name}")


def test_one_whose_store_is_gone_is_deleted(
    listener: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    path = leave_file(listener)
    listener.close()
    with caplog.at_level(logging.WARNING):
        begin([])
    assert not os.path.exists(path)
    assert "deleted a file in shared memory" in caplog.text


def test_one_whose_store_listens_is_left(
    listener: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    path = leave_file(listener)
    with caplog.at_level(logging.WARNING):
        begin([])
    assert os.path.exists(path)
    assert "stop that store, or name it" in caplog.text


def test_one_that_the_master_lists_is_left(listener: socket.socket) -> None:
    path = leave_file(listener)
    listener.close()
    begin([LISTED])
    assert os.path.exists(path)


def test_one_whose_record_was_scribbled_over_is_left_and_told(
    listener: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    path = leave_file(listener)
    listener.close()
    with open(path, "r+b") as stream:
        stream.seek(-TRAILER_BYTES, os.SEEK_END)
        stream.write(b"scribble" * (TRAILER_BYTES // 8))
    with caplog.at_level(logging.WARNING):
        begin([])
    assert os.path.exists(path)
    assert "delete it when no store has it mounted" in caplog.text
    assert path in str(vars(caplog.records[-1])), "it says which"
