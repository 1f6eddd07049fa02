"""A life in which one operation on the disk fails, is cut short, hangs or lies, and what follows.

After a failure the life goes on with its next step, or restarts first, as a daemon may. At its end
the power goes as well. A failed call leaves what it was about to do undecided; everything else must
be as if it had never been made.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from crash_explorer import Fault, begin, check_after, number_of, seeded_identifiers
from repository_lives import Step, remove_all, start
from repository_model import ModelledRepository, Trust

from snapd.disk.simulated import Effect, Loss, Operation, SimulatedDisk
from snapd.errors import SnapdError

_RESTARTS_MAX = 3

ERRORS = {
    "open": ("EIO", "EMFILE"),
    "create": ("EIO", "EMFILE", "ENOSPC", "EDQUOT", "EIO-done"),
    "read": ("EIO", "short"),
    "write": ("EIO", "ENOSPC", "EDQUOT", "short"),
    "sync": ("EIO", "ENOSPC", "EDQUOT"),
    "size": ("EIO",),
    "rename": ("EIO", "EMFILE", "ENOSPC", "EIO-done"),
    "remove": ("EIO", "EMFILE", "EIO-done"),
    "mkdir": ("EIO", "EMFILE", "ENOSPC", "EDQUOT", "EIO-done"),
    "syncdir": ("EIO", "EMFILE", "EIO-done"),
    "list": ("EIO", "EMFILE"),
    "lock": ("EIO", "EMFILE"),
    "usage": ("EIO",),
}
"""What may go wrong with each kind of operation, once."""

CHANGING = frozenset({"create", "write", "sync", "rename", "remove", "mkdir", "syncdir"})
"""Kinds from which on a file system may be read-only."""

LIES = {
    "read": ("flip",),
    "write": ("lost", "misdirected-here", "misdirected-there"),
    "sync": ("lied",),
    "syncdir": ("lied",),
}
"""What an operation may do while it reports success."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """What is wrong with one operation, and what a failed call is followed by."""

    number: int
    what: str
    then: str
    """`on`: the next step; `restart`: a restart."""

    def __str__(self) -> str:
        return f"{self.number}:{self.what}:{self.then}"

    @classmethod
    def parse(cls, text: str) -> Trouble:
        """The trouble of this text. Raises ValueError."""
        number, what, then = text.split(":")
        return cls(int(number), what, then)

    @property
    def is_lie(self) -> bool:
        """Whether the operation reports success."""
        return any(self.what in whats for whats in LIES.values())


def operations_of(fault: Fault) -> list[Operation]:
    """The operations of a life in which nothing goes wrong."""
    with seeded_identifiers(f"life {fault.seed}"):
        disk, model = begin(fault)
        for step in fault.steps():
            step(model)
        model.close()
        return disk.operations


def troubles_of(operation: Operation, kinds: dict[str, tuple[str, ...]]) -> list[Trouble]:
    """All that is to be tried with an operation."""
    whats = [*kinds.get(operation.kind, ())]
    if kinds is ERRORS and operation.kind in CHANGING:
        whats.append("read-only")
    # What follows a failure alternates: with all of both, half of the cases would differ in little.
    followed = ("on", "restart")
    return [
        Trouble(operation.number, what, followed[(operation.number + at) % 2])
        for at, what in enumerate(whats)
    ]


def live_with(fault: Fault, trouble: Trouble) -> None:
    """Live, fail, go on, lose power, recover, and apply the oracle. Raises AssertionError."""
    with seeded_identifiers(f"life {fault.seed}"):
        disk, model = begin(fault)
        _ask_for(disk, model, trouble)
        _live(model, fault.steps(), trouble)
        model.close()
    assert disk.open_files == 0, "a file was left open"
    disk.fault = None
    disk.crash(Loss.drawn(random.Random(number_of(f"{fault.seed} {trouble}"))))
    if trouble.is_lie:
        check_after_lie(disk, model)
    else:
        check_after(disk, model)


def check_after_lie(
    disk: SimulatedDisk, before: ModelledRepository, *, may_lose: bool = False
) -> None:
    """The oracle after bytes changed: no wrong byte, nothing removed back, losses counted unless it
    `may_lose` without a trace, and the repository works."""
    model = before.copy(disk)
    with seeded_identifiers("after"):
        recovery = model.start()
        counted = bool(
            recovery.blocks_lost
            or recovery.unreadable_packs
            or recovery.unreadable_manifests
            or recovery.journal_findings
            or recovery.moved_aside
        )
        found, bad = model.readable()
        missing = {
            key for key in model.certain if key not in found and None not in model.allowed(key)
        }
        if model.trust is Trust.LOSSES and not (counted or bad or may_lose):
            assert not missing, f"{missing} are lost, and nobody counted them"
        model.check()
        model.put({b"after": b"the lie"})
        model.remove([b"e"])
        model.commit()
        model.close()
        model.start()
        model.check()
        assert model.certain[b"after"] == b"the lie"
        assert b"e" not in model.certain
        model.close()


def trust_after(operation: str, effect: Effect) -> Trust:
    """What a disk is still good for when an operation on this file had this effect."""
    if not (effect.lie or effect.misdirect or effect.flip_bit is not None):
        return Trust.FULL
    touched = [operation, effect.misdirect[0] if effect.misdirect else ""]
    # A journal is not read back, and a sync that lies cannot be caught: removals may be lost there.
    is_caught = not any(name.startswith("journal/") for name in touched)
    return Trust.LOSSES if effect.flip_bit is not None or is_caught else Trust.NONE


def _ask_for(disk: SimulatedDisk, model: ModelledRepository, trouble: Trouble) -> None:
    if trouble.what == "read-only":
        disk.read_only_from = trouble.number
        return

    def fault(operation: Operation) -> int | Effect:
        if operation.number != trouble.number:
            return 0
        effect = effect_of(disk, operation, trouble.what)
        is_synced = operation.kind not in {"sync", "syncdir"}
        model.trust = (
            trust_after(operation.name, effect) if is_synced or effect.code else Trust.NONE
        )
        return effect

    disk.fault = fault


def effect_of(disk: SimulatedDisk, operation: Operation, what: str) -> Effect:
    """The effect of this name on an operation. Raises ValueError if there is none."""
    chance = random.Random(operation.number)
    if what == "short":
        # Direct transfers stop at whole sectors; 512 of a page is what a bad sector leaves.
        return Effect(short_bytes=chance.choice((512, 4096, 4608)))
    if what == "flip":
        return Effect(flip_bit=chance.getrandbits(24))
    if what in {"lost", "lied"}:
        return Effect(lie=True)
    if what == "misdirected-here":
        return Effect(misdirect=(operation.name, 4096 * chance.randint(1, 3)))
    if what == "misdirected-there":
        others = [name for name in disk.files() if name != operation.name and "/" in name]
        target = chance.choice(others) if others else operation.name
        return Effect(misdirect=(target, 4096 * chance.randint(0, 2)))
    code = getattr(errno, what.removesuffix("-done"), None)
    if not isinstance(code, int):
        raise ValueError(f"{what!r} is nothing that can happen")
    return Effect(code, done=what.endswith("-done"))


def _live(model: ModelledRepository, steps: Sequence[Step], trouble: Trouble) -> None:
    """Every step; what fails is followed by what `trouble` says. A file system that has turned
    read-only ends the life: an operator has to look."""
    for step in steps:
        try:
            step(model)
        except SnapdError:
            if trouble.what == "read-only":
                return
            restarts = trouble.then == "restart" or model.repository is None
            _recover(model, [start] if restarts else [])
        if model.epoch_wanted != model.epoch:
            # The store has begun the epoch, so the daemon asks for it until it is durable.
            _recover(model, [remove_all])


def _recover(model: ModelledRepository, steps: Iterable[Step]) -> None:
    """Make calls until they succeed. Raises AssertionError if they never do."""
    for step in steps:
        for _ in range(_RESTARTS_MAX):
            try:
                step(model)
                break
            except SnapdError as error:
                last = error
        else:
            raise AssertionError(f"it fails again and again: {last}") from last
