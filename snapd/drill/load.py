"""`Client`: one process of the open-loop load, started as `python -m snapd.drill.load SPEC`.

A request is what an inference engine with a prefix cache does: look up the blocks of the prompt in
order, fetch the leading run that is there, compute the rest and put it. Every byte that comes back
is compared with the ledger. Requests fire at the times of the trace, whether or not earlier ones
have ended.
"""

from __future__ import annotations

import logging
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from snapd.client import MooncakeDistributedStore
from snapd.drill.clock import TraceClock
from snapd.drill.content import (
    I64,
    U8,
    U32,
    WRITERS_MAX,
    Bools,
    block_keys,
    describe_block,
    make_blocks,
    stamped_versions,
    wrong_bytes,
)
from snapd.drill.ledger import Ledger
from snapd.drill.shared import FileLock, Tickets, open_records
from snapd.drill.trace import Trace
from snapd.errors import SnapdError

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 10.0
UNSAVED_BLOCKS_MAX = 4096
"""Blocks that a client keeps for the return of a store that is away."""
BATCH_BYTES_MAX = 16 << 20
"""Bytes of the buffer that blocks are fetched into and put from."""


class LoadSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a client process is told."""

    directory: str
    """Where the files are that all processes share."""
    socket: str
    """The store's socket; for Mooncake, the master's host:port."""
    seed: int
    block_bytes: int
    deadline_seconds: float
    """Blocks that come later than this after the request fired are misses."""
    upsert_ratio: float
    """Share of requests that rewrite one of their blocks."""
    remove_ratio: float
    """Share of requests that remove one of their last blocks."""
    metadata: str = ""
    """Where Mooncake's transfer engine finds its peers; empty for the bundled store."""


class SharedState:
    """The files in the directory of one scenario, opened by every process of the load."""

    def __init__(self, directory: Path) -> None:
        """Map them; `create` made them."""
        self.lock = FileLock(directory / "lock")
        self.trace = Trace.load(directory / "trace.npz")
        self.clock = TraceClock(directory / "clock", self.lock)
        self.tickets = Tickets(directory / "tickets", self.lock)
        self.ledger = Ledger(directory / "ledger", self.lock)
        self.records = open_records(directory / "records")


class BlockClient:
    """A store client that moves whole batches of equal blocks through one registered buffer."""

    def __init__(self, spec: LoadSpec, blocks: int, blocks_max: int) -> None:
        """Connect. `blocks` is how many there are, `blocks_max` the most in one batch.

        Raises SnapdError when the store does not answer within `CONNECT_SECONDS`.
        """
        self.keys, self.hashes = block_keys(spec.seed, blocks)
        self.buffer: U8 = np.zeros((blocks_max, spec.block_bytes), np.uint8)
        self._address = self.buffer.ctypes.data
        self.store = self._new_store()
        deadline = time.monotonic() + CONNECT_SECONDS
        while (code := self._setup(spec)) != 0:
            if time.monotonic() > deadline:
                raise SnapdError(f"the load cannot connect to {spec.socket}: setup says {code}")
            time.sleep(0.05)
        if code := self.store.register_buffer(self._address, self.buffer.nbytes):
            raise SnapdError(f"register_buffer of {self.buffer.nbytes} bytes says {code}")

    def _new_store(self) -> Any:
        """An object of the store's client library, not yet connected."""
        return MooncakeDistributedStore()

    def _setup(self, spec: LoadSpec) -> int:
        """Connect it: 0, or why not."""
        return int(self.store.setup("localhost", "", 0, 0, "tcp", "", f"unix:{spec.socket}"))

    def close(self) -> None:
        """Give the store its buffer back and disconnect."""
        self.store.unregister_buffer(self._address)
        self.store.close()

    def exist(self, blocks: I64) -> Bools:
        """Which blocks the store says it has."""
        if not len(blocks):
            return np.zeros(0, np.bool_)
        codes = np.array(self.store.batch_is_exist(self._keys(blocks)), np.int64)
        there: Bools = codes == 1
        return there

    def fetch(self, blocks: I64) -> I64:
        """Fetch into the buffer's first rows: bytes of each block, or a negative code."""
        if not len(blocks):
            return np.zeros(0, np.int64)
        return np.array(
            self.store.batch_get_into(self._keys(blocks), *self._extents(len(blocks))), np.int64
        )

    def put(self, blocks: I64, versions: U32) -> Bools:
        """Put the blocks in these versions; which the store acknowledged."""
        if not len(blocks):
            return np.zeros(0, np.bool_)
        self.fill(blocks, versions)
        codes = self.store.batch_put_from(self._keys(blocks), *self._extents(len(blocks)))
        done: Bools = np.array(codes, np.int64) == 0
        return done

    def fill(self, blocks: I64, versions: U32) -> U8:
        """Make the blocks in the buffer's first rows."""
        rows = self.buffer[: len(blocks)]
        rows[:] = make_blocks(self.hashes[blocks], versions, self.buffer.shape[1])
        return rows

    def compare(self, blocks: I64, sizes: I64, floor: U32, ledger: Ledger) -> tuple[Bools, I64]:
        """Compare what `fetch` brought with the ledger.

        Returns which blocks came and are right, bool [n], and how many bytes of each are wrong,
        int64 [n]; a block that did not come is neither.
        """
        came = sizes >= 0
        size = self.buffer.shape[1]
        rows = self.buffer[: len(blocks)]
        versions = stamped_versions(rows)
        hashes = self.hashes[blocks]
        wrong = np.zeros(len(blocks), np.int64)
        wrong[came] = wrong_bytes(rows[came], hashes[came], versions[came])
        illegal = came & ((wrong > 0) | (sizes != size))
        illegal |= came & ~ledger.is_legal(blocks, versions, floor)
        if illegal.any():
            # Counted against what it should be: an old version, whole as it is, is all wrong.
            expected = wrong_bytes(rows[illegal], hashes[illegal], floor[illegal])
            wrong[illegal] = np.maximum(expected, 1)
        return came & ~illegal, wrong

    def describe(self, blocks: I64, sizes: I64, floor: U32, wrong: I64, row: int) -> str:
        """What is wrong with a fetched block, page by page."""
        ordinal, writer = divmod(int(floor[row]), WRITERS_MAX)
        return (
            f"block {blocks[row]} {self.keys[blocks[row]]}: {wrong[row]} bytes of {sizes[row]}; "
            f"expected key {self.hashes[blocks[row]]:016x} version {ordinal} writer {writer}; "
            f"found {describe_block(self.buffer[row])}"
        )

    def _keys(self, blocks: I64) -> list[str]:
        return [self.keys[block] for block in blocks.tolist()]

    def _extents(self, count: int) -> tuple[list[int], list[int]]:
        size = self.buffer.shape[1]
        return [self._address + row * size for row in range(count)], [size] * count


class Client:
    """Takes requests one after another and runs each at its time."""

    def __init__(
        self, spec: LoadSpec, writer: int, connect: Callable[..., BlockClient] = BlockClient
    ) -> None:
        """`connect` makes the store's client, as `BlockClient` does for the bundled store."""
        self._spec = spec
        self._writer = writer
        self._shared = SharedState(Path(spec.directory))
        self._ledger = self._shared.ledger
        longest = int(self._shared.trace.lengths.max())
        self._blocks = connect(spec, self._shared.trace.block_count, longest)
        self._unsaved: list[int] = []

    def run(self) -> None:
        """Run requests until there are no more or the clock is stopped."""
        shared = self._shared
        shared.tickets.arrive()
        while (request := shared.tickets.take()) < len(shared.trace):
            late = shared.clock.wait_until(float(shared.trace.times[request]))
            if late is None:
                break
            self._serve(request, late)
        self._blocks.close()

    def _serve(self, request: int, late: float) -> None:
        chain = self._shared.trace.chain(request)
        record = self._shared.records[request]
        fired = time.monotonic()
        record["late_s"], record["blocks"], record["fired"] = late, len(chain), fired

        floor = self._ledger.floor(chain)
        found = _leading(self._blocks.exist(chain))
        sizes = self._blocks.fetch(chain[:found])
        ended = time.monotonic()
        right = self._judge(record, chain[:found], sizes, floor[:found])
        in_time = ended - fired <= self._spec.deadline_seconds
        record["hits" if in_time else "overdue"] = right
        record["fetch_s"], record["ended"] = ended - fired, ended

        self._compute(record, chain[right:])
        self._change(request, chain)

    def _judge(self, record: np.void, blocks: I64, sizes: I64, floor: U32) -> int:
        """Leading blocks that are right; what is wrong goes into the record and the log."""
        right, wrong = self._blocks.compare(blocks, sizes, floor, self._ledger)
        bad = np.flatnonzero(wrong)
        if len(bad):
            record["wrong_blocks"] = len(bad)
            record["wrong_bytes"] = int(wrong.sum())
            for row in bad.tolist():
                logger.error(self._blocks.describe(blocks, sizes, floor, wrong, row))
        return _leading(right)

    def _compute(self, record: np.void, rest: I64) -> None:
        """Make what the cache did not have, and put those blocks that it still does not have.

        What cannot be put because the store is away is put when it is back, as an engine can that
        still has it in host memory; else every second of an outage would cost hits long after.
        """
        done, failed = self._put_missing(rest)
        record["puts"], record["puts_failed"] = done, failed
        if self._unsaved and not failed:
            longest = len(self._blocks.buffer)
            again, self._unsaved = self._unsaved[:longest], self._unsaved[longest:]
            self._put_missing(np.array(again))

    def _put_missing(self, blocks: I64) -> tuple[int, int]:
        """Put those that the cache does not have; how many it took, and how many it did not."""
        missing = blocks[~self._blocks.exist(blocks)]
        claim = self._ledger.begin_put(missing, self._writer)
        done = self._blocks.put(claim.blocks, claim.versions)
        self._ledger.finish(claim, done)
        failed = claim.blocks[~done].tolist()
        self._unsaved = list(dict.fromkeys(self._unsaved + failed))[-UNSAVED_BLOCKS_MAX:]
        return int(done.sum()), len(failed)

    def _change(self, request: int, chain: I64) -> None:
        """Now and then rewrite a block or remove one; the seed and the request decide which."""
        chance = random.Random(f"{self._spec.seed}/{request}")
        if not len(chain) or self._ledger.is_calm:
            return
        if chance.random() < self._spec.upsert_ratio:
            claim = self._ledger.begin_upsert(chain[[chance.randrange(len(chain))]], self._writer)
            if len(claim.blocks):
                rows = self._blocks.fill(claim.blocks, claim.versions)
                key = self._blocks.keys[int(claim.blocks[0])]
                code = self._blocks.store.upsert(key, rows[0].tobytes())
                self._ledger.finish(claim, np.array([code == 0]))
        if chance.random() < self._spec.remove_ratio:
            claim = self._ledger.begin_remove(
                chain[[-chance.randint(1, min(4, len(chain)))]], self._writer
            )
            if len(claim.blocks):
                key = self._blocks.keys[int(claim.blocks[0])]
                code = self._blocks.store.remove(key, True)
                self._ledger.finish(claim, np.array([code == 0]))


def _leading(flags: Bools) -> int:
    """How many are true before the first that is not."""
    return len(flags) if flags.all() else int(np.argmin(flags))


def main() -> None:
    """Entry point of a client process: the file of its spec, and its number as a writer."""
    spec = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=LoadSpec)
    Client(spec, int(sys.argv[2])).run()


if __name__ == "__main__":
    main()
