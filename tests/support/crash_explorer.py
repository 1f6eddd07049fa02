"""Every ending of a life: a crash before and after each operation, each loss, each second crash.

A life is lived once. At each operation the disk is forked and crashed there, in each way in which
unsynced data may be lost; the fork is recovered and held against the oracle. While it recovers, it
is forked and crashed again in the same manner. A medium and a state of the model that were tried
already are not tried again, so that cases are distinct.

Every failure names its case as a `Fault`, whose text is the argument of `--fault`.
"""

from __future__ import annotations

import random
import re
import secrets
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from unittest.mock import patch

from fault_ledger import FaultClass, case
from repository_lives import LIVES, Step, blocks, random_life
from repository_model import ModelledRepository

from snapd.disk.simulated import (
    KEEPS_ALL,
    KEEPS_DATA,
    KEEPS_NAMES,
    KEEPS_NAMES_AND_SIZES,
    LOSES_ALL,
    Loss,
    Operation,
    Side,
    SimulatedDisk,
)

LOSSES: dict[str, Loss] = {
    "kept": KEEPS_ALL,
    "lost": LOSES_ALL,
    "names": KEEPS_NAMES,
    "sizes": KEEPS_NAMES_AND_SIZES,
    "data": KEEPS_DATA,
}
DRAWN_PER_CRASH = 3
"""Losses by chance that are tried at each crash, beside those above."""

_STEP_OF_FUNCTION = {"Pruner.prune": "retention", "copy_to_quarantine": "quarantine"}
"""Steps that happen inside of others, by the function whose frame they run in."""

_IDENTIFIER = re.compile(r"\d{10}(-[0-9a-f]{32})?")


@dataclass(frozen=True, slots=True)
class Crash:
    """A crash at one operation, and what it lost."""

    number: int
    side: Side
    loss: str

    def __str__(self) -> str:
        return f"{self.side}:{self.number}:{self.loss}"

    @classmethod
    def parse(cls, text: str) -> Crash:
        """The crash of this text. Raises ValueError."""
        side, number, loss = text.split(":")
        if side not in {"before", "after"}:
            raise ValueError(f"{text!r} is neither before nor after an operation")
        return cls(int(number), "before" if side == "before" else "after", loss)


@dataclass(frozen=True, slots=True)
class Fault:
    """One case of one life, with all that repeats it."""

    life: str
    retain: int = 2
    seed: int = 1
    crash: Crash | None = None
    again: Crash | None = None
    fail: str = ""
    lie: str = ""

    def __str__(self) -> str:
        parts = [f"life={self.life}", f"retain={self.retain}", f"seed={self.seed}"]
        for name in ("crash", "again", "fail", "lie"):
            value = getattr(self, name)
            if value:
                parts.append(f"{name}={value}")
        return " ".join(parts)

    @classmethod
    def parse(cls, text: str) -> Fault:
        """The fault of this text. Raises ValueError or KeyError."""
        found = dict(part.split("=", 1) for part in text.split())
        return cls(
            life=found["life"],
            retain=int(found.get("retain", 2)),
            seed=int(found.get("seed", 1)),
            crash=Crash.parse(found["crash"]) if "crash" in found else None,
            again=Crash.parse(found["again"]) if "again" in found else None,
            fail=found.get("fail", ""),
            lie=found.get("lie", ""),
        )

    @property
    def command(self) -> str:
        """What repeats exactly this."""
        return f"./check -- tests/crash/test_simulated_faults.py --fault '{self}'"

    def steps(self) -> list[Step]:
        """The life: a scripted one, or `random-<steps>-<keys>`, which depends on the seed."""
        if self.life in LIVES:
            return LIVES[self.life]()
        _, steps, keys = self.life.split("-")
        return random_life(self.seed, steps=int(steps), keys=int(keys))


class FaultError(AssertionError):
    """The oracle was violated; says by which fault, and how to repeat it."""

    def __init__(self, fault: Fault, what: str, problem: BaseException) -> None:
        text = f"{type(problem).__name__}: {problem}"
        super().__init__(f"{what}\n{text}\nseed {fault.seed}; repeat: {fault.command}")


@contextmanager
def told(fault: Fault, kind: FaultClass, name: str) -> Iterator[None]:
    """One case of the ledger, whose failure says how to repeat it."""
    with case(kind, name):
        try:
            yield
        except FaultError:
            raise
        except Exception as error:
            raise FaultError(fault, name, error) from error


@contextmanager
def seeded_identifiers(text: str) -> Iterator[None]:
    """Random ids of files are the same in each run."""
    with patch.object(secrets, "token_bytes", random.Random(text).randbytes):
        yield


def number_of(text: str) -> int:
    """A number that follows from a text, for seeds and samples."""
    return zlib.crc32(text.encode())


def loss_of(name: str) -> Loss:
    """The loss of this name; `drawn-<n>` is one by chance."""
    return LOSSES.get(name) or Loss.drawn(random.Random(name))


def label_steps(disk: SimulatedDisk) -> None:
    """Tell steps apart that happen inside of others."""
    outer = disk.step_of

    def innermost() -> str:
        frame = sys._getframe(1)
        while frame.f_back is not None:
            found = _STEP_OF_FUNCTION.get(frame.f_code.co_qualname)
            if found is not None:
                return found
            frame = frame.f_back
        return outer()

    disk.step_of = innermost


def words_of(operation: Operation) -> str:
    """An operation without what is random in it: step, kind and kind of file."""
    name = _IDENTIFIER.sub("*", operation.name)
    return f"{operation.step}/{operation.kind} {name}".strip()


def begin(fault: Fault) -> tuple[SimulatedDisk, ModelledRepository]:
    """An empty disk for a life, and its model."""
    disk = SimulatedDisk(fault.seed)
    label_steps(disk)
    return disk, ModelledRepository(disk, retain=fault.retain)


@dataclass(slots=True)
class Tally:
    """What was tried."""

    once: int = 0
    twice: int = 0
    points: set[tuple[int, Side]] = field(default_factory=set)
    steps: set[str] = field(default_factory=set)


class CrashExplorer:
    """Lives one life and tries its endings. `wanted` says by its name whether a case is tried, and
    `wanted_again` with a second crash; without `checks_first` only those are."""

    def __init__(
        self,
        fault: Fault,
        *,
        wanted: Callable[[str], bool] = lambda name: True,
        wanted_again: Callable[[str], bool] | None = None,
        checks_first: bool = True,
    ) -> None:
        self.fault = fault
        self.tally = Tally()
        self._wanted = wanted
        self._wanted_again = wanted_again
        self._checks_first = checks_first
        self._tried: set[bytes] = set()
        self._tried_again: set[bytes] = set()
        self._last: tuple[int, bytes] | None = None

    def run(self) -> Tally:
        """All of it. Raises FaultError at the first violation."""
        with seeded_identifiers(f"life {self.fault.seed}"):
            disk, model = begin(self.fault)

            def look(operation: Operation, side: Side) -> None:
                self.tally.steps.add(operation.step)
                self._try(disk, model, operation, side)

            disk.watch = look
            for step in self.fault.steps():
                step(model)
            model.close()
        return self.tally

    # --- the first crash ----------------------------------------------------------------------

    def _try(
        self, disk: SimulatedDisk, model: ModelledRepository, operation: Operation, side: Side
    ) -> None:
        """Crash here, in every way that was asked for."""
        only = self.fault.crash
        if only is not None and (only.number, only.side) != (operation.number, side):
            return
        drawn = [f"drawn-{one}" for one in range(DRAWN_PER_CRASH)]
        for loss in [only.loss] if only is not None else [*LOSSES, *drawn]:
            crash = Crash(operation.number, side, loss)
            name = f"{self.fault.life} {self.fault.retain}: {words_of(operation)}/{crash}"
            if only is None and not self._wanted(name):
                continue
            crashed = crashed_fork(disk, self.fault, crash)
            mark = crashed.medium_digest() + model.digest()
            if mark in self._tried:
                continue
            self._tried.add(mark)
            self.tally.points.add((operation.number, side))
            fault = replace(self.fault, crash=crash)
            if fault.again is None and self._checks_first:
                self.tally.once += 1
                with told(fault, FaultClass.POWER_CUT, name):
                    check_after(crashed.fork(1), model)
            if fault.again is not None or self._wanted_again is not None:
                self._try_again(crashed, model, fault, name)

    # --- the second ---------------------------------------------------------------------------

    def _try_again(
        self, crashed: SimulatedDisk, model: ModelledRepository, fault: Fault, first: str
    ) -> None:
        """Crash again at each operation of the recovery."""
        disk = crashed.fork(2)
        again = model.copy(disk)
        changes = -1

        def look(operation: Operation, side: Side) -> None:
            nonlocal changes
            made = sum(disk.counts[kind] for kind in _CHANGING)
            if fault.again is None and (side == "before" or made == changes):
                return  # what is on the medium was there at an operation before
            changes = made
            for crash in self._again(fault, operation, side):
                name = f"{first}, then {words_of(operation)}/{crash}"
                self._crash_again(disk, again, replace(fault, again=crash), name)

        disk.watch = look
        with seeded_identifiers("second life"), told(fault, FaultClass.POWER_CUT, first):
            again.start()
            again.check()
        disk.watch = None
        again.close()

    def _again(self, fault: Fault, operation: Operation, side: Side) -> Iterator[Crash]:
        """The second crashes to try at an operation."""
        only = fault.again
        if only is None:
            yield from (Crash(operation.number, side, loss) for loss in _LOSSES_AGAIN)
        elif (only.number, only.side) == (operation.number, side):
            yield only

    def _crash_again(
        self, disk: SimulatedDisk, model: ModelledRepository, fault: Fault, name: str
    ) -> None:
        assert fault.again is not None
        is_asked_for = self.fault.again is not None
        if not is_asked_for and self._wanted_again is not None and not self._wanted_again(name):
            return
        crashed = crashed_fork(disk, fault, fault.again)
        mark = crashed.medium_digest() + model.digest()
        if mark in self._tried_again:
            return
        self._tried_again.add(mark)
        self.tally.twice += 1
        with told(fault, FaultClass.POWER_CUT_TWICE, name):
            check_after(crashed, model)


_LOSSES_AGAIN = ("kept", "lost", "sizes", "drawn-0")
_CHANGING = ("create", "write", "sync", "rename", "remove", "mkdir", "syncdir", "lock")


def crashed_fork(disk: SimulatedDisk, fault: Fault, crash: Crash) -> SimulatedDisk:
    """What is left of a disk when the power goes here."""
    fork = disk.fork(number_of(f"{fault.seed} {crash}"))
    fork.crash(loss_of(crash.loss))
    label_steps(fork)
    return fork


def check_after(disk: SimulatedDisk, before: ModelledRepository) -> None:
    """Recover what a power cut left, apply the oracle, work on, and rebuild."""
    model = before.copy(disk)
    with seeded_identifiers("after"):
        recovery = model.start()
        assert recovery.blocks_lost == 0
        assert not model.news(recovery.unreadable_manifests)
        assert not recovery.unreadable_packs
        assert not recovery.journal_findings
        assert not model.news(recovery.moved_aside)
        model.check()
        for generation in model.open.generations():
            # Not only the newest: each one is whole, or falling back to it would fail.
            found = model.verify(generation.generation)
            assert found == [], f"generation {generation.generation}"
        work_on(model)


def work_on(model: ModelledRepository) -> None:
    """The repository works: it takes blocks and removals, commits, restarts, and rebuilds."""
    known = sorted(model.certain)[:2]
    model.put(blocks(model, "a", "new"))
    model.remove([b"e", *known[:1]])
    model.commit()
    model.check()
    model.close()
    model.start()
    model.check()
    assert model.verify(all_blocks=True) == []
    model.rebuild()
    model.commit()
    model.check()
    model.close()
    assert isinstance(model.disk, SimulatedDisk)
    assert model.disk.open_files == 0, "a file was left open"
    assert not [name for name in model.disk.files() if name.endswith(".tmp")]
