"""Files whose bytes changed at rest: every page of every file of a repository, one lie at a time.

The oracle: the repository starts, no wrong byte comes out, nothing removed or superseded comes
back, what is lost is counted, and `verify` has a finding, unless what changed means nothing.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from crash_explorer import Fault, begin, number_of, seeded_identifiers
from disk_trouble import check_after_lie
from repository_model import ModelledRepository, Trust

from snapd.disk.simulated import SimulatedDisk
from snapd.errors import SnapdError
from snapd.repository import Repository

PAGE = 4096

PAGE_LIES = ("flip", "flip-head", "flip-tail", "zeros", "other", "older", "swapped")
"""A bit of the page, of its first or last 64 bytes; zeros; a page of another file of its kind; the
same page of the file before it; the page that follows in its place, and it there."""

FILE_LIES = ("gone", "cut", "emptied")
"""The name is gone; the file ends at this page, or it has no bytes."""


@dataclass(frozen=True, slots=True)
class Lie:
    """One change at rest, after so many steps of a life. Files are numbered by name."""

    after: int
    what: str
    file: int
    page: int

    def __str__(self) -> str:
        return f"{self.what}:{self.after}:{self.file}:{self.page}"

    @classmethod
    def parse(cls, text: str) -> Lie:
        """The lie of this text. Raises ValueError."""
        what, after, file, page = text.split(":")
        return cls(int(after), what, int(file), int(page))


def lived(fault: Fault, steps: int) -> tuple[SimulatedDisk, ModelledRepository]:
    """A repository after so many steps of a life, closed."""
    with seeded_identifiers(f"life {fault.seed}"):
        disk, model = begin(fault)
        for step in fault.steps()[:steps]:
            step(model)
        model.close()
    return disk, model


def lies_about(disk: SimulatedDisk, after: int) -> Iterator[tuple[Lie, str]]:
    """Every lie about every file, and words for it without random names."""
    for number, (name, data) in enumerate(disk.files().items()):
        kind = name.partition("/")[0]
        pages = -(-len(data) // PAGE)
        for page in range(pages):
            for what in PAGE_LIES:
                place = Lie(after, what, number, page)
                yield place, f"{kind} {number}, page {page} of {pages}: {what}"
        for what in FILE_LIES if pages else ():
            for page in range(1, pages) if what == "cut" else (0,):
                yield Lie(after, what, number, page), f"{kind} {number}: {what} at {page}"


def tell(disk: SimulatedDisk, lie: Lie) -> bool:
    """Change the medium; whether anything is different now."""
    before = disk.medium_digest()
    names = list(disk.files())
    name = names[lie.file]
    if lie.what == "gone":
        disk.vanish(name)
        return True
    data = bytearray(disk.contents(name))
    chance = random.Random(number_of(str(lie)))
    start = lie.page * PAGE
    end = min(start + PAGE, len(data))
    peers = [one for one in names if one != name and one.split("/")[0] == name.split("/")[0]]
    if lie.what in {"cut", "emptied"}:
        del data[start if lie.what == "cut" else 0 :]
    elif lie.what == "zeros":
        data[start:end] = bytes(end - start)
    elif lie.what == "swapped":
        follows = bytes(data[end : end + PAGE])
        data[start : start + len(follows)], data[end : end + len(follows)] = (
            follows,
            bytes(data[start : start + len(follows)]),
        )
    elif lie.what in {"other", "older"}:
        if not peers:
            return False
        earlier = [one for one in peers if one < name] or peers
        peer = disk.contents(chance.choice(peers) if lie.what == "other" else earlier[-1])
        at = chance.randrange(max(1, len(peer) // PAGE)) * PAGE if lie.what == "other" else start
        data[start:end] = peer[at : at + end - start].ljust(end - start, b"\0")
    else:
        low, high = {
            "flip": (start, end),
            "flip-head": (start, min(start + 64, end)),
            "flip-tail": (max(start, end - 64), end),
        }[lie.what]
        data[chance.randrange(low, high)] ^= 1 << chance.randrange(8)
    disk.replace_contents(name, bytes(data))
    return disk.medium_digest() != before


def findings_of(disk: SimulatedDisk) -> list[str]:
    """What `verify --all` says about a disk: its findings, or why it cannot be read."""
    try:
        with Repository.open(disk, read_only=True) as repository:
            found = repository.verify(all_blocks=True).findings
            return [f"{finding.file}: {finding.problem}" for finding in found]
    except SnapdError as error:
        return [str(error)]


def check_lie(disk: SimulatedDisk, model: ModelledRepository, lie: Lie) -> bool:
    """Change a copy of the disk and hold it against the oracle; False if nothing changes.

    `verify` has a finding, or nothing is lost. Only a whole file that is gone, or a journal that
    was cut, may lose something without a trace: that is what a crash before it leaves, too.
    """
    liar = disk.clone(number_of(str(lie)))
    name = list(disk.files())[lie.file]
    if not tell(liar, lie):
        return False
    is_whole_file = lie.what in FILE_LIES
    before = model.copy(liar)
    before.trust = Trust.LOSSES
    if is_whole_file and name.startswith("journal/"):
        before.trust = Trust.NONE
    is_quiet = not findings_of(liar.clone(1))
    if is_quiet and not is_whole_file:
        assert contents_after(liar.clone(2), model) == contents_after(disk.clone(2), model), (
            "something is lost, and verify has no finding"
        )
    check_after_lie(liar, before, may_lose=is_whole_file)
    return True


def contents_after(disk: SimulatedDisk, before: ModelledRepository) -> dict[bytes, bytes]:
    """What a recovery finds and can read."""
    model = before.copy(disk)
    with seeded_identifiers("contents"):
        model.start()
        found, _ = model.readable()
        model.close()
    return found
