"""Everything that a disk can do to a repository, at every operation of its life.

Power cuts before and after each operation, with every loss; second ones during the recovery from
the first; operations that fail, stop short, hang or lie; and bytes that change at rest. The small
scripted lives are exhausted with `--long`, large random ones are sampled; the fast run takes a
fixed sample. A failure prints its seed and the command that repeats it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import crash_explorer
import numpy as np
import pytest
from crash_explorer import (
    CrashExplorer,
    Fault,
    begin,
    number_of,
    seeded_identifiers,
    told,
    words_of,
)
from disk_lies import Lie, check_lie, lies_about, lived
from disk_trouble import ERRORS, LIES, Trouble, live_with, operations_of, troubles_of
from fault_ledger import VARIABLE, FaultClass
from repository_kit import blank
from repository_lives import LIVES
from repository_model import ModelledRepository

from snapd.disk.simulated import Effect, Operation, SimulatedDisk

RETAINED = (1, 2, 3)
Sampled = Callable[[str], bool]


def one_in(share: int) -> Sampled:
    """A fixed sample of cases by name."""
    return lambda name: number_of(name) % share == 0


def lives(fast: int, long: int) -> list[object]:
    """One in `fast` cases of each life in the fast run, and one in `long` with --long."""
    quick = [pytest.param(life, 2, fast, id=f"{life}-2") for life in LIVES]
    thorough = [
        pytest.param(life, retain, long, id=f"{life}-{retain}-long", marks=pytest.mark.long)
        for life in LIVES
        for retain in RETAINED
    ]
    return [*quick, *thorough]


# --- power cuts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("life", "retain", "share"), lives(fast=300, long=1))
def test_power_cut_at_every_operation(life: str, retain: int, share: int) -> None:
    tally = CrashExplorer(Fault(life, retain), wanted=one_in(share)).run()
    assert tally.once > 0


@pytest.mark.parametrize(("life", "retain", "share"), lives(fast=100, long=2))
def test_second_power_cut_during_the_recovery(life: str, retain: int, share: int) -> None:
    explorer = CrashExplorer(
        Fault(life, retain),
        wanted=one_in(share),
        wanted_again=one_in(share),
        checks_first=False,
    )
    assert explorer.run().twice > 0


@pytest.mark.parametrize(
    ("seed", "share"),
    [(1, 2000), *(pytest.param(seed, 40, marks=pytest.mark.long) for seed in range(2, 14))],
)
def test_power_cuts_in_large_random_lives(seed: int, share: int) -> None:
    """Hundreds of keys, dozens of packs."""
    fault = Fault("random-40-300", retain=1 + seed % 3, seed=seed)
    explorer = CrashExplorer(fault, wanted=one_in(share), wanted_again=one_in(4 * share))
    assert explorer.run().once > 0


def test_the_lives_reach_every_step() -> None:
    steps = {one.step for life in LIVES for one in operations_of(Fault(life))}
    assert steps >= {
        "first start",
        "attach",
        "flush",
        "removal",
        "snapshot",
        "retention",
        "compaction",
        "recovery",
        "rebuild",
        "quarantine",
        "restore",
    }


# --- operations that fail or lie ------------------------------------------------------------------


def trouble_everywhere(
    life: str, retain: int, share: int, kinds: dict[str, tuple[str, ...]], fault_class: FaultClass
) -> None:
    fault = Fault(life, retain)
    tried = 0
    for operation in operations_of(fault):
        for trouble in troubles_of(operation, kinds):
            name = f"{life} {retain}: {words_of(operation)}/{trouble}"
            if number_of(name) % share:
                continue
            tried += 1
            with told(Fault(life, retain, fail=str(trouble)), fault_class, name):
                live_with(fault, trouble)
    assert tried > 0


@pytest.mark.parametrize(("life", "retain", "share"), lives(fast=400, long=4))
def test_any_operation_may_fail(life: str, retain: int, share: int) -> None:
    trouble_everywhere(life, retain, share, ERRORS, FaultClass.DISK_REFUSES)


@pytest.mark.parametrize(("life", "retain", "share"), lives(fast=40, long=1))
def test_any_operation_may_lie(life: str, retain: int, share: int) -> None:
    trouble_everywhere(life, retain, share, LIES, FaultClass.DISK_LIES)


@pytest.mark.parametrize(("life", "retain", "share"), lives(fast=30, long=2))
def test_bytes_change_at_rest(life: str, retain: int, share: int) -> None:
    fault = Fault(life, retain)
    tried = 0
    total = len(fault.steps())
    for steps in (total // 2, total):
        disk, model = lived(fault, steps)
        for lie, words in lies_about(disk, steps):
            name = f"{life} {retain}, after {steps} steps: {words}"
            if number_of(name) % share:
                continue
            with told(Fault(life, retain, lie=str(lie)), FaultClass.DISK_LIES, name):
                tried += check_lie(disk, model, lie)
    assert tried > 0


def test_bytes_change_at_rest_on_the_smallest_repository() -> None:
    """One pack, one manifest, one journal file: every lie about every page."""
    fault = Fault("journaled")
    disk, model = lived(fault, 5)
    assert {name.partition("/")[0] for name in disk.files()} >= {"packs", "manifests", "journal"}
    for lie, words in lies_about(disk, 5):
        name = f"journaled 2, after 5 steps: {words}"
        with told(Fault("journaled", lie=str(lie)), FaultClass.DISK_LIES, name):
            check_lie(disk, model, lie)


@pytest.mark.parametrize(
    ("share", "kinds"),
    [
        (30, ("write", "sync", "syncdir", "rename")),
        pytest.param(1, ("write", "sync", "syncdir", "rename"), marks=pytest.mark.long),
    ],
)
def test_a_hanging_operation_holds_up_no_reader(share: int, kinds: tuple[str, ...]) -> None:
    fault = Fault("everyday")
    for operation in operations_of(fault):
        name = f"everyday 2: {words_of(operation)}/{operation.number}:hang"
        if operation.kind not in kinds or operation.step not in {"flush", "removal", "snapshot"}:
            continue
        if number_of(name) % share == 0:
            with told(
                Fault("everyday", fail=f"{operation.number}:hang:on"), FaultClass.DISK_REFUSES, name
            ):
                live_through_a_hang(fault, operation.number)


def live_through_a_hang(fault: Fault, number: int) -> None:
    """One operation hangs; blocks are read meanwhile; it returns, and all is as it should be."""
    disk, model = begin(fault)
    hangs, released = threading.Event(), threading.Event()

    def hang(operation: Operation) -> int | Effect:
        if operation.number != number:
            return 0
        hangs.set()
        return Effect(hang=released)

    disk.fault = hang
    ended: list[BaseException | None] = []
    worker = threading.Thread(target=lambda: ended.append(outcome_of(fault, model)))
    worker.start()
    try:
        assert hangs.wait(30)
        reader = threading.Thread(target=read_one, args=(model,), daemon=True)
        reader.start()
        reader.join(10)
        assert not reader.is_alive(), "a reader waits for a disk operation that hangs"
    finally:
        released.set()
        worker.join(30)
    assert ended == [None]
    disk.fault = None
    crash_explorer.check_after(disk, model)


def outcome_of(fault: Fault, model: ModelledRepository) -> BaseException | None:
    try:
        with seeded_identifiers(f"life {fault.seed}"):
            for step in fault.steps():
                step(model)
            model.close()
    except Exception as error:  # noqa: BLE001 - handed to the thread that asserts
        return error
    return None


def read_one(model: ModelledRepository) -> None:
    rows = model.open.catalog.live_rows()[:1]
    if len(rows):
        size = int(model.open.catalog.column("size", rows)[0])
        model.open.read(np.asarray(rows), [blank(size)])


# --- repeating ------------------------------------------------------------------------------------


@pytest.fixture
def repeated_fault(request: pytest.FixtureRequest) -> Fault:
    """The fault that `--fault` names."""
    return Fault.parse(request.config.getoption("--fault"))


def test_repeat_a_fault(repeated_fault: Fault) -> None:
    repeat(repeated_fault)


def repeat(fault: Fault) -> None:
    """Exactly one case again."""
    if fault.fail:
        trouble = Trouble.parse(fault.fail)
        if trouble.what == "hang":
            live_through_a_hang(fault, trouble.number)
        else:
            live_with(fault, trouble)
    elif fault.lie:
        lie = Lie.parse(fault.lie)
        disk, model = lived(fault, lie.after)
        assert check_lie(disk, model, lie), "this changes nothing"
    else:
        tally = CrashExplorer(fault).run()
        assert tally.once + tally.twice == 1, "there is no such operation"


@pytest.mark.parametrize(
    "text",
    [
        "life=everyday retain=2 seed=1 crash=before:131:sizes",
        "life=restored retain=3 seed=1 crash=after:60:drawn-1 again=after:12:kept",
    ],
)
def test_a_failure_prints_what_repeats_it(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fault = Fault.parse(text)
    assert str(fault) == text
    media: list[bytes] = []
    monkeypatch.delenv(VARIABLE, raising=False)  # what is planted is no violation

    def planted(disk: SimulatedDisk, model: ModelledRepository) -> None:
        media.append(disk.medium_digest())
        raise AssertionError("planted")

    repeat(fault)
    monkeypatch.setattr(crash_explorer, "check_after", planted)
    for _ in range(2):
        with pytest.raises(crash_explorer.FaultError, match="planted") as caught:
            repeat(fault)
        assert f"--fault '{text}'" in str(caught.value)
    assert media[0] == media[1], "the same fault left another medium"
