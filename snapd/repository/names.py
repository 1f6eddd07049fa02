"""Names of the files in a repository."""

from __future__ import annotations

import re
from collections.abc import Collection

from snapd.errors import DiskError

REPOSITORY_FILE = "repository.json"
LOCK_FILE = "lock"
PINS_FILE = "pins"
"""Readers hold it shared while they rely on packs; whoever prunes holds it alone."""
PACKS, MANIFESTS, JOURNAL, QUARANTINE = "packs", "manifests", "journal", "quarantine"
DIRECTORIES = (PACKS, MANIFESTS, JOURNAL, QUARANTINE)
BALLAST_FILE = f"{JOURNAL}/ballast"
"""Room that the journal has for itself; see `snapd.repository.ballast`."""
RESTORE_FILE = "restoring"
"""There from the first step of a restore to its last: until then nobody uses what is here."""
TEMPORARY = ".tmp"
"""End of the names of files that are still being written."""
ASIDE = "aside-"
"""Start of the names of directories that hold what recovery could not use."""

PACK_SEQUENCE_MAX = 2**32 - 2
SEQUENCE_MAX = 10**10 - 1

# ASCII: other scripts have digits too, and a name must not stand for a number a second time.
_PACK = re.compile(r"(\d{10})-([0-9a-f]{32})\.pack", re.ASCII)
_MANIFEST = re.compile(r"(\d{10})\.manifest", re.ASCII)
_JOURNAL = re.compile(r"(\d{10})\.journal", re.ASCII)


def pack_name(sequence: int, pack_id: bytes) -> str:
    """Where a pack lives."""
    return f"{PACKS}/{sequence:010d}-{pack_id.hex()}.pack"


def manifest_name(generation: int) -> str:
    """Where a manifest lives."""
    return f"{MANIFESTS}/{generation:010d}.manifest"


def journal_name(sequence: int) -> str:
    """Where a journal file lives."""
    return f"{JOURNAL}/{sequence:010d}.journal"


def next_number(last: int, taken: Collection[int], number_max: int) -> int:
    """The number of the next file, behind `last` and not among `taken`: those in names whose files
    do not say the same of themselves. Such a name is no proof, so it uses up only itself.

    Raises DiskError when numbers are used up.
    """
    number = last + 1
    while number in taken:
        number += 1
    if number > number_max:
        raise DiskError(f"file numbers are used up at {last}: move the repository aside")
    return number


def parse_pack(name: str) -> tuple[int, bytes] | None:
    """Sequence and id in a name within `packs`; None if it is not a pack's."""
    match = _PACK.fullmatch(name)
    if match is None or not 1 <= int(match[1]) <= PACK_SEQUENCE_MAX:
        return None
    return int(match[1]), bytes.fromhex(match[2])


def parse_manifest(name: str) -> int | None:
    """Generation in a name within `manifests`; None if it is not a manifest's."""
    match = _MANIFEST.fullmatch(name)
    return int(match[1]) if match else None


def parse_journal(name: str) -> int | None:
    """Sequence in a name within `journal`; None if it is not a journal's."""
    match = _JOURNAL.fullmatch(name)
    return int(match[1]) if match else None
