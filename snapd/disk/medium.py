"""What a simulated disk is made of: files and names, each as seen and as a crash leaves them."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

GRANULARITIES_BYTES = (512, 4096)
"""Pieces in which unsynced writes survive or not; one is drawn for each crash."""

_SHARES = (0.0, 0.1, 0.5, 0.9, 1.0)


@dataclass(frozen=True, slots=True)
class Loss:
    """How much of what was not synced survives a crash: shares from 0 (nothing) to 1 (all)."""

    names: float
    """Of the changes of names. Between 0 and 1, a rename may also survive by half: the file is
    then there under both names. Never under none."""
    data: float
    """Of the pieces of writes."""
    sizes: float
    """Of the growth of files. A file whose growth survives and whose data does not has zeros."""
    granularity_bytes: int = GRANULARITIES_BYTES[0]

    @classmethod
    def drawn(cls, chance: random.Random) -> Loss:
        """One by chance."""
        granularity = chance.choice(GRANULARITIES_BYTES)
        names, data = chance.choice(_SHARES), chance.choice(_SHARES)
        return cls(names, data, chance.choice((0.0, 0.5, 1.0)), granularity)


KEEPS_ALL = Loss(1.0, 1.0, 1.0)
LOSES_ALL = Loss(0.0, 0.0, 0.0)
KEEPS_NAMES = Loss(1.0, 0.0, 0.0)
KEEPS_NAMES_AND_SIZES = Loss(1.0, 0.0, 1.0)
KEEPS_DATA = Loss(0.0, 1.0, 1.0)


@dataclass(slots=True, eq=False)
class Inode:
    """A file's contents: as the page cache shows them, and as the medium holds them."""

    cached: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, bytes]] = field(default_factory=list)
    """Writes since the last sync."""
    doomed: list[tuple[int, bytes]] = field(default_factory=list)
    """Writes that a failed sync has dropped: on the medium by luck only."""

    def write(self, data: bytes, offset: int) -> None:
        """Into the page cache."""
        if data:
            _put(self.cached, data, offset)
            self.pending.append((offset, data))

    def sync(self) -> None:
        """The page cache reaches the medium."""
        for offset, data in self.pending:
            _put(self.durable, data, offset)
        self.pending.clear()

    def drop(self) -> None:
        """A sync failed: what it should have written is never tried again."""
        self.doomed += self.pending
        self.pending.clear()

    def replace(self, data: bytes) -> None:
        """Other bytes are on the medium."""
        self.cached, self.durable = bytearray(data), bytearray(data)
        self.pending.clear()
        self.doomed.clear()

    def copy(self) -> Inode:
        """Another file with the same past."""
        return Inode(
            bytearray(self.cached), bytearray(self.durable), [*self.pending], [*self.doomed]
        )

    def lose(self, loss: Loss, chance: random.Random) -> None:
        """Lose power: of what was not synced, what the loss leaves is there."""
        unsynced = self.doomed + self.pending
        if not unsynced:
            self.cached = bytearray(self.durable)
            return
        kept = bytearray(self.durable)
        longest = max(len(kept), *(at + len(data) for at, data in unsynced))
        for at, data in unsynced:
            for first, last in _pieces(at, at + len(data), loss.granularity_bytes):
                if chance.random() < loss.data:
                    _put(kept, data[first - at : last - at], first)
        synced = len(self.durable)
        if longest > synced:
            length = longest
            if chance.random() >= loss.sizes:
                shorter = (synced, len(kept), chance.randint(synced, longest))
                length = chance.choice(shorter) if loss.sizes else synced
            kept = kept[:length].ljust(length, b"\0")
        self.replace(bytes(kept))


DIRECTORY = Inode()
"""Stands for every directory in the table of names."""


@dataclass(slots=True, eq=False)
class NameChange:
    """A change of names that is not durable until every directory in `unsynced` was synced."""

    unlinked: str | None
    linked: str | None
    inode: Inode
    unsynced: set[str]

    def apply(self, names: dict[str, Inode], *, by_half: bool = False) -> None:
        """Make the change; `by_half` leaves the old name of a rename there."""
        if not by_half and self.unlinked is not None and names.get(self.unlinked) is self.inode:
            del names[self.unlinked]
        if self.linked is not None:
            names[self.linked] = self.inode

    def survive(self, names: dict[str, Inode], loss: Loss, chance: random.Random) -> None:
        """Be there after a crash, or not, or by half."""
        if not self.unsynced or chance.random() < loss.names:
            self.apply(names)
        elif None not in {self.unlinked, self.linked} and chance.random() < loss.names / 2:
            self.apply(names, by_half=True)


class NameTable:
    """Names and what they stand for: as seen, and as the medium has them."""

    def __init__(self) -> None:
        self.seen: dict[str, Inode] = {}
        self._durable: dict[str, Inode] = {}
        self._changes: list[NameChange] = []

    def change(self, unlinked: str | None, linked: str | None, inode: Inode) -> None:
        """Link, unlink or rename a file."""
        parents = {path.rpartition("/")[0] for path in (unlinked, linked) if path is not None}
        change = NameChange(unlinked, linked, inode, parents)
        change.apply(self.seen)
        self._changes.append(change)

    def sync(self, directory: str) -> None:
        """The names in a directory become durable."""
        for change in self._changes:
            change.unsynced.discard(directory)
        # Only a prefix can be folded in: a later change may overwrite an earlier doubtful one.
        while self._changes and not self._changes[0].unsynced:
            self._changes.pop(0).apply(self._durable)

    def settle(self) -> None:
        """Everything that is seen is durable."""
        self._durable = dict(self.seen)
        self._changes.clear()

    def lose(self, loss: Loss, chance: random.Random) -> None:
        """Lose power; also what the names stand for loses what was not synced."""
        names = dict(self._durable)
        for change in self._changes:
            change.survive(names, loss, chance)
        self.seen = {path: inode for path, inode in names.items() if _parents_exist(path, names)}
        self.settle()
        for inode in self.files():
            inode.lose(loss, chance)

    def files(self) -> list[Inode]:
        """Every file once."""
        found = {id(one): one for one in self.seen.values() if one is not DIRECTORY}
        return list(found.values())

    def copy(self) -> NameTable:
        """Another table with the same past, over copies of the files."""
        other = NameTable()
        held = [*self.seen.values(), *self._durable.values(), *(c.inode for c in self._changes)]
        copies = {id(DIRECTORY): DIRECTORY}
        for inode in held:
            if id(inode) not in copies:
                copies[id(inode)] = inode.copy()
        other.seen = {path: copies[id(inode)] for path, inode in self.seen.items()}
        other._durable = {path: copies[id(inode)] for path, inode in self._durable.items()}
        other._changes = [
            NameChange(c.unlinked, c.linked, copies[id(c.inode)], set(c.unsynced))
            for c in self._changes
        ]
        return other


def _pieces(start: int, end: int, granularity: int) -> list[tuple[int, int]]:
    """The pieces of [start, end) between multiples of the granularity."""
    cuts = range((start // granularity + 1) * granularity, end, granularity)
    edges = [start, *cuts, end]
    return list(zip(edges[:-1], edges[1:], strict=True))


def _put(target: bytearray, data: bytes, offset: int) -> None:
    """Store `data` at `offset`, filling a gap before it with zeros."""
    if len(target) < offset:
        target.extend(bytes(offset - len(target)))
    target[offset : offset + len(data)] = data


def _parents_exist(path: str, names: dict[str, Inode]) -> bool:
    parent = path.rpartition("/")[0]
    return not parent or (names.get(parent) is DIRECTORY and _parents_exist(parent, names))
