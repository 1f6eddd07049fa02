"""The meter counts what goes to the disk, and nothing else."""

from __future__ import annotations

import errno

import pytest
from repository_kit import put

from snapd.disk.metered import MeteredDisk
from snapd.disk.simulated import SimulatedDisk
from snapd.errors import DiskError
from snapd.repository import Repository


def test_everything_that_a_repository_writes_is_counted() -> None:
    inner = SimulatedDisk(1)
    disk = MeteredDisk(inner)
    with Repository.open(disk) as repository:
        repository.recover()
        repository.incarnation(b"0123456789abcdef")
        put(repository, {b"key": b"x" * 10_000})
        repository.commit()
        assert disk.bytes_written == inner.bytes_written > 10_000
        before = disk.bytes_written
        repository.generations()
        assert disk.bytes_written == before


def test_a_write_that_fails_is_counted() -> None:
    inner = SimulatedDisk(1)
    disk = MeteredDisk(inner)
    file = disk.open("f", "x")
    inner.fail_kind("write", code=errno.ENOSPC)
    with pytest.raises(DiskError):
        file.write([bytes(4096)], 0)
    assert disk.bytes_written == 4096
