"""What two looks at the master's counters say. `tests/compat/test_mooncake_master.py` has the same
rules on the real master."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from snapd.attach.mooncake.counters import COUNTERS, Counters
from snapd.attach.mooncake.life import Activity, same_life

BASE = dict.fromkeys(sorted(COUNTERS), 100)

PUT = {
    "master_put_start_requests_total": 1,
    "master_value_size_bytes_count": 1,
    "master_put_end_requests_total": 1,
}
PUT_STARTED = {"master_batch_put_start_items_total": 1, "master_value_size_bytes_count": 1}
PUT_ENDED = {"master_batch_put_end_items_total": 1}
PUT_OF_KNOWN_KEY = {"master_put_start_requests_total": 1, "master_put_start_failures_total": 1}
REWRITE = {"master_put_start_requests_total": 1, "master_put_end_requests_total": 1}
REWRITE_STARTED = {"master_batch_put_start_items_total": 1}
RESIZE = PUT | {"master_put_start_discard_cnt": 1}
REMOVE = {"master_remove_requests_total": 1}
FAILED_REMOVE = REMOVE | {"master_remove_failures_total": 1}
REGEX = {"master_remove_by_regex_requests_total": 1}
REMOVE_ALL = {"master_remove_all_requests_total": 1}
CLEAR = {"master_batch_replica_clear_items_total": 1}
FAILED_CLEAR = CLEAR | {"master_batch_replica_clear_failed_items_total": 1}
REVOKE = {"master_batch_put_revoke_items_total": 1}
EVICTION = {"master_evicted_key_count": 1}
MOVE = {"master_move_end_requests_total": 1, "master_put_start_discard_cnt": 1}
COPY = {"master_copy_end_requests_total": 1}
MOUNT = {"master_mount_segment_requests_total": 1}
PING = {"master_ping_requests_total": 1}

PROPERTIES = (
    "may_have_removed",
    "removed_all",
    "may_have_removed_unseen",
    "may_have_rewritten",
    "may_have_moved",
    "may_have_added",
    "evicted",
    "segments_changed",
)


def after(*actions: Mapping[str, int]) -> Counters:
    values = dict(BASE)
    for action in actions:
        for name, count in action.items():
            values[name] += count
    return Counters(values)


@pytest.mark.parametrize(
    ("actions", "expected"),
    [
        ([], set()),
        ([PING], set()),
        ([PUT], {"may_have_added"}),
        ([PUT_STARTED], set()),
        ([PUT_ENDED], {"may_have_added"}),
        ([PUT_OF_KNOWN_KEY], set()),
        ([REMOVE], {"may_have_removed", "may_have_moved"}),
        ([FAILED_REMOVE], {"may_have_removed", "may_have_moved", "may_have_removed_unseen"}),
        ([REGEX], {"may_have_removed", "may_have_moved", "may_have_removed_unseen"}),
        (
            [REMOVE_ALL],
            {"may_have_removed", "may_have_moved", "may_have_removed_unseen", "removed_all"},
        ),
        ([CLEAR], {"may_have_removed", "may_have_moved"}),
        ([FAILED_CLEAR], {"may_have_removed", "may_have_moved", "may_have_removed_unseen"}),
        ([PUT_STARTED, REVOKE], set()),
        ([REWRITE_STARTED, REVOKE], {"may_have_removed", "may_have_moved", "may_have_rewritten"}),
        ([EVICTION], {"evicted", "may_have_moved"}),
        ([MOVE], {"may_have_removed", "may_have_moved"}),
        ([COPY], {"may_have_moved"}),
        ([MOUNT], {"segments_changed"}),
        (
            [REWRITE],
            {"may_have_removed", "may_have_moved", "may_have_rewritten", "may_have_added"},
        ),
        ([REWRITE_STARTED], {"may_have_removed", "may_have_moved", "may_have_rewritten"}),
        ([RESIZE], {"may_have_removed", "may_have_moved", "may_have_added"}),
    ],
)
def test_each_action_says_what_it_may_have_done(
    actions: list[Mapping[str, int]], expected: set[str]
) -> None:
    activity = Activity(after(), after(*actions))
    assert {name for name in PROPERTIES if getattr(activity, name)} == expected
    # A put that only began, and one of a key that is there, change nothing that can be seen.
    assert activity.is_quiet == (actions in ([], [PING]))
    assert same_life(activity.before, activity.now)


@pytest.mark.parametrize("others", [[], [PUT_STARTED], [PUT_STARTED] * 7, [PUT] * 3, [EVICTION]])
def test_a_rewrite_does_not_hide_behind_puts(others: list[Mapping[str, int]]) -> None:
    """Nor behind puts that were begun and never ended, which count as new objects."""
    assert Activity(after(), after(REWRITE, *others)).may_have_rewritten
    assert not Activity(after(), after(*others)).may_have_rewritten


def test_a_start_under_way_is_taken_for_a_rewrite_and_never_the_reverse() -> None:
    under_way = {"master_batch_put_start_items_total": 8}
    assert Activity(after(), after(under_way)).may_have_rewritten
    ended = after(under_way, {"master_value_size_bytes_count": 8})
    assert Activity(after(under_way), ended).may_have_rewritten


@pytest.mark.parametrize("name", sorted(COUNTERS))
def test_a_counter_that_fell_is_another_life(name: str) -> None:
    before, now = after(), after({each: 5 for each in COUNTERS if each != name})
    assert same_life(before, now)
    assert not same_life(before, Counters({**now.values, name: 99}))


def test_a_restart_is_another_life() -> None:
    assert not same_life(after(), Counters(dict.fromkeys(BASE, 0)))


def test_a_master_without_one_of_the_counters_is_not_the_same() -> None:
    assert not same_life(after(), Counters(dict(list(BASE.items())[1:])))


def test_a_look_is_of_its_own_life() -> None:
    assert same_life(after(), after())
    assert same_life(Counters({}), after())
