"""The drill's processes that need Mooncake's wheel: clients of the load, and the one that audits.

`python -m snapd.drill.mooncake_load SPEC NUMBER` is a client; `... SPEC audit` takes one command a
line on its standard input and answers each with a line of JSON. Columns of blocks go through files
in the shared directory.
"""

from __future__ import annotations

import json
import logging
import os
import random
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, TextIO

import msgspec
import numpy as np
from mooncake.store import MooncakeDistributedStore

from snapd.drill.audit import Auditor, AuditVerdict, audit_batch
from snapd.drill.content import U32, Bools
from snapd.drill.load import BlockClient, Client, LoadSpec, SharedState
from snapd.drill.look import BlockNames
from snapd.drill.shared import RESTORED_FILE, SURVIVING_FILE

logger = logging.getLogger(__name__)

LOCAL_BUFFER_BYTES = 64 << 20
READ_ROUNDS = 2
READ_PAUSE_SECONDS = 0.1


class MooncakeBlockClient(BlockClient):
    """The same client on Mooncake's own store class, without memory of its own."""

    def _new_store(self) -> Any:
        return MooncakeDistributedStore()

    def _setup(self, spec: LoadSpec) -> int:
        code = self.store.setup(
            "127.0.0.1", spec.metadata, 0, LOCAL_BUFFER_BYTES, "tcp", "", spec.socket
        )
        return int(code)


class ReadingAuditor(Auditor):
    """An auditor that believes only what it has read: Mooncake lists keys whose bytes are gone."""

    def __init__(
        self, client: BlockClient, state: SharedState, event_log: Path, names: BlockNames
    ) -> None:
        super().__init__(client, state, event_log, names)
        self._batch_blocks = len(client.buffer)
        self.wrong_bytes = 0

    def existing(self, surviving: U32) -> Bools:
        """Of the blocks that survived (version not 0), those that come and are right."""
        there = np.zeros(len(surviving), np.bool_)
        for number in range(READ_ROUNDS):
            # The first call after the master was away fails in every client.
            missing = np.flatnonzero((surviving > 0) & ~there)
            time.sleep(READ_PAUSE_SECONDS if number and len(missing) else 0)
            for first in range(0, len(missing), self._batch_blocks):
                part = missing[first : first + self._batch_blocks]
                there[part], wrong = self.read(part)
                self.wrong_bytes += int(wrong.sum())
        return there

    def sweep(self, surviving: U32, restored: Bools, damaged: Collection[int]) -> AuditVerdict:
        """As `Auditor.sweep`; what `existing` found wrong counts too."""
        verdict = super().sweep(surviving, restored, damaged)
        return verdict._replace(wrong_bytes=verdict.wrong_bytes + self.wrong_bytes)


class AuditServer:
    """Answers the commands of `RemoteAuditor`."""

    def __init__(self, spec: LoadSpec) -> None:
        self._directory = Path(spec.directory)
        self._state = SharedState(self._directory)
        count = self._state.trace.block_count
        client = MooncakeBlockClient(spec, count, audit_batch(spec.block_bytes))
        self._client = client
        # Nothing is evicted: there is room for every block, and the drill watches the counter.
        names, no_log = BlockNames(client.keys, client.hashes), self._directory / "no-events"
        self._auditor = ReadingAuditor(client, self._state, no_log, names)

    def serve(self, answers: TextIO) -> None:
        """Answer until the input ends."""
        commands: dict[str, Callable[[Any], Any]] = {
            "fill": self._fill,
            "existing": self._existing,
            "remove": self._remove,
            "sweep": self._sweep,
        }
        print(json.dumps("ready"), file=answers, flush=True)
        for line in sys.stdin:
            name, argument = json.loads(line)
            print(json.dumps(commands[name](argument)), file=answers, flush=True)

    def _fill(self, requests: int) -> int:
        """Put the blocks of the first requests, in their order; how many there are then."""
        trace, ledger = self._state.trace, self._state.ledger
        wanted = trace.blocks[: trace.starts[requests]]
        blocks = wanted[np.sort(np.unique(wanted, return_index=True)[1])]
        for first in range(0, len(blocks), len(self._client.buffer)):
            claim = ledger.begin_put(blocks[first : first + len(self._client.buffer)], 0)
            ledger.finish(claim, self._client.put(claim.blocks, claim.versions))
        return int(np.count_nonzero(ledger.live()))

    def _existing(self, _: None) -> tuple[int, int, float]:
        """Read what survived: blocks that are right, wrong bytes so far, seconds that it took."""
        surviving = np.load(self._directory / SURVIVING_FILE, allow_pickle=False)
        began = time.monotonic()
        there = self._auditor.existing(surviving)
        seconds = time.monotonic() - began
        np.save(self._directory / RESTORED_FILE, there)
        return int(np.count_nonzero(there)), self._auditor.wrong_bytes, seconds

    def _remove(self, argument: tuple[list[int], int]) -> None:
        candidates, seed = argument
        self._auditor.remove_some(np.array(candidates, np.int64), random.Random(seed))

    def _sweep(self, damaged: list[int]) -> AuditVerdict:
        surviving = np.load(self._directory / SURVIVING_FILE, allow_pickle=False)
        restored = np.load(self._directory / RESTORED_FILE, allow_pickle=False)
        return self._auditor.sweep(surviving, restored, damaged)


def main() -> None:
    """Entry point: the file of the spec, and the number of a writer or `audit`."""
    spec = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=LoadSpec)
    if sys.argv[2] == "audit":
        # What native code prints must not get between the answers.
        answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        AuditServer(spec).serve(answers)
    else:
        Client(spec, int(sys.argv[2]), MooncakeBlockClient).run()


if __name__ == "__main__":
    main()
