"""The ledger: what may be read, through failed writes, removals and restarts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from snapd.drill.ledger import Ledger
from snapd.drill.shared import FileLock

ONE = np.array([1])
YES, NO = np.array([True]), np.array([False])


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger.create(tmp_path / "ledger", 4, FileLock(tmp_path / "lock"))


def version_of(ledger: Ledger, block: int = 1) -> int:
    return int(ledger.acknowledged()[block])


def put(ledger: Ledger, done: np.ndarray = YES) -> int:
    claim = ledger.begin_put(ONE, 2)
    ledger.finish(claim, done)
    return int(claim.versions[0])


def upsert(ledger: Ledger, done: np.ndarray = YES) -> int:
    claim = ledger.begin_upsert(ONE, 3)
    ledger.finish(claim, done)
    return int(claim.versions[0])


def remove(ledger: Ledger, done: np.ndarray = YES) -> int:
    claim = ledger.begin_remove(ONE, 4)
    ledger.finish(claim, done)
    return int(claim.versions[0])


def legal(ledger: Ledger, version: int, floor: int | None = None) -> bool:
    start = ledger.floor(ONE) if floor is None else np.array([floor], np.uint32)
    return bool(ledger.is_legal(ONE, np.array([version], np.uint32), start)[0])


def test_only_the_acknowledged_version_may_be_read_when_nothing_is_under_way(
    ledger: Ledger,
) -> None:
    assert not legal(ledger, 0)
    first = put(ledger)
    second = upsert(ledger)
    assert legal(ledger, second)
    assert not legal(ledger, first)
    assert not legal(ledger, second + 1)
    assert ledger.live().tolist() == [False, True, False, False]


def test_a_put_repeats_the_version_that_may_be_there_already(ledger: Ledger) -> None:
    first = upsert(ledger)
    assert put(ledger) == first


def test_while_a_write_is_under_way_old_and_new_may_be_read(ledger: Ledger) -> None:
    old = put(ledger)
    claim = ledger.begin_upsert(ONE, 1)
    assert legal(ledger, old)
    assert legal(ledger, int(claim.versions[0]))
    ledger.finish(claim, YES)
    assert not legal(ledger, old)
    # A read that began before the answer came may still bring the old one.
    assert legal(ledger, old, floor=old)


def test_a_write_without_an_answer_leaves_both_legal_until_the_next_one(ledger: Ledger) -> None:
    old = put(ledger)
    unsure = upsert(ledger, NO)
    assert legal(ledger, old)
    assert legal(ledger, unsure)
    new = upsert(ledger)
    assert not legal(ledger, old)
    assert not legal(ledger, unsure)
    assert legal(ledger, new)


def test_a_first_put_without_an_answer_is_repeated_with_the_same_bytes(ledger: Ledger) -> None:
    unsure = put(ledger, NO)
    assert not ledger.live().any()
    assert put(ledger) == unsure


def test_what_was_removed_may_not_be_read_again(ledger: Ledger) -> None:
    old = put(ledger)
    removal = remove(ledger)
    assert not legal(ledger, old)
    assert not ledger.live().any()
    assert ledger.removed_since(np.array([0, old, 0, 0], np.uint32)).tolist()[1]
    new = put(ledger)
    assert new > removal
    assert legal(ledger, new)
    assert not legal(ledger, old)


def test_two_clients_do_not_write_one_block_at_a_time(ledger: Ledger) -> None:
    first = ledger.begin_put(np.array([0, 1]), 1)
    second = ledger.begin_put(np.array([1, 2]), 2)
    assert second.blocks.tolist() == [2]
    assert ledger.claims == 3
    ledger.finish(first, np.array([True, False]))
    assert ledger.begin_upsert(np.array([0, 1]), 2).blocks.tolist() == [0, 1]


def test_after_a_restart_exactly_what_survived_may_be_read(ledger: Ledger) -> None:
    durable = put(ledger)
    lost = upsert(ledger)
    ledger.restart(np.array([0, durable, 0, 0], np.uint32))
    assert version_of(ledger) == durable
    assert legal(ledger, durable)
    # A read from before the restart is judged by its own beginning or by what survived.
    assert legal(ledger, durable, floor=lost)
    assert put(ledger) == durable
    assert upsert(ledger) > lost


def test_a_removal_survives_the_restart_whatever_was_found_on_disk(ledger: Ledger) -> None:
    old = put(ledger)
    remove(ledger)
    ledger.restart(np.array([0, old, 0, 0], np.uint32))
    assert not ledger.live().any()
    assert not legal(ledger, old)


def test_what_did_not_survive_is_not_live_and_gets_a_new_version(ledger: Ledger) -> None:
    old = put(ledger)
    ledger.restart(np.zeros(4, np.uint32))
    assert not ledger.live().any()
    assert put(ledger) > old


def test_a_block_that_survived_though_nobody_acknowledged_it_is_live(ledger: Ledger) -> None:
    unsure = put(ledger, NO)
    ledger.restart(np.array([0, unsure, 0, 0], np.uint32))
    assert ledger.live().tolist() == [False, True, False, False]
    assert legal(ledger, unsure)


def test_an_answer_from_before_the_restart_does_not_count_after_it(ledger: Ledger) -> None:
    durable = put(ledger)
    claim = ledger.begin_upsert(ONE, 1)
    ledger.restart(np.array([0, durable, 0, 0], np.uint32))
    ledger.finish(claim, YES)
    assert version_of(ledger) == durable
    assert ledger.claims == 0


def test_the_ledger_is_shared_through_its_file(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "lock")
    mine = Ledger.create(tmp_path / "ledger", 4, lock)
    theirs = Ledger(tmp_path / "ledger", lock)
    version = put(mine)
    assert version_of(theirs) == version
    assert len(theirs) == 4


def test_what_did_not_survive_is_a_part_of_what_was_acknowledged(ledger: Ledger) -> None:
    claim = ledger.begin_put(np.arange(4), 1)
    ledger.finish(claim, np.ones(4, np.bool_))
    survived = claim.versions.copy()
    none_evicted = np.zeros(4, np.bool_)
    assert ledger.undurable_ratio(survived, none_evicted) == 0
    survived[0] = 0
    assert ledger.undurable_ratio(survived, none_evicted) == 0.25
    upsert(ledger)
    assert ledger.undurable_ratio(survived, none_evicted) == 0.5, "an old version is not enough"
    evicted = np.array([True, False, False, False])
    assert ledger.undurable_ratio(survived, evicted) == pytest.approx(1 / 3)


def test_what_was_under_way_at_the_kill_is_no_loss(ledger: Ledger) -> None:
    put(ledger)
    none, gone = np.zeros(4, np.bool_), np.zeros(4, np.uint32)
    assert ledger.undurable_ratio(gone, none) == 1
    newer = upsert(ledger, NO)
    assert ledger.undurable_ratio(np.array([0, newer, 0, 0], np.uint32), none) == 0
    remove(ledger, NO)
    assert ledger.undurable_ratio(gone, none) == 0, "its removal may have happened"


def test_an_acknowledgement_from_an_outage_means_nothing(ledger: Ledger) -> None:
    """Mooncake says yes to a put of a key that it still lists, and writes nothing."""
    old = put(ledger)
    ledger.restart(np.zeros(4, np.uint32))
    ledger.set_uncertain(uncertain=True)
    new = put(ledger)
    assert not ledger.live().any()
    assert legal(ledger, old), "what was there before may have been put back"
    assert legal(ledger, new)
    ledger.set_uncertain(uncertain=False)
    assert put(ledger) == new, "the bytes that may be there already"
    assert legal(ledger, new)
    assert not legal(ledger, old)


def test_what_began_in_an_outage_is_as_uncertain_when_it_ends_after_it(ledger: Ledger) -> None:
    ledger.set_uncertain(uncertain=True)
    began_inside = ledger.begin_put(ONE, 1)
    ledger.set_uncertain(uncertain=False)
    ledger.finish(began_inside, YES)
    assert not ledger.live().any()
    began_before = ledger.begin_put(ONE, 1)
    ledger.set_uncertain(uncertain=True)
    ledger.finish(began_before, YES)
    assert not ledger.live().any()
    assert began_before.versions.tolist() == began_inside.versions.tolist()


def test_every_process_sees_that_blocks_shall_stay_as_they_are(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "lock")
    mine, theirs = Ledger.create(tmp_path / "l", 4, lock), Ledger(tmp_path / "l", lock)
    mine.set_calm(calm=True)
    assert theirs.is_calm
    mine.set_calm(calm=False)
    assert not theirs.is_calm
