"""SIGTERM, whoever gets it first: what was put before it is on disk after it.

When a store service leaves politely, the master forgets its keys at once. So somebody has to look
before that: the launcher has the daemon do so on its own SIGTERM, a vanilla service in its preStop.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from mooncake_departure import BLOCK_BYTES, Departure, Writer, depart, durable_keys
from mooncake_site import MooncakeSite

ORDERS = ("store first", "daemon first", "at once")


def check_nothing_lost(departure: Departure, tmp_path: Path) -> None:
    outcome = depart(tmp_path, departure)
    print(outcome)
    assert outcome.before > 100, outcome
    assert outcome.undurable_before == 0, outcome
    assert outcome.daemon_code == 0, outcome
    assert outcome.seconds < 15, outcome
    if departure.store == "launcher":
        assert outcome.store_code == 0, outcome


def test_both_are_ended_at_once_and_nothing_that_was_put_before_is_lost(tmp_path: Path) -> None:
    check_nothing_lost(Departure("at once", "launcher"), tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("store", ["launcher", "vanilla with preStop"])
@pytest.mark.parametrize("order", ORDERS)
def test_nothing_that_was_put_before_sigterm_is_lost(
    order: str, store: str, tmp_path: Path
) -> None:
    check_nothing_lost(Departure(order, store), tmp_path)


@pytest.mark.long
def test_a_vanilla_store_without_prestop_loses_what_no_look_has_seen(tmp_path: Path) -> None:
    """The control: this is what is at stake, and that it would be noticed."""
    outcome = depart(tmp_path, Departure("store first", "vanilla"))
    print(outcome)
    assert outcome.undurable_before > 0, outcome
    assert outcome.daemon_code == 0, outcome


def test_a_daemon_that_ends_leaves_the_store_serving_and_the_next_one_goes_on(
    tmp_path: Path,
) -> None:
    with MooncakeSite(tmp_path, poll_sec=5) as site:
        site.start()
        site.start_daemon()
        client = site.client()
        before = [f"before-{number}" for number in range(20)]
        between = [f"between-{number}" for number in range(20)]
        client.put_all(before, size=BLOCK_BYTES)
        segments, files = site.segments(), site.shared_files()
        assert site.stop_daemon() == 0
        assert durable_keys(site.snapd.repository) == set(before)
        assert [one["segment_id"] for one in site.segments()] == [
            one["segment_id"] for one in segments
        ]
        assert site.shared_files() == files
        client.put_all(between, size=BLOCK_BYTES)
        site.start_daemon()
        assert site.shared_files() == files
        assert [one["segment_id"] for one in site.segments()] == [
            one["segment_id"] for one in segments
        ]
        assert site.stop_daemon() == 0
        assert durable_keys(site.snapd.repository) == {*before, *between}
        assert set(client.read([*before, *between]).values()) == {1}


@pytest.mark.long
def test_a_store_that_is_restarted_politely_gets_everything_back(tmp_path: Path) -> None:
    """A rolling update of the store's container alone, with the daemon beside it."""
    with MooncakeSite(tmp_path, poll_sec=5, flush_sec=5, snapshot_interval_sec=300) as site:
        site.start_master()
        site.start_store(launcher=True)
        site.start_daemon()
        client = site.client()
        writer = Writer(client)
        with writer.at_work():
            site.until("some are put", lambda: len(writer.answered(0, float("inf"))) > 200)
        keys = sorted(writer.answered(0, float("inf")))
        site.stop_store()
        site.start_store(launcher=True)
        site.until("all are back", lambda: site.keys() >= set(keys))
        assert set(client.read(keys).values()) == {1}
        assert os.path.exists(site.shared_files()[0])
