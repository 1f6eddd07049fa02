"""One process of a closed-loop load over a shared ledger: `python real_load.py SPEC WRITER`.

Each round fetches a few blocks and compares every byte, puts those that are not there, and now and
then rewrites, removes, or removes everything. It rests in between, so that its share of a core is
bounded, and lives through the death of everything else. Whatever is wrong goes into a file of its
own, a line each; an empty file is the proof that nothing was.
"""

from __future__ import annotations

import os
import random
import sys
import time
from pathlib import Path

import msgspec
import numpy as np

from snapd.drill.content import I64, Bools
from snapd.drill.ledger import Ledger
from snapd.drill.load import BlockClient, LoadSpec
from snapd.drill.shared import FileLock


class RealLoadSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What the processes of a load are told; `LoadSpec` is the drill's."""

    directory: str
    socket: str
    seed: int
    blocks: int
    block_bytes: int
    batch: int = 8
    """Most blocks in one call."""
    busy_ratio: float = 0.3
    """Share of the time in which a process works; the rest it sleeps."""
    upsert_ratio: float = 0.25
    remove_ratio: float = 0.1
    remove_all_ratio: float = 0.0

    @property
    def drill(self) -> LoadSpec:
        return LoadSpec(
            directory=self.directory,
            socket=self.socket,
            seed=self.seed,
            block_bytes=self.block_bytes,
            deadline_seconds=10.0,
            upsert_ratio=self.upsert_ratio,
            remove_ratio=self.remove_ratio,
        )


class SharedLoad:
    """The files that the processes of one load share: the ledger, doubts, counters and a brake."""

    def __init__(self, directory: Path, blocks: int, *, create: bool = False) -> None:
        lock = FileLock(directory / "lock")
        if create:
            Ledger.create(directory / "ledger", blocks, lock)
            np.zeros(blocks, np.uint32).tofile(directory / "doubts")
            np.zeros(64, np.int64).tofile(directory / "counters")
        self.directory = directory
        self.lock = lock
        self.ledger = Ledger(directory / "ledger", lock)
        self.doubts = np.memmap(directory / "doubts", np.uint32, mode="r+")
        """The version that a remove-all may or may not have met on its way."""
        self._counters = np.memmap(directory / "counters", np.int64, mode="r+")

    @property
    def paused(self) -> bool:
        """While this is so nobody begins anything, in the middle of a round neither: once no claim
        is left nothing is under way."""
        return bool(self._counters[0])

    @paused.setter
    def paused(self, value: bool) -> None:
        self._counters[0] = int(value)

    def count(self, blocks: int, refused: int) -> None:
        """Blocks that one round moved, and calls that were refused."""
        with self.lock:
            self._counters[1] += blocks
            self._counters[2] += refused

    @property
    def moved(self) -> int:
        """Blocks that came or were put, right."""
        return int(self._counters[1])

    def removal_is_under_way(self) -> bool:
        """Whether somebody waits for the answer to a removal."""
        ledger = self.ledger
        return bool(((ledger._removing[:] > ledger._removed) & (ledger._claimed[:] > 0)).any())

    def disown(self, writer: int) -> None:
        """A client was killed: what it was doing may or may not have happened."""
        with self.lock:
            theirs = self.ledger._claimed[:] == writer + 1
            self.ledger._unsure[theirs] = 1
            self.ledger._claimed[theirs] = 0

    def wrong(self) -> list[str]:
        """Every finding of every process."""
        return [
            line
            for path in sorted(self.directory.glob("wrong-*.log"))
            for line in path.read_text().splitlines()
        ]


class RealLoad:
    """The work of one process."""

    def __init__(self, spec: RealLoadSpec, writer: int) -> None:
        self.spec, self.writer = spec, writer
        self.shared = SharedLoad(Path(spec.directory), spec.blocks)
        self.random = random.Random(f"{spec.seed}/{writer}/{time.monotonic_ns()}")
        self.client = BlockClient(spec.drill, spec.blocks, max(spec.batch, 32))
        self.report = Path(spec.directory) / f"wrong-{writer}.log"

    def run(self) -> None:
        """Until SIGTERM or SIGKILL, or until nobody is left to work for."""
        parent = os.getppid()
        while os.getppid() == parent:
            if self.shared.paused:
                time.sleep(0.002)
                continue
            began = time.monotonic()
            self.step()
            worked = time.monotonic() - began
            time.sleep(max(0.001, min(1.0, worked * (1 / self.spec.busy_ratio - 1))))

    def step(self) -> None:
        picks = self.random.sample(range(self.spec.blocks), self.random.randint(1, self.spec.batch))
        blocks = np.array(sorted(picks), np.int64)
        moved = self.fetch(blocks)
        chance = self.random.random()
        if chance < self.spec.remove_all_ratio:
            self.remove_all()
        elif chance < self.spec.remove_ratio:
            self.remove(blocks[:2])
        elif chance < self.spec.remove_ratio + self.spec.upsert_ratio:
            moved += self.upsert(blocks[:3])
        else:
            moved += self.put(blocks)
        self.shared.count(moved, 0)

    def fetch(self, blocks: I64) -> int:
        """Fetch and compare; how many came."""
        right = compared_fetch(self.client, self.shared.ledger, blocks, self.report)
        return int(right.sum())

    def put(self, blocks: I64) -> int:
        missing = blocks[~self.client.exist(blocks)]
        claim = self.shared.ledger.begin_put(missing, self.writer)
        done = np.zeros(len(claim.blocks), np.bool_)
        if not self.shared.paused:
            done = self.client.put(claim.blocks, claim.versions)
        self.shared.ledger.finish(claim, done)
        return int(done.sum())

    def upsert(self, blocks: I64) -> int:
        claim = self.shared.ledger.begin_upsert(blocks, self.writer)
        rows = self.client.fill(claim.blocks, claim.versions)
        codes = [
            self.client.store.upsert(self.client.keys[block], rows[at].tobytes())
            for at, block in enumerate(claim.blocks.tolist())
            if not self.shared.paused
        ]
        codes += [-1] * (len(claim.blocks) - len(codes))
        done = np.array(codes, np.int64) == 0
        self.shared.ledger.finish(claim, done)
        return int(done.sum())

    def remove(self, blocks: I64) -> None:
        claim = self.shared.ledger.begin_remove(blocks, self.writer)
        keys = [self.client.keys[block] for block in claim.blocks.tolist()]
        codes = [-1 if self.shared.paused else self.client.store.remove(key, True) for key in keys]
        # Not found is no removal: where the store cannot see the disk, a block may yet come back.
        self.shared.ledger.finish(claim, np.array(codes, np.int64) == 0)

    def remove_all(self) -> None:
        """Those that others are writing at this moment may be before it or after it."""
        ledger = self.shared.ledger
        claim = ledger.begin_remove(np.arange(self.spec.blocks), self.writer)
        mine = np.zeros(self.spec.blocks, np.bool_)
        mine[claim.blocks] = True
        self.shared.doubts[~mine] = ledger._started[~mine]
        code = -1 if self.shared.paused else self.client.store.remove_all(True)
        self.shared.doubts[~mine] = ledger._started[~mine]
        ledger.finish(claim, np.full(len(claim.blocks), code >= 0))


def compared_fetch(client: BlockClient, ledger: Ledger, blocks: I64, report: Path) -> Bools:
    """Fetch blocks, compare every byte with the ledger, append what is wrong to `report`.

    Returns which came back right, bool [n]."""
    floor = ledger.floor(blocks)
    sizes = client.fetch(blocks)
    right, wrong = client.compare(blocks, sizes, floor, ledger)
    for row in np.flatnonzero(wrong).tolist():
        line = client.describe(blocks, sizes, floor, wrong, row)
        with report.open("a") as file:
            file.write(f"{time.time():.3f} started {ledger._started[blocks[row]]} {line}\n")
    return right


def main() -> None:
    spec = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=RealLoadSpec)
    RealLoad(spec, int(sys.argv[2])).run()


if __name__ == "__main__":
    main()
