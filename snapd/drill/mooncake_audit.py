"""`RemoteAuditor`: the audit of a Mooncake site, in a process that has the wheel.

Commands go over its standard input, columns of blocks through files in the shared directory; see
`snapd.drill.mooncake_load`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from snapd.drill.audit import AuditVerdict
from snapd.drill.content import I64, U32, Bools
from snapd.drill.mooncake_site import MooncakeSite
from snapd.drill.shared import RESTORED_FILE, SURVIVING_FILE

ASK_SECONDS = 60.0


class ReadBack(NamedTuple):
    """What reading every block once found."""

    blocks: int
    """Blocks that came and are right."""
    wrong_bytes: int
    seconds: float


class RemoteAuditor:
    """The audit, in a process that has the wheel."""

    def __init__(self, site: MooncakeSite, spec: Path) -> None:
        """Start it and wait until it is connected. Raises DrillError when it does not answer."""
        self._process = site.start_auditor(spec)
        self._directory = site.shared
        self._process.ask("", ASK_SECONDS)

    def existing(self, surviving: U32) -> Bools:
        """Of the blocks that survived, those that come and are right."""
        np.save(self._directory / SURVIVING_FILE, surviving)
        self._ask("existing", None)
        restored: Bools = np.load(self._directory / RESTORED_FILE, allow_pickle=False)
        return restored

    def remove_some(self, candidates: I64, rng: random.Random) -> None:
        """Remove a few of these blocks."""
        self._ask("remove", (candidates.tolist(), rng.getrandbits(32)))

    def sweep(self, surviving: U32, restored: Bools, damaged: Collection[int]) -> AuditVerdict:
        """Read and compare every block that should be there."""
        np.save(self._directory / SURVIVING_FILE, surviving)
        np.save(self._directory / RESTORED_FILE, restored)
        return AuditVerdict(*self._ask("sweep", sorted(damaged)))

    def fill(self, requests: int) -> int:
        """Put the blocks of the first requests; how many the store has acknowledged."""
        return int(self._ask("fill", requests))

    def read_back(self, acknowledged: U32) -> ReadBack:
        """Read every block whose version is not 0."""
        np.save(self._directory / SURVIVING_FILE, acknowledged)
        return ReadBack(*self._ask("existing", None))

    def _ask(self, command: str, argument: object) -> Any:
        return json.loads(self._process.ask(json.dumps((command, argument)), ASK_SECONDS))
