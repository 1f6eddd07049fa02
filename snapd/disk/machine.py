"""`Machine`: numbered operations, and what may go wrong with each. Under every simulated disk.

Each call on the disk is an operation: it has a number, a kind, a name and the step of the
repository's life that it belongs to. A test can stop the machine before or after any of them, make
any fail, and look at the disk at each (`watch`). Hangs and latency happen outside of the lock, so
that other threads go on, as they do beside a system call that does not return.
"""

from __future__ import annotations

import errno
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from snapd.errors import DiskError

Side = Literal["before", "after"]

CHANGES = frozenset({"create", "write", "rename", "remove", "mkdir"})
"""Kinds of operation that a read-only file system refuses."""

SYNCS = frozenset({"sync", "syncdir"})
"""Kinds that fail with EIO where the file system has turned read-only."""

_PARTIAL = frozenset({"write", "sync"})
"""Kinds that leave something behind when they fail: the file itself decides what."""

_HANG_POLL_SECONDS = 0.002


class SimulatedCrash(BaseException):
    """The machine stopped. Not an `Exception`: no handler of the code under test may catch it.

    Every later call raises it too, until `SimulatedDisk.crash` has brought the machine back.
    """


@dataclass(frozen=True, slots=True)
class Operation:
    """One call on the disk. `kind`: create, open, read, write, sync, size, rename, remove, mkdir,
    syncdir, list, lock, usage."""

    number: int
    kind: str
    name: str
    step: str = ""
    """What the repository was doing: see `Machine.step`."""


@dataclass(frozen=True, slots=True)
class Effect:
    """What happens to an operation beside, or in place of, what was asked for."""

    code: int = 0
    """It fails with this errno."""
    done: bool = False
    """It fails with `code`, although it was done (not for writes and syncs)."""
    latency_seconds: float = 0.0
    """It takes this long."""
    hang: threading.Event | None = None
    """It does not return before this is set, or the power goes."""
    short_bytes: int | None = None
    """The system call moves at most so many bytes and reports it, as it may."""
    misdirect: tuple[str, int] | None = None
    """The write lands in the file of this name, at this offset."""
    lie: bool = False
    """It reports success, and a write, a sync or a directory's sync does nothing."""
    flip_bit: int | None = None
    """This bit of what the read returns is wrong, this one time."""


Fault = Callable[[Operation], int | Effect]
"""Asked before each operation: 0 lets it run, an errno makes it fail."""

Watch = Callable[[Operation, Side], None]

_NOTHING = Effect()


class Machine:
    """Runs operations. `seed` decides whatever is left to chance."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.operations: list[Operation] = []
        """Every operation so far, in order; `operations[n].number` is n."""
        self.counts: Counter[str] = Counter()
        """Operations so far, by kind."""
        self.fault: Fault | None = None
        self.watch: Watch | None = None
        """Called before and after each operation, for a look at the disk (`SimulatedDisk.fork`)."""
        self.crash_before: int | None = None
        """Number of the operation before which the machine stops."""
        self.crash_after: int | None = None
        """Number of the operation after which it stops."""
        self.read_only_from: int | None = None
        """Number of the operation from which on the file system is read-only."""
        self.step_of: Callable[[], str] = self._innermost_step
        """Names the step of the operation that begins; by default the innermost `step`."""
        self._random = random.Random(seed)
        self._steps: list[str] = []
        self._down = False
        self._life = 0
        self._mutex = threading.RLock()

    # --- what a test asks for -----------------------------------------------------------------

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Operations inside belong to this step of the repository's life."""
        self._steps.append(name)
        try:
            yield
        finally:
            self._steps.pop()

    def fail(self, number: int, code: int | Effect = errno.EIO) -> None:
        """Make the operation of this number fail with an errno, or have an effect."""
        self.fault = lambda operation: code if operation.number == number else 0

    def fail_kind(self, kind: str, nth: int = 0, code: int | Effect = errno.EIO) -> None:
        """Make the nth operation of this kind from now on (0 is the next) fail with an errno, or
        have an effect."""
        target = self.counts[kind] + nth

        def fault(operation: Operation) -> int | Effect:
            hit = operation.kind == kind and self.counts[kind] - 1 == target
            return code if hit else 0

        self.fault = fault

    @property
    def is_read_only(self) -> bool:
        """Whether the file system has turned read-only."""
        start = self.read_only_from
        return start is not None and len(self.operations) > start

    # --- inside -------------------------------------------------------------------------------

    @contextmanager
    def _operation(self, kind: str, name: str) -> Iterator[tuple[Operation, Effect]]:
        """Number an operation and run it under the lock; raises what it should fail with."""
        with self._mutex:
            operation, effect, life = self._begin(kind, name)
        self._wait(effect, life)
        with self._mutex:
            self._check_life(life)
            try:
                if effect.code and not effect.done and kind not in _PARTIAL:
                    raise failure(operation, effect.code)
                yield operation, effect
                if effect.code and effect.done and kind not in _PARTIAL:
                    raise failure(operation, effect.code)
            finally:
                if self.watch is not None and not self._down:
                    self.watch(operation, "after")
                if self.crash_after == operation.number:
                    self._down = True
                    raise SimulatedCrash

    def _begin(self, kind: str, name: str) -> tuple[Operation, Effect, int]:
        if self._down:
            raise SimulatedCrash
        operation = Operation(len(self.operations), kind, name, self.step_of())
        if self.watch is not None:
            self.watch(operation, "before")
        if self.crash_before == operation.number:
            self._down = True
            raise SimulatedCrash
        self.operations.append(operation)
        self.counts[kind] += 1
        return operation, self._effect_on(operation), self._life

    def _effect_on(self, operation: Operation) -> Effect:
        if self.is_read_only:
            if operation.kind in CHANGES:
                return Effect(errno.EROFS)
            if operation.kind in SYNCS:
                return Effect(errno.EIO)
        found = self.fault(operation) if self.fault is not None else 0
        if isinstance(found, Effect):
            return found
        return Effect(found) if found else _NOTHING

    def _wait(self, effect: Effect, life: int) -> None:
        if effect.latency_seconds:
            time.sleep(effect.latency_seconds)
        if effect.hang is not None:
            while not effect.hang.wait(_HANG_POLL_SECONDS):
                self._check_life(life)

    def _check_life(self, life: int) -> None:
        if self._down or life != self._life:
            raise SimulatedCrash

    def _innermost_step(self) -> str:
        return self._steps[-1] if self._steps else ""

    def _restart(self) -> None:
        """The machine comes back: what was asked of it is forgotten."""
        self._down, self._life = False, self._life + 1
        self.fault = self.crash_before = self.crash_after = self.read_only_from = None


def failure(operation: Operation, code: int) -> DiskError:
    """The error of an operation that fails."""
    text = f"cannot {operation.kind} {operation.name}: {os.strerror(code)}"
    return DiskError(text, code)
