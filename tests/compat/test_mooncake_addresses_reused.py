"""Addresses of a real Mooncake store: never used twice in a row, never blocked for good.

A client that was told an address uses it for a while, whatever lies there by then. A mount that
fails on its way to the master leaves its addresses blocked in the store's transfer engine. And what
the master lists may be dead, with the addresses of what lives.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from client_wheel import free_ports
from fault_ledger import FaultClass, case
from mooncake_site import MooncakeSite

from snapd.attach.mooncake.files import create_segment_file
from snapd.attach.mooncake.inventory import Inventory
from snapd.attach.mooncake.layout import Layout, LiveSegment, lay_out
from snapd.attach.mooncake.master import MasterAdmin
from snapd.attach.mooncake.memory import Memory
from snapd.attach.mooncake.mounts import Mounts
from snapd.attach.mooncake.poll import Poll
from snapd.attach.mooncake.service import StoreService
from snapd.attach.mooncake.stores import Life
from snapd.config import load_settings
from snapd.errors import SegmentError, SnapdError, StoreUnavailableError

REUSE_SECONDS = 2.0
PEERS = "P2PHANDSHAKE"


class Owner:
    """The part of a daemon that mounts, without the rest."""

    def __init__(self, site: MooncakeSite) -> None:
        changed = {"mooncake_reuse_sec": REUSE_SECONDS, "mooncake_stores": site.store_url(0)}
        settings = load_settings(None, site.environment(), changed)
        self.site = site
        self.admin = MasterAdmin(site.admin)
        self.mounts = Mounts(settings, self.admin, Memory(), self)
        self.failures: list[str] = []
        """Why files could not be mounted, in their order."""

    def mount_failed(self, reason: str) -> None:
        self.failures.append(reason)

    def mount(self, seconds: float = 20.0) -> LiveSegment:
        """Try until a file is mounted."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                now = self.admin.counters()
                life = Life(bytes(16), since=now, counters=now, is_whole=False)
                self.mounts.mount_missing(life, self.make_room)
                (live,) = self.mounts.stores[0].live
                return live
            except SnapdError:
                assert time.monotonic() < deadline, (self.failures, self.site._logs())
                time.sleep(0.1)

    def make_room(self) -> None:
        self.mounts.drop_old_files()

    def master_dies(self) -> None:
        self.site.kill_master()
        self.site.start_master()
        self.mounts.bury(self.mounts.stores[0])

    def close(self) -> None:
        self.mounts.drop_old_files()
        self.mounts.close()
        self.admin.close()


@contextlib.contextmanager
def owner(site: MooncakeSite) -> Iterator[Owner]:
    one = Owner(site)
    try:
        yield one
    finally:
        one.close()


def overlap(left: LiveSegment, right: LiveSegment) -> bool:
    one, other = left.segment, right.segment
    return (
        one.base_address < other.base_address + other.size_bytes
        and other.base_address < one.base_address + one.size_bytes
    )


def fixed_addresses() -> list[str]:
    """A prefix for store services that have one name and, but for the stacks of their threads, the
    same addresses."""
    (port,) = free_ports(1)
    name = f"MOONCAKE_LOCAL_HOSTNAME=127.0.0.1:{port}"
    return ["env", name, "setarch", "--addr-no-randomize"]


def mount_by_hand(site: MooncakeSite) -> Sequence[str]:
    """Mount a file without looking where it comes to lie; the segments."""
    file = create_segment_file(site.stem, site.segment_bytes, group_shared=False)
    service = StoreService(site.store_url())
    ids = service.mount(file.name, file.size_bytes).segment_ids
    service.close()
    file.close()
    return ids


def test_no_file_lies_where_one_was_just_before(tmp_path: Path) -> None:
    with MooncakeSite(tmp_path, mooncake_metadata=PEERS) as site, owner(site) as daemon:
        site.metadata = PEERS
        site.start()
        lives = [(time.monotonic(), daemon.mount())]
        for _ in range(2):
            with case(FaultClass.KILL, "Mooncake's master killed again and again, addresses"):
                daemon.master_dies()
                lives.append((time.monotonic(), daemon.mount()))
                for (_, old), (_, new) in itertools.pairwise(lives):
                    assert not overlap(old, new), daemon.failures
                for before, _, after in zip(lives, lives[1:], lives[2:], strict=False):
                    # The first of three was unmounted when the second was mounted.
                    near = after[0] - before[0] < REUSE_SECONDS
                    assert not (near and overlap(before[1], after[1])), daemon.failures


@pytest.mark.long
def test_a_mount_that_failed_on_its_way_to_the_master_blocks_a_store_for_a_while_only(
    tmp_path: Path,
) -> None:
    # Larger than what threads may map meanwhile, so that the kernel comes to the same place again.
    site = MooncakeSite(tmp_path, segment_bytes=256 << 20, mooncake_metadata=PEERS)
    with site, owner(site) as daemon:
        site.metadata = PEERS
        site.start()
        first = daemon.mount()
        with case(FaultClass.KILL, "Mooncake's master killed while a segment is mounted"):
            site.kill_master()
            file = create_segment_file(site.stem, site.segment_bytes, group_shared=False)
            with pytest.raises(SegmentError):
                daemon.mounts.stores[0].service.mount(file.name, file.size_bytes)
            file.close()
            site.start_master()
            daemon.mounts.bury(daemon.mounts.stores[0])
            second = daemon.mount()
        # The addresses of the failed mount are refused. What is left is where the first file was,
        # when its time is over, or what is left of that.
        assert "refused" in daemon.failures, "the wheel has been mended: drop what works around it"
        assert "waits" in daemon.failures
        assert second.segment.size_bytes * 2 >= first.segment.size_bytes
        with case(
            FaultClass.KILL, "Mooncake's master killed where addresses of a store are blocked"
        ):
            daemon.master_dies()
            daemon.mount()


@pytest.mark.long
def test_a_dead_segment_at_the_addresses_of_a_new_one_has_another_mounted(tmp_path: Path) -> None:
    fixed = fixed_addresses()
    with (
        MooncakeSite(tmp_path, client_ttl=20, segment_bytes=256 << 20) as site,
        owner(site) as daemon,
    ):
        site.start_master()
        site.start_store(prefix=fixed)
        first = daemon.mount()
        with case(FaultClass.KILL, "Mooncake's store killed, its successor has its addresses"):
            site.kill_store()
            site.start_store(prefix=fixed)
            assert daemon.mounts.stores[0].has_ended()
            daemon.mounts.bury(daemon.mounts.stores[0])
            second = daemon.mount(seconds=5.0)
        assert set(daemon.failures) == {"ambiguous"}
        assert first.segment.endpoint == second.segment.endpoint
        listed = daemon.admin.segments()
        assert first.segment.segment_id in {one.segment_id for one in listed}
        assert not daemon.mounts.layout.is_ambiguous(listed)


def test_a_segment_that_stays_listed_at_our_addresses_has_us_go_elsewhere(tmp_path: Path) -> None:
    fixed = fixed_addresses()
    with MooncakeSite(tmp_path, client_ttl=20, segment_bytes=256 << 20) as site:
        site.start_master()
        site.start_store(prefix=fixed)
        mount_by_hand(site)
        site.kill_store()
        site.start_store(prefix=fixed)
        ids = mount_by_hand(site)
        admin = MasterAdmin(site.admin)
        layout = Layout(lay_out(admin.segments(), ids, 7, 0))
        poll = Poll(admin, Inventory(16), Memory(), lambda: 0, ambiguous_seconds_max=0.5)
        with case(FaultClass.KILL, "Mooncake's store killed, its segment is never forgotten"):
            assert poll.look(layout, {}).is_ambiguous
            assert not poll.forgotten
            time.sleep(0.5)
            with pytest.raises(StoreUnavailableError):
                poll.look(layout, {})
            assert poll.forgotten == {7}
        admin.close()


def test_a_store_that_was_killed_and_started_again_at_once_is_filled_at_once(
    tmp_path: Path,
) -> None:
    with MooncakeSite(tmp_path, client_ttl=20) as site:
        site.start()
        site.start_daemon()
        client = site.client()
        keys = [f"key-{number}" for number in range(100)]
        client.put_all(keys)
        assert site.snapd.snapshot()["blocks"] == len(keys)
        with case(FaultClass.KILL, "Mooncake's store killed and started again between two looks"):
            killed_at = time.monotonic()
            site.kill_store()
            site.start_store()
            site.until(
                "a new file is mounted", lambda: site.snapd.logged("mounted a segment") == 2, 10.0
            )
            assert time.monotonic() - killed_at < 10.0
