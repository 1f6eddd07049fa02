"""Backups while a writer seals packs, removes, compacts, commits and prunes."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from backup_kit import SEGMENT_ID, blocks, live, restore_from, save_to
from fault_ledger import FaultClass, case
from repository_kit import content, put, remove

from snapd.backup import captured
from snapd.disk.posix import PosixDisk
from snapd.repository import Repository
from snapd.repository.prune import PINNED

KEYS = [f"key-{one}".encode() for one in range(12)]


class State(NamedTuple):
    """What was last done to a key."""

    sequence: int
    alive: bool


class Writer:
    """Works until it is told to stop; knows what every key may be."""

    def __init__(self, root: Path, seed: int) -> None:
        self.sequence = 0
        self.live: dict[bytes, State] = {}
        """Changed after it is durable."""
        self.error: BaseException | None = None
        self.commits = 0
        self._random = random.Random(seed)
        self._disk = PosixDisk(root, create=True)
        self._repository = Repository.open(self._disk, retain=1)
        self._repository.recover()
        self._repository.incarnation(SEGMENT_ID)
        self.step(put_first=True)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        """Ends the work; raises what went wrong in it."""
        self._stop.set()
        self._thread.join()
        self._repository.close()
        self._disk.close()
        if self.error is not None:
            raise self.error

    def step(self, *, put_first: bool = False) -> None:
        """One change."""
        self.sequence += 1
        chosen = self._random.sample(KEYS, 3)
        kind = "put" if put_first else self._random.choice(["put", "put", "remove", "compact"])
        if kind == "put":
            put(self._repository, blocks(chosen, self.sequence), sequence=self.sequence)
            self.live |= dict.fromkeys(chosen, State(self.sequence, alive=True))
        elif kind == "remove":
            remove(self._repository, chosen, sequence=self.sequence)
            self.live |= dict.fromkeys(chosen, State(self.sequence, alive=False))
        else:
            self._repository.compact([pack.sequence for pack in self._repository.packs()][:3])
        self._repository.commit()
        self.commits += 1

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self.step()
        except BaseException as error:  # noqa: BLE001 - told by `stop`, in the test's own thread
            self.error = error


def run(tmp_path: Path, seconds: float, seed: int) -> None:
    writer = Writer(tmp_path / "repository", seed)
    source = PosixDisk(tmp_path / "repository")
    place = PosixDisk(tmp_path / "place", create=True)
    backups = 0
    deadline = time.monotonic() + seconds
    try:
        while time.monotonic() < deadline:
            before = dict(writer.live)
            result = save_to(source, place, keep=2)
            after = writer.sequence + 1
            assert result.findings == []
            target = PosixDisk(tmp_path / f"target-{backups}", create=True)
            with case(FaultClass.SOAK, f"backup {seed}/{backups} beside a writer"):
                check(restore_from(place, onto=target), before, after)
            assert live(target) is not None
            target.close()
            backups += 1
    finally:
        writer.stop()
        source.close()
        place.close()
    assert backups >= 2
    assert writer.commits > 5


def check(found: dict[bytes, bytes], before: dict[bytes, State], after: int) -> None:
    """Each key is what it was when the backup began, or became while it ran; bytes are a function
    of key and version. What had been removed or replaced by then is not there."""
    for key, data in found.items():
        known = before.get(key, State(0, alive=False))
        first = known.sequence if known.alive else known.sequence + 1
        versions = [one for one in range(first, after + 1) if data == content(key, one)]
        assert versions, f"{key!r} is not of a version from {first} to {after}"
    begun = max(known.sequence for known in before.values())
    lost = [key for key, known in before.items() if known.alive and key not in found]
    # Only what was removed, or begun and not yet sealed, while the backup ran may be missing.
    assert len(lost) <= 3 * (after - begun), lost


def test_a_backup_beside_a_busy_writer(tmp_path: Path) -> None:
    seed = 1
    try:
        run(tmp_path, 2.0, seed)
    except AssertionError as error:
        raise AssertionError(
            f"seed {seed}; repeat: ./check -- tests/integration/test_backup_beside_writer.py"
        ) from error


@pytest.mark.long
@pytest.mark.parametrize("seed", [2, 3, 4])
def test_many_backups_beside_a_busy_writer(tmp_path: Path, seed: int) -> None:
    run(tmp_path, 30.0, seed)


def test_nothing_is_deleted_while_a_backup_reads(tmp_path: Path) -> None:
    disk = PosixDisk(tmp_path)
    with Repository.open(disk, retain=1) as repository:
        repository.recover()
        repository.incarnation(SEGMENT_ID)
        put(repository, blocks(KEYS, 1), sequence=1)
        repository.commit()
        with captured(disk) as capture:
            put(repository, blocks(KEYS, 2), sequence=2)
            assert repository.commit().pruned.blocked == PINNED
            assert {pack.name for pack in capture.packs} <= {
                f"packs/{name}" for name in disk.list("packs")
            }
        assert repository.commit().pruned.packs == 1
    disk.close()
