"""The audit after a restart: is all that was durable still there, and is every byte right?"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Collection
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from snapd.drill.content import I64, U32, WRITERS_MAX, Bools
from snapd.drill.load import BATCH_BYTES_MAX, BlockClient, SharedState
from snapd.drill.look import BlockNames, evicted_keys
from snapd.drill.processes import DrillError, Site

logger = logging.getLogger(__name__)

EXIST_BATCH = 4096
REMOVALS_BEFORE_KILL = 16
SWEEP_ROUNDS = 3
SWEEP_PAUSE_SECONDS = 0.5
"""Blocks that did not come are asked for again: a cold one may be slow, a lost one never comes."""


def audit_batch(block_bytes: int) -> int:
    """Blocks that an audit reads at a time."""
    return max(1, min(256, BATCH_BYTES_MAX // block_bytes))


class AuditVerdict(NamedTuple):
    """What the sweep over all blocks found."""

    lost_blocks: int
    wrong_bytes: int


class Audit(Protocol):
    """What a scenario asks of its auditor, wherever that runs."""

    def existing(self, surviving: U32) -> Bools:
        """Of the blocks that survived (version not 0), those that are there."""

    def remove_some(self, candidates: I64, rng: random.Random) -> None:
        """Remove a few of these blocks."""

    def sweep(self, surviving: U32, restored: Bools, damaged: Collection[int]) -> AuditVerdict:
        """Read and compare every block that should be there, and end."""


class Auditor:
    """A client of its own, in the drill's process."""

    def __init__(
        self, client: BlockClient, state: SharedState, event_log: Path, names: BlockNames
    ) -> None:
        """Audit through a client that is connected; it is closed after the sweep."""
        self._state = state
        self._event_log = event_log
        self._batch = len(client.buffer)
        self._names = names
        self._client = client

    def existing(self, surviving: U32) -> Bools:
        """Of the blocks that survived (version not 0), those that the store says it has."""
        blocks = np.flatnonzero(surviving)
        there = np.zeros(len(surviving), np.bool_)
        for first in range(0, len(blocks), EXIST_BATCH):
            part = blocks[first : first + EXIST_BATCH]
            there[part] = self._client.exist(part)
        return there

    def remove_some(self, candidates: I64, rng: random.Random) -> None:
        """Remove a few of these blocks, so that a kill follows on removals that no snapshot knows
        of: only the journal can keep them from coming back."""
        ledger = self._state.ledger
        count = min(REMOVALS_BEFORE_KILL, len(candidates))
        picks = np.array(rng.sample(candidates.tolist(), count), np.int64)
        claim = ledger.begin_remove(picks, WRITERS_MAX - 1)
        codes = [self._client.store.remove(self._client.keys[b], True) for b in claim.blocks]
        ledger.finish(claim, np.array(codes) == 0)

    def sweep(self, surviving: U32, restored: Bools, damaged: Collection[int]) -> AuditVerdict:
        """Read every block that should be there and compare it, when the load has ended.

        A block is lost if it survived the kill and then was not there, either at once (`restored`)
        or now, though nobody removed it, the store did not log its eviction and the drill did not
        damage every copy of it (`damaged`).
        """
        ledger = self._state.ledger
        present = np.zeros(len(surviving), np.bool_)
        wanted = np.flatnonzero(ledger.live() | (surviving > 0))
        wrong = np.zeros(len(surviving), np.int64)
        for number in range(SWEEP_ROUNDS):
            time.sleep(SWEEP_PAUSE_SECONDS if number and len(wanted) else 0)
            for first in range(0, len(wanted), self._batch):
                part = wanted[first : first + self._batch]
                present[part], wrong[part] = self.read(part)
            wanted = wanted[~present[wanted] & (wrong[wanted] == 0)]
        excused = ledger.removed_since(surviving)
        excused |= self._names.marked(evicted_keys(self._event_log))
        excused[list(damaged)] = True
        lost = (surviving > 0) & ~(restored & present) & ~excused
        for block in np.flatnonzero(lost)[:20].tolist():
            logger.error(
                "lost block %d %s: version %d survived, there after the restart %s, now %s",
                block,
                self._client.keys[block],
                surviving[block],
                restored[block],
                present[block],
            )
        self._client.close()
        return AuditVerdict(int(lost.sum()), int(wrong.sum()))

    def read(self, blocks: I64) -> tuple[Bools, I64]:
        """Fetch blocks, at most a batch, and compare them: which came and are right, bool [n], and
        how many bytes of each are wrong, int64 [n]."""
        ledger = self._state.ledger
        floor = ledger.floor(blocks)
        sizes = self._client.fetch(blocks)
        right, wrong = self._client.compare(blocks, sizes, floor, ledger)
        for row in np.flatnonzero(wrong).tolist():
            logger.error(self._client.describe(blocks, sizes, floor, wrong, row))
        return right, wrong


def rejected_blocks(site: Site) -> int:
    """Blocks that store and daemon found not to be what they should be, and did not serve.

    Raises StoreUnavailableError or DrillError when they do not answer.
    """
    rejected = site.rejected_by_store()
    if site.daemon is not None:
        try:
            _, text = site.http_get("/metrics")
        except (OSError, HTTPException) as error:
            raise DrillError(f"the daemon does not give its metrics: {error}") from error
        # What the store drops, the daemon counts too: as of the segment.
        rejected += sum_metric(text, "snapd_blocks_quarantined_total", without="segment")
    return rejected


def sum_metric(text: str, name: str, without: str) -> int:
    """The sum of a counter in the text that /metrics gives, over all reasons but one."""
    return int(
        sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and sample.labels.get("reason") != without
        )
    )
