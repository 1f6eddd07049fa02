"""One look at the master, and what may happen at each of its steps: what is taken in has its bytes,
and what is gone went for the reason that is told."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from scripted_master import ELSEWHERE, Scene, checksum

from snapd.attach.mooncake import counters, poll
from snapd.attach.mooncake.layout import Layout
from snapd.attach.mooncake.life import same_life
from snapd.attach.mooncake.master import MasterSegment
from snapd.errors import ProtocolError, StoreUnavailableError

OVER = "its keys are gone"
"""Of the message that the master's life is over."""


@pytest.fixture
def scene() -> Iterator[Scene]:
    with Scene() as scene:
        yield scene


@pytest.fixture
def bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is hashed again but for a reason."""
    monkeypatch.setattr(poll, "_AGAIN_BLOCKS", 0)


# --- the hash between two looks -------------------------------------------------------------------


def test_a_block_that_left_its_place_before_the_hash_is_not_taken_in(scene: Scene) -> None:
    scene.put("a")
    scene.script.after("locate", scene.swap("a", "b"))
    assert scene.look().moved == 1
    assert scene.resident() == {}
    scene.look()
    assert scene.resident() == {"b": checksum("b")}


def test_a_block_that_was_away_while_it_was_hashed_is_not_taken_in(scene: Scene) -> None:
    scene.put("a")
    scene.script.before("hash", scene.swap("a", "b"))
    scene.script.after("hash", scene.swap("b", "a"))
    assert scene.look().moved == 1
    assert scene.resident() == {}
    scene.look()
    assert scene.resident() == {"a": checksum("a")}


def test_a_block_that_was_away_during_both_hashes_is_not_taken_in(scene: Scene) -> None:
    scene.put("a")
    scene.script.before("hash", scene.swap("a", "b"))
    scene.script.after("hash", scene.swap("b", "a"))
    scene.script.before("hash", scene.swap("a", "b"), nth=2)
    assert scene.look().moved == 1
    assert scene.resident() == {}
    scene.look()
    assert scene.resident() == {"b": checksum("b")}


@pytest.mark.parametrize("step", ["places", "hash", "second hash"])
def test_a_new_life_of_the_master_ends_a_hash(scene: Scene, step: str) -> None:
    scene.put_elsewhere("x")
    scene.look_twice()
    scene.put("a")

    def restart() -> None:
        scene.restart()
        scene.put("a", version=2)

    if step == "places":
        scene.script.after("locate", restart)
    elif step == "hash":
        scene.script.after("hash", restart)
    else:
        scene.script.after("hash", lambda: scene.evict("x"))
        scene.script.after("hash", restart, nth=2)
    with pytest.raises(StoreUnavailableError, match=OVER):
        scene.look()
    assert scene.resident() == {}
    # Who attaches again has to find it out, too, or the next look would end in the same way.
    assert scene.poll.newest is not None
    assert not same_life(scene.poll.newest, scene.admin.counters())


def test_a_segment_that_took_the_place_of_ours_during_a_hash_ends_it(scene: Scene) -> None:
    scene.put("a")
    scene.script.after("hash", scene.replace_segment)
    with pytest.raises(StoreUnavailableError):
        scene.look()
    assert scene.resident() == {}


def overlapping(scene: Scene) -> MasterSegment:
    """A segment of another life at the addresses of ours."""
    ours = scene.segment
    return MasterSegment(
        "7-7", "7-8", ours.base_address, ours.size_bytes, ours.endpoint, 0, is_ok=True
    )


def test_nothing_is_believed_while_another_segment_has_our_addresses(scene: Scene) -> None:
    scene.admin.listed.append(overlapping(scene))
    scene.put("a")
    look = scene.look()
    assert look.is_ambiguous
    assert not look.listed
    assert scene.resident() == {}
    scene.unlist("7-7")
    scene.put("a")
    assert not scene.look().is_ambiguous
    assert scene.resident() == {"a": checksum("a")}


def test_nothing_is_believed_when_one_comes_during_the_hash(scene: Scene) -> None:
    scene.put("a")
    scene.script.before("hash", lambda: scene.admin.listed.append(overlapping(scene)))
    assert scene.look().moved == 1
    assert scene.resident() == {}


def test_a_segment_in_the_way_for_too_long_has_ours_given_up(scene: Scene) -> None:
    scene.poll.ambiguous_seconds_max = 0.0
    scene.admin.listed.append(overlapping(scene))
    with pytest.raises(StoreUnavailableError, match="at addresses of one of ours"):
        scene.look()
    assert scene.poll.forgotten == {0}


# --- what is gone, and why ------------------------------------------------------------------------


def test_what_was_evicted_is_gone_and_nothing_is_told(scene: Scene) -> None:
    scene.put("a")
    scene.look_twice()
    scene.evict("a")
    assert scene.look().vanished == 1
    assert scene.resident() == {}
    assert scene.told() == []


def test_what_was_removed_is_told(scene: Scene) -> None:
    scene.put("a")
    scene.look_twice()
    scene.remove("a")
    scene.look()
    assert scene.resident() == {}
    assert scene.told() == ["a"]


def test_a_removal_between_the_counters_and_the_listing_is_told(scene: Scene) -> None:
    scene.put("a")
    scene.look_twice()
    scene.put("b", at=1)
    scene.script.before("keys", lambda: scene.remove("a"))
    scene.look()
    assert scene.told() == ["a"]


def test_a_removal_that_was_counted_before_a_look_and_done_after_it_is_told(scene: Scene) -> None:
    scene.put("a")
    scene.look_twice()
    scene.count_removal()
    scene.look()
    assert "a" in scene.resident()
    scene.forget("a")
    scene.look()
    assert scene.resident() == {}
    assert scene.told() == ["a"]


def test_a_removal_before_looks_that_failed_is_told(scene: Scene) -> None:
    scene.put("a")
    scene.look_twice()
    scene.remove("a")

    def fail() -> None:
        raise ProtocolError("nonsense")

    for _ in range(3):
        scene.script.before("keys", fail)
        with pytest.raises(ProtocolError):
            scene.look()
    scene.look()
    assert scene.told() == ["a"]


def test_a_removal_between_the_listing_and_the_places_is_told(scene: Scene) -> None:
    scene.put("a")
    scene.put("b", at=1)
    scene.look_twice()
    # Something else leaves and comes, so that the places of what stays are asked for.
    scene.evict("b")
    scene.put("c", at=2)
    scene.script.before("locate", lambda: scene.remove("a"))
    scene.look()
    scene.look()
    assert scene.resident() == {"c": checksum("c")}
    assert scene.told() == ["a"]


def test_a_key_that_lives_with_another_host_now_is_told(scene: Scene) -> None:
    scene.put("a")
    scene.look_twice()
    scene.evict("a")
    scene.put_elsewhere("a")
    scene.look()
    assert scene.resident() == {}
    assert scene.told() == ["a"], "what lies elsewhere was put after it"


def test_a_new_life_of_the_master_takes_nothing_away(scene: Scene) -> None:
    scene.put("a")
    scene.look_twice()
    scene.restart()
    with pytest.raises(StoreUnavailableError, match=OVER):
        scene.look()
    assert scene.resident() == {"a": checksum("a")}
    assert scene.told() == []


def test_a_new_life_that_begins_before_the_listing_takes_nothing_away(scene: Scene) -> None:
    scene.put("a")
    scene.look_twice()
    scene.put("b", at=1)
    scene.script.before("keys", scene.restart)
    with pytest.raises(StoreUnavailableError, match=OVER):
        scene.look()
    assert scene.resident() == {"a": checksum("a")}


def test_a_store_that_died_is_noticed_though_nothing_was_counted(scene: Scene) -> None:
    scene.put("a")
    scene.look_twice()
    scene.unlist(scene.segment.segment_id)
    with pytest.raises(StoreUnavailableError, match="does not list segment"):
        scene.look()
    assert "a" in scene.resident()


def test_a_store_that_dies_before_the_listing_takes_nothing_away(scene: Scene) -> None:
    scene.put("a")
    scene.look_twice()
    scene.put("b", at=1)
    scene.script.before("keys", lambda: scene.unlist(scene.segment.segment_id))
    with pytest.raises(StoreUnavailableError, match="does not list segment"):
        scene.look()
    assert "a" in scene.resident()


def test_what_is_put_back_during_the_listing_has_not_vanished(scene: Scene) -> None:
    table = scene.register_cold("a")
    scene.script.after("keys", lambda: scene.put_back(table))
    scene.look()
    assert scene.resident() == {"a": checksum("a")}
    assert scene.told() == []


def test_a_quiet_master_is_asked_for_keys_once_in_a_session(scene: Scene) -> None:
    scene.put("a")
    scene.look_twice()
    assert not scene.look().listed, "nothing was counted"
    scene.layout = Layout(scene.layout.live)
    assert scene.look().listed == 1, "what is durable has to be compared with a listing"
    assert not scene.look().listed


# --- removals of everything -----------------------------------------------------------------------


def test_what_is_there_after_a_removal_of_everything_is_a_new_version(scene: Scene) -> None:
    scene.put("a")
    scene.put("b", at=1)
    scene.look_twice()
    before = scene.inventory.resident().sequence.max()
    scene.remove_all()
    scene.put("a")
    scene.look()
    assert scene.told()[0] == "*"
    assert scene.resident() == {"a": checksum("a")}
    assert scene.inventory.resident().sequence.min() > before
    assert scene.inventory.epoch == 1


def test_a_removal_of_everything_counts_once(scene: Scene) -> None:
    scene.put("a")
    scene.look_twice()
    scene.remove_all()
    scene.look()
    scene.put("b")
    scene.look()
    assert scene.inventory.epoch == 1
    assert scene.told().count("*") == 1


def test_one_that_was_counted_before_a_look_and_done_after_it_takes_its_keys(scene: Scene) -> None:
    scene.put("a")
    scene.look_twice()
    scene.admin.counts["master_remove_all_requests_total"] += 1
    scene.look()
    scene.admin.objects.clear()
    scene.look()
    assert scene.resident() == {}
    assert scene.told() == ["*", "a"]


# --- stores that were silent for too long ---------------------------------------------------------


def test_a_segment_that_came_back_empty_is_told_from_evictions(scene: Scene) -> None:
    scene.put("a")
    scene.look_twice()
    scene.register_anew()
    scene.forget("a")
    with pytest.raises(StoreUnavailableError, match="forgot"):
        scene.look()
    assert scene.poll.forgotten == {0}
    assert scene.resident() == {"a": checksum("a")}, "it is lost with its segment, and put back"


def test_it_is_not_where_keys_may_have_been_removed(scene: Scene) -> None:
    scene.put("a")
    scene.look_twice()
    scene.register_anew()
    scene.remove("a")
    scene.look()
    assert scene.told() == ["a"]


def test_a_client_that_registers_while_keys_are_evicted_is_no_such_store(scene: Scene) -> None:
    scene.put("a")
    scene.put("b", at=1)
    scene.look_twice()
    scene.register_anew()
    scene.evict("a")
    scene.look()
    assert scene.resident() == {"b": checksum("b")}


# --- blocks that stay -----------------------------------------------------------------------------


@pytest.mark.usefixtures("bounded")
def test_bytes_that_were_rewritten_in_place_are_a_new_version(scene: Scene) -> None:
    scene.put("a")
    scene.look_twice()
    scene.upsert("a", version=2)
    assert scene.look().rewritten == 1
    assert scene.resident() == {"a": checksum("a", 2)}
    assert scene.told() == ["a"]


@pytest.mark.usefixtures("bounded")
def test_a_put_that_failed_hides_no_rewrite(scene: Scene) -> None:
    scene.put("a")
    ends, failures = counters.PUT_ENDS[0], counters.PUT_END_FAILURES[0]
    scene.admin.counts[ends] += 1
    scene.look_twice()
    scene.admin.counts[failures] += 1  # of the end that was counted before
    scene.upsert("a", version=2)
    assert scene.look().rewritten == 1
    assert scene.resident() == {"a": checksum("a", 2)}


@pytest.mark.usefixtures("bounded")
def test_a_key_that_was_removed_and_put_into_its_old_place_is_hashed(scene: Scene) -> None:
    scene.put("a")
    scene.look_twice()
    scene.remove("a")
    scene.put("a", version=2)
    assert scene.look().rewritten == 1
    assert scene.resident() == {"a": checksum("a", 2)}


@pytest.mark.usefixtures("bounded")
def test_a_key_that_was_evicted_and_put_elsewhere_in_the_segment_is_found(scene: Scene) -> None:
    scene.put("a")
    scene.look_twice()
    scene.evict("a")
    scene.put("a", at=1, version=2)
    assert scene.look().rewritten == 1
    assert scene.inventory.resident().places.offset.tolist() == [512]
    assert scene.resident() == {"a": checksum("a", 2)}


@pytest.mark.usefixtures("bounded")
def test_a_block_that_was_moved_is_found(scene: Scene) -> None:
    scene.put("a")
    scene.look_twice()
    scene.move("a", to=3)
    scene.look()
    assert scene.inventory.resident().places.offset.tolist() == [3 * 512]
    assert scene.resident() == {"a": checksum("a")}
    assert scene.told() == []


@pytest.mark.usefixtures("bounded")
def test_a_block_in_doubt_is_hashed_however_many_there_are(scene: Scene) -> None:
    scene.put("a")
    scene.put("b", at=1)
    scene.look_twice()
    kept = scene.inventory.resident()
    # What a flush found out: other bytes than the checksum's, and no counter had moved for it.
    scene.upsert("a", version=2)
    scene.upsert("b", version=2)
    scene.admin.counts["master_value_size_bytes_count"] += 2
    scene.inventory.doubt(kept.slots, kept.sequence)
    assert scene.look().rewritten == 2
    assert scene.resident() == {"a": checksum("a", 2), "b": checksum("b", 2)}


def test_a_rewrite_that_no_counter_shows_is_found_in_time(scene: Scene) -> None:
    scene.put("a")
    scene.look_twice()
    scene.evict("a")
    scene.put("a", version=2)
    assert scene.look().rewritten == 1
    assert scene.resident() == {"a": checksum("a", 2)}


def test_a_rewrite_during_the_hash_is_left_for_the_next_look(scene: Scene) -> None:
    scene.put("a")
    scene.look_twice()
    scene.upsert("a", version=2)
    scene.script.after("hash", lambda: scene.upsert("a", version=3))
    assert scene.look().moved == 1
    assert scene.resident() == {"a": checksum("a")}
    scene.look()
    assert scene.resident() == {"a": checksum("a", 3)}
    assert scene.told() == ["a"]


def test_other_hosts_keys_are_counted_and_left_alone(scene: Scene) -> None:
    scene.put_elsewhere("theirs")
    scene.put("ours")
    look = scene.look()
    assert (look.listed, look.foreign, look.new) == (2, 1, 1)
    assert ELSEWHERE.segment_id not in scene.layout.segment_ids
    assert scene.resident() == {"ours": checksum("ours")}
