"""Removals and rewrites just before, in and after a death: what was removed or replaced does not
come back, whatever the moment. What is in doubt may be missing, never old."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fault_ledger import FaultClass, case
from mooncake_driver import MISSING
from mooncake_site import MooncakeClient, MooncakeSite

KEPT = [f"kept-{number}" for number in range(100)]
GONE = [f"gone-{number}" for number in range(40)]
Act = Callable[[MooncakeSite, MooncakeClient], None]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[MooncakeSite]:
    with MooncakeSite(tmp_path, segment_bytes=32 << 20, http="", poll_sec=2) as one:
        yield one


def remove(_site: MooncakeSite, client: MooncakeClient) -> None:
    client.remove(GONE, force=True)


def remove_by_regex(_site: MooncakeSite, client: MooncakeClient) -> None:
    client.remove_by_regex("^gone-", force=True)


def remove_all(_site: MooncakeSite, client: MooncakeClient) -> None:
    client.remove_all(force=True)
    client.put(KEPT)


def rewrite(_site: MooncakeSite, client: MooncakeClient) -> None:
    client.upsert(GONE, 2)


def rewrite_longer(_site: MooncakeSite, client: MooncakeClient) -> None:
    client.upsert(GONE, 2, size=70_000)


def remove_and_put_other(_site: MooncakeSite, client: MooncakeClient) -> None:
    client.remove(GONE, force=True)
    client.put(GONE, 2)


ACTS: list[Act] = [
    remove,
    remove_by_regex,
    remove_all,
    rewrite,
    rewrite_longer,
    remove_and_put_other,
]


def act_and_kill(site: MooncakeSite, client: MooncakeClient, act: Act) -> None:
    act(site, client)
    site.kill_store()
    site.start_store()


def act_and_stop(site: MooncakeSite, client: MooncakeClient, act: Act) -> None:
    act(site, client)
    site.stop_store()
    site.start_store()


def kill_and_act(site: MooncakeSite, client: MooncakeClient, act: Act) -> None:
    """While the dead segment's keys still seem to exist."""
    site.kill_store()
    act(site, client)
    site.start_store()


def kill_wait_and_act(site: MooncakeSite, client: MooncakeClient, act: Act) -> None:
    """After the dead segment is gone, while its blocks wait for a store."""
    site.kill_store()
    site.until("the segment is gone", lambda: not site.segments())
    act(site, client)
    site.start_store()


def away_and_kill(site: MooncakeSite, client: MooncakeClient, act: Act) -> None:
    """While no daemon is there."""
    site.kill_daemon()
    act(site, client)
    site.kill_store()
    site.start_store()
    site.start_daemon(wait=False)


def away(site: MooncakeSite, client: MooncakeClient, act: Act) -> None:
    """While no daemon is there, and the store lives until it is back."""
    site.kill_daemon()
    act(site, client)
    site.start_daemon()
    site.kill_store()
    site.start_store()


MOMENTS = [act_and_kill, act_and_stop, kill_and_act, kill_wait_and_act, away_and_kill, away]


REFUSED = {(kill_wait_and_act, rewrite), (kill_wait_and_act, rewrite_longer)}
"""There is no segment to write to, and the client is told: so the block that waits is not over."""


def check(
    site: MooncakeSite, act: Act, moment: Callable[[MooncakeSite, MooncakeClient, Act], None]
) -> None:
    site.start()
    site.start_daemon()
    client = site.client()
    client.put_all(KEPT + GONE)
    site.snapd.snapshot()
    before = site.status()["store"]["boot_id"]
    with case(FaultClass.KILL, f"Mooncake store: {act.__name__} and {moment.__name__}"):
        moment(site, client, act)
        client.close()

        def settled() -> bool:
            if site.snapd.ask("/healthz")[0] != 200:
                return False
            store = site.status()["store"]
            ready = site.snapd.ask("/readyz")[0] == 200
            return ready and store.get("settled", False) and store["boot_id"] != before

        site.until("attached and put back", settled)
        time.sleep(0.3)
        found = site.client().read(KEPT + GONE, (1, 2))
        old = [key for key in GONE if found[key] not in (MISSING, 2)]
        assert not old, f"{len(old)} came back: {old[:5]}"
        assert all(found[key] in (MISSING, 1) for key in KEPT)


def test_what_is_removed_just_before_a_death_does_not_come_back(site: MooncakeSite) -> None:
    check(site, remove, act_and_kill)
    # Nothing else was lost: the dead segment was still listed, so it is known what was removed.
    assert set(site.client().read(KEPT).values()) == {1}


@pytest.mark.long
@pytest.mark.parametrize(
    ("moment", "act"),
    [(moment, act) for moment in MOMENTS for act in ACTS if (moment, act) not in REFUSED],
)
def test_what_is_over_does_not_come_back(
    site: MooncakeSite,
    act: Act,
    moment: Callable[[MooncakeSite, MooncakeClient, Act], None],
) -> None:
    check(site, act, moment)
