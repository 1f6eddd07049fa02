"""`Purge`: blocks leave the disk for good, with the packs, the copies and the snapshots that hold
them.

Blocks disclose prompts, so here it is not enough that a key is removed: its bytes go as well. What
stays are names of keys, in records that say that they are gone; they go with the packs that carry
them. The bytes go as far as deleting files takes them; a file system or an SSD may keep old pages
for a while.
"""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from snapd.blocks.keys import I64, U64, Bools
from snapd.errors import DiskError, SnapdError
from snapd.formats.pack import decode_pack_index
from snapd.formats.removals import Removals
from snapd.formats.sealed import PACK_MAGIC
from snapd.repository.catalog import RowState
from snapd.repository.files import read_index
from snapd.repository.names import (
    ASIDE,
    DIRECTORIES,
    PACKS,
    QUARANTINE,
    REPOSITORY_FILE,
    TEMPORARY,
    parse_pack,
)
from snapd.repository.prune import PINNED, PruneResult
from snapd.repository.repository import Repository
from snapd.repository.state import PackInfo

_ROUNDS_MAX = 5
"""Times that packs are looked for: what was being written meanwhile is found the next time."""
_POLL_SECONDS = 0.05

_QUARANTINED = re.compile(r"(\d{10})-([0-9a-f]{16})\.block")

_WITHOUT_BLOCKS = (".manifest", ".journal")
"""Ends of the names of files that hold no bytes of blocks, whatever else they hold."""

Rewrite = Callable[[Sequence[int]], object]
"""`Repository.compact`, with what it needs to know of others who keep row numbers."""


@dataclass(slots=True)
class PurgeResult:
    """What was purged, and whether all of it was."""

    keys: int = 0
    """Different keys that went."""
    bytes: int = 0
    """Bytes that their blocks took in packs, all versions of them."""
    packs_rewritten: int = 0
    """Packs that held other blocks as well, which are in new packs now."""
    packs_deleted: int = 0
    generations_deleted: int = 0
    quarantine_files: int = 0
    aside_files: int = 0
    """Files that had been moved aside and may have held such blocks."""
    blocked: str = ""
    """Why bytes are still on disk; empty if none are. The keys are removed in any case."""


class Purge:
    """One purge of the keys that begin with `prefix`, of all with the empty one.

    First `remove`, which is durable; then `erase`, which may be done again and again.

    Crash argument: the removal is in the journal before anything else happens, so none of the
    blocks comes back whatever follows. What is live is copied and sealed, and committed, before a
    pack goes; generations go only after that commit was read back. A crash leaves bytes on disk
    that nobody serves, and the next purge finds them, because it looks for what is in packs, not
    for what is live.
    """

    def __init__(
        self,
        repository: Repository,
        prefix: bytes,
        rewrite: Rewrite,
        *,
        pin_seconds: float = 10.0,
        writing_seconds: float = 60.0,
    ) -> None:
        """`pin_seconds`: how long readers are waited for; `writing_seconds`: how long packs that
        were begun before the removal."""
        self._repository = repository
        self._prefix = prefix
        self._rewrite = rewrite
        self._pin_seconds = pin_seconds
        self._writing_seconds = writing_seconds
        self._hashes: set[int] = set()
        self._counted: set[int] = set()
        self.result = PurgeResult()

    def remove(self, rows_end: int) -> None:
        """Remove every version in the catalog's rows below `rows_end`, durably; what came later is
        not touched. With the empty prefix there is a shorter word for it: a new epoch.

        Raises DiskError: then a part may be done, and the rest is to be done again.
        """
        catalog = self._repository.catalog
        for pack in self._repository.packs():
            # Compaction may have moved some of them behind `rows_end` since.
            rows = catalog.newest_copies(np.arange(pack.rows.start, min(pack.rows.stop, rows_end)))
            blocks = catalog.take(rows)
            mask = blocks.keys.starts_with(self._prefix)
            # Of the others it is said already, and said again before who says it goes.
            mask &= ~np.isin(catalog.state_of(rows), (RowState.REMOVED, RowState.SUPERSEDED))
            if mask.any():
                self.note(blocks.key_hash[mask])
                self._repository.journal(Removals.of_blocks(blocks.take(np.flatnonzero(mask))))

    def note(self, hashes: U64) -> None:
        """Count the keys with these hashes among those that went."""
        self._hashes.update(hashes.tolist())
        self.result.keys = len(self._hashes)

    def erase(self) -> PurgeResult:
        """Delete what holds the bytes. Raises DiskError or CorruptError; then the keys are removed
        and the bytes are not all gone."""
        repository, result = self._repository, self.result
        quarantined = self._quarantined()
        late = self._wait_for(set(repository.writing()))
        for _ in range(_ROUNDS_MAX):
            targets = self._targets()
            if targets:
                self._empty(targets)
                repository.condemn([pack.sequence for pack in targets])
                repository.commit(prune=False)
            pruned = self._prune()
            result.generations_deleted += pruned.manifests
            left = {pack.sequence for pack in targets} & {
                one.sequence for one in repository.packs()
            }
            # By whom does not matter: the commit of another may have come first.
            result.packs_deleted += len(targets) - len(left)
            result.blocked = pruned.blocked or (
                f"{len(left)} packs hold blocks that could not be copied" if left else ""
            )
            if not targets or result.blocked:
                break
        result.quarantine_files += self._delete(QUARANTINE, quarantined)
        self._clear_aside()
        self._delete(PACKS, self._leftovers())
        if late and not result.blocked:
            result.blocked = f"{len(late)} packs that may hold such blocks are still being written"
        return result

    # --- inside -------------------------------------------------------------------------------

    def _wait_for(self, writing: set[int]) -> set[int]:
        """Packs that were begun before the removal may hold what it removes. Returns those that
        are not finished in time."""
        deadline = time.monotonic() + self._writing_seconds
        while writing and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
            writing &= set(self._repository.writing())
        return writing

    def _targets(self) -> list[PackInfo]:
        """Packs that hold dead versions of such keys. Live ones were put after the removal."""
        catalog = self._repository.catalog
        found = []
        for pack in self._repository.packs():
            rows = np.arange(pack.rows.start, pack.rows.stop)
            blocks = catalog.take(rows)
            mask = blocks.keys.starts_with(self._prefix) & ~catalog.is_live(rows)
            if not mask.any():
                continue
            found.append(pack)
            if pack.sequence not in self._counted:
                self._counted.add(pack.sequence)
                self.note(blocks.key_hash[mask])
                self.result.bytes += int(blocks.stored_size[mask].sum())
        return found

    def _empty(self, targets: list[PackInfo]) -> None:
        catalog = self._repository.catalog
        used = [pack.sequence for pack in targets if catalog.is_live(pack.rows).any()]
        if used:
            self._rewrite(used)
            self.result.packs_rewritten += len(used)

    def _prune(self) -> PruneResult:
        """Prune, and wait a while for readers. What cannot be read may hold anything, so it is
        moved aside first, where it is dealt with."""
        deadline = time.monotonic() + self._pin_seconds
        while True:
            pruned = self._repository.prune(move_unreadable=True)
            if pruned.blocked != PINNED or time.monotonic() >= deadline:
                return pruned
            time.sleep(_POLL_SECONDS)

    def _leftovers(self) -> list[str]:
        """What writers left unfinished that failed on a disk which refused the deletion, too."""
        names = [name for name in self._repository.disk.list(PACKS) if name.endswith(TEMPORARY)]
        # Asked for after the names: whoever writes one of them was there before, and still is.
        writing = set(self._repository.writing())
        found = ((name, parse_pack(name.removesuffix(TEMPORARY))) for name in names)
        return [name for name, pack in found if pack is None or pack[0] not in writing]

    def _quarantined(self) -> list[str]:
        """Copies of such blocks, and copies of which nobody knows what they are of."""
        packs = {pack.sequence: pack for pack in self._repository.packs()}
        found = []
        for name in self._repository.disk.list(QUARANTINE):
            match = _QUARANTINED.fullmatch(name)
            pack = packs.get(int(match[1])) if match else None
            if match is None or pack is None or self._holds(pack, int(match[2], 16)):
                found.append(name)
        return found

    def _holds(self, pack: PackInfo, offset: int) -> bool:
        """Whether such a block, or nothing that is known, is at this place in a pack."""
        catalog = self._repository.catalog
        at: I64 = np.flatnonzero(catalog.column("pack_offset", pack.rows) == np.uint64(offset))
        keys = catalog.take(at + pack.rows.start).keys
        mask: Bools = keys.starts_with(self._prefix)
        return not len(at) or bool(mask.any())

    def _clear_aside(self) -> None:
        """Delete what was moved aside and may hold such blocks: packs that have such a key, or that
        cannot be read. With the empty prefix, everything."""
        disk = self._repository.disk
        for aside in [name for name in disk.list("") if name.startswith(ASIDE)]:
            for directory in (aside, *(f"{aside}/{name}" for name in DIRECTORIES)):
                names = [
                    name
                    for name in self._listed(directory)
                    if name not in DIRECTORIES and self._may_hold(directory, name)
                ]
                self.result.aside_files += self._delete(directory, names)

    def _listed(self, directory: str) -> Sequence[str]:
        """Names in a directory; none if it is something else, which is not ours."""
        try:
            return self._repository.disk.list(directory)
        except DiskError as error:
            if error.errno not in {errno.ENOTDIR, errno.ELOOP}:
                raise
            return []

    def _may_hold(self, directory: str, name: str) -> bool:
        if self._prefix and (name.endswith(_WITHOUT_BLOCKS) or name == REPOSITORY_FILE):
            return False
        if not self._prefix or not name.endswith(".pack"):
            return True
        try:
            sealed, raw = read_index(
                self._repository.disk,
                f"{directory}/{name}",
                PACK_MAGIC,
                self._repository.repository_id,
            )
            keys = decode_pack_index(raw, sealed.trailer).blocks.keys
        except SnapdError:
            return True
        return bool(keys.starts_with(self._prefix).any())

    def _delete(self, directory: str, names: Sequence[str]) -> int:
        """Delete files; returns how many. One that is gone is gone, whoever did it. A directory is
        for people to look at."""
        disk = self._repository.disk
        deleted = 0
        for name in names:
            try:
                disk.remove(f"{directory}/{name}")
                deleted += 1
            except DiskError as error:
                if error.errno == errno.EISDIR:
                    self.result.blocked = f"{directory}/{name} is a directory: see what is in it"
                elif error.errno != errno.ENOENT:
                    raise
        if deleted:
            disk.sync_directory(directory)
        return deleted
