"""Blocks that wait to be put back, and one look at the master: what may have been removed or left
since is not put back, and what was removed is told."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from scripted_master import Scene, checksum

from snapd.attach.mooncake import poll


@pytest.fixture
def scene() -> Iterator[Scene]:
    with Scene() as scene:
        yield scene


# --- blocks that wait to be put back --------------------------------------------------------------


def test_a_waiting_key_that_the_dead_segment_does_not_list_is_not_put_back(scene: Scene) -> None:
    scene.put("a")
    scene.put("b", at=1)
    scene.look_twice()
    scene.store_dies()
    scene.look()
    scene.register_cold("a", "b")
    scene.evict("a")
    look = scene.look()
    assert (look.in_doubt, scene.cold(), scene.told()) == (1, {"b"}, [])
    scene.remove("b")
    look = scene.look()
    assert (look.in_doubt, scene.cold(), scene.told()) == (1, set(), ["b"])


def test_a_removal_just_before_the_dead_segment_ended_leaves_nothing_of_it(scene: Scene) -> None:
    scene.put("a")
    scene.put("b", at=1)
    scene.look_twice()
    dead = scene.store_dies()
    scene.look()
    scene.register_cold("a", "b")
    scene.look()
    scene.remove("a")
    scene.unlist(dead)
    assert scene.look().in_doubt == 2
    assert scene.cold() == set()
    assert sorted(scene.told()) == ["a", "b"]


def test_one_beside_a_key_that_left_in_another_way_does_as_well(scene: Scene) -> None:
    scene.put("a")
    scene.look_twice()
    dead = scene.store_dies()
    scene.put("x")
    scene.look()
    scene.register_cold("a")
    scene.look()
    # One removal, and one key that is gone: not the same one.
    scene.remove("a")
    scene.discard("x")
    scene.unlist(dead)
    assert scene.look().in_doubt == 1
    assert scene.cold() == set()
    assert sorted(scene.told()) == ["a", "x"]


def test_one_between_the_counters_and_the_segments_of_a_quiet_look_counts(scene: Scene) -> None:
    scene.put("a")
    scene.look_twice()
    dead = scene.store_dies()
    scene.look()
    scene.register_cold("a")
    scene.look_twice()

    def remove() -> None:
        scene.remove("a")
        scene.unlist(dead)

    scene.script.before("segments", remove)
    assert scene.look().in_doubt == 1
    assert scene.told() == ["a"]


def test_the_end_of_the_dead_segment_alone_drops_nothing(scene: Scene) -> None:
    scene.put("a")
    scene.look_twice()
    dead = scene.store_dies()
    scene.look()
    scene.register_cold("a")
    scene.unlist(dead)
    scene.put("c", at=5)
    assert scene.look().in_doubt == 0
    assert scene.cold() == {"a"}


@pytest.mark.parametrize("by", ["pattern", "name", "all"])
def test_a_removal_that_may_be_of_any_waiting_key_drops_all(scene: Scene, by: str) -> None:
    scene.look()
    scene.register_cold("a", "b")
    if by == "pattern":
        scene.remove_matching()
    elif by == "name":
        scene.remove("a")
    else:
        scene.remove_all()
    assert scene.look().in_doubt == 2
    assert scene.cold() == set()
    assert sorted(scene.told()) == (["*"] if by == "all" else ["a", "b"])


@pytest.mark.parametrize("by", ["removal", "clearing"])
def test_one_key_more_removed_than_is_missing_drops_what_waits(scene: Scene, by: str) -> None:
    scene.put("x", at=4)
    scene.look()
    scene.register_cold("a")
    scene.look()
    scene.put("a", version=2)
    if by == "removal":
        scene.remove("a")
    else:
        scene.clear("a")
    assert scene.look().in_doubt == 1
    assert scene.cold() == set()


def test_an_eviction_explains_no_removal(scene: Scene) -> None:
    scene.put("x", at=4)
    scene.look()
    scene.register_cold("a")
    scene.look()
    scene.put("a", version=2)
    scene.remove("a")
    scene.evict("x")
    assert scene.look().in_doubt == 1
    assert scene.cold() == set()


def test_removals_of_keys_that_are_missing_drop_nothing(scene: Scene) -> None:
    scene.put("x", at=4)
    scene.put("y", at=5)
    scene.look()
    scene.register_cold("a")
    scene.look()
    scene.remove("x")
    assert scene.look().in_doubt == 0
    scene.put_elsewhere("z")
    scene.evict("z")
    assert scene.look().in_doubt == 0
    assert scene.cold() == {"a"}
    assert scene.told() == ["x"]


def test_a_waiting_key_that_somebody_put_is_found_among_many_foreign_ones(scene: Scene) -> None:
    for number in range(3 * poll._FOREIGN_ROWS_MIN):
        scene.put_elsewhere(f"other {number}")
    scene.put_elsewhere("waiting")
    scene.look()
    scene.register_cold("waiting")
    scene.evict("waiting")
    scene.put("waiting", version=2)
    scene.look()
    assert scene.resident() == {"waiting": checksum("waiting", 2)}
    assert scene.cold() == set()
    assert scene.told() == ["waiting"], "the version that waited is over"


# --- the first look of a session, before what it lost is registered -------------------------------


def test_what_left_before_its_store_was_found_dead_is_not_put_back(scene: Scene) -> None:
    scene.put("a")
    scene.put("b", at=1)
    scene.put("c", at=2)
    scene.look_twice()
    scene.store_dies()
    scene.evict("a")
    scene.remove("b")
    scene.look()
    scene.register_cold("a", "b", "c")
    assert scene.cold() == {"c"}
    assert sorted(scene.told()) == ["a", "b"], "which of them was removed, nobody knows"


def test_what_was_evicted_before_that_is_not_told(scene: Scene) -> None:
    scene.put("a")
    scene.look_twice()
    scene.store_dies()
    scene.evict("a")
    assert scene.look().in_doubt == 1
    scene.register_cold("a")
    assert scene.cold() == set()
    assert scene.told() == []


def test_a_removal_before_the_first_look_and_the_segments_end_leaves_nothing(scene: Scene) -> None:
    scene.put("a")
    scene.put("b", at=1)
    scene.look_twice()
    dead = scene.store_dies()
    scene.remove("a")
    scene.unlist(dead)
    assert scene.look().in_doubt == 2
    scene.register_cold("a", "b")
    assert scene.cold() == set()
    assert set(scene.told()) == {"a", "b"}


def test_a_removal_by_pattern_before_the_first_look_leaves_nothing(scene: Scene) -> None:
    scene.put("a")
    scene.look_twice()
    scene.store_dies()
    scene.remove_matching()
    scene.look()
    scene.register_cold("a")
    assert scene.cold() == set()
    assert scene.told() == ["a"]


def test_a_removal_without_a_trace_before_the_first_look_leaves_nothing(scene: Scene) -> None:
    scene.put("a")
    scene.look_twice()
    dead = scene.store_dies()
    scene.unlist(dead)
    scene.put("a", version=2)
    scene.remove("a")
    scene.poll._dead_listed = frozenset()  # as where the dead segment was never seen
    scene.look()
    scene.register_cold("a")
    assert scene.cold() == set()
    assert scene.told() == ["a"]


# --- ends -----------------------------------------------------------------------------------------


def test_a_removal_before_the_store_was_found_dead_is_told(scene: Scene) -> None:
    scene.put("a")
    scene.put("b", at=1)
    scene.look_twice()
    scene.remove("a")
    scene.store_dies()
    scene.look()
    assert scene.told() == ["a"]
    scene.register_cold("a", "b")
    assert scene.cold() == {"b"}


def test_an_eviction_before_the_store_was_found_dead_is_not_put_back(scene: Scene) -> None:
    scene.put("a")
    scene.look_twice()
    scene.evict("a")
    dead = scene.store_dies()
    scene.unlist(dead)
    scene.look()
    scene.register_cold("a")
    assert scene.cold() == set()
    assert scene.told() == []


def test_a_removal_before_the_end_of_a_segment_that_is_forgotten_leaves_nothing(
    scene: Scene,
) -> None:
    scene.put("a")
    scene.put("b", at=1)
    scene.look_twice()
    scene.remove("a")
    scene.unlist(scene.segment.segment_id)
    scene.store_dies()
    scene.look()
    assert sorted(scene.told()) == ["a", "b"]
    scene.register_cold("a", "b")
    assert scene.cold() == set()


def test_a_segment_that_is_forgotten_before_its_keys_are_listed_loses_them(scene: Scene) -> None:
    scene.put("a")
    scene.look_twice()
    dead = scene.segment.segment_id
    scene.script.before("keys", lambda: scene.unlist(dead))
    scene.store_dies()
    scene.look()
    scene.register_cold("a")
    assert scene.cold() == {"a"}, "nobody evicted it"


def test_a_removal_after_the_last_look_of_a_masters_life_leaves_nothing(scene: Scene) -> None:
    scene.put("a")
    scene.look_twice()
    last = scene.admin.counters()
    files = scene.inventory.resident().places.file
    assert scene.poll.end_life(files, last) == 0
    assert scene.resident() == {"a": checksum("a")}
    scene.count_removal()
    assert scene.poll.end_life(files, scene.admin.counters()) == 1
    assert scene.told() == ["a"]
