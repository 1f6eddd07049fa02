"""Segment files with a real store service on them, and with one that cannot have them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing

import pytest
from fault_ledger import FaultClass, case
from mooncake_site import MooncakeSite, content

from snapd.attach.mooncake.files import create_segment_file, leftover_files, open_segment_file
from snapd.attach.mooncake.master import MasterAdmin
from snapd.attach.mooncake.record import SegmentRecord
from snapd.attach.mooncake.service import StoreService
from snapd.blocks import KeyColumn
from snapd.errors import SegmentError

SIZE = 8 << 20
BLOCK = 60_000


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MooncakeSite]:
    with MooncakeSite(tmp_path_factory.mktemp("site"), stores=3) as site:
        site.start_master()
        yield site


def record_of(service: StoreService, admin: MasterAdmin, ids: tuple[str, ...]) -> SegmentRecord:
    segments = [one for one in admin.segments() if one.segment_id in ids]
    return SegmentRecord(
        store_url=service.url,
        segment_ids=tuple(one.segment_id for one in segments),
        base_addresses=tuple(one.base_address for one in segments),
        sizes=tuple(one.size_bytes for one in segments),
        client_id=segments[0].client_id,
        endpoint=segments[0].endpoint,
        life_id=os.urandom(16),
        counters=dict(admin.counters().values),
        mounted_at=0.0,
    )


def test_a_full_segment_leaves_the_trailer_alone_and_outlives_its_store(site: MooncakeSite) -> None:
    site.start_store(0)
    client = site.client()
    with (
        closing(MasterAdmin(site.admin)) as admin,
        closing(StoreService(site.store_url(0))) as service,
    ):
        file = create_segment_file(site.stem, SIZE, group_shared=False)
        path = file.path
        ids = service.mount(file.name, SIZE).segment_ids
        record = record_of(service, admin, ids)
        file.write_record(record)
        segments = [one for one in admin.segments() if one.segment_id in ids]
        codes = client.put([f"full-{i}" for i in range(200)], 1, BLOCK)
        assert {0} < set(codes)  # it was filled to its end
        keys = admin.keys()
        at = admin.locate(keys, segments)
        # A full segment is evicted from, so some may have left since they were listed.
        assert ((at.segment == 0) == at.found).all()
        assert at.found.sum() > SIZE // BLOCK // 2
        assert int(at.offset.max()) + BLOCK <= SIZE
        file.close()  # the daemon is gone; then the store
        with case(FaultClass.KILL, "Mooncake's store service with a full segment"):
            site.kill_store(0)
            with closing(open_segment_file(path)) as again:
                assert again.record == record
                listed = keys.take(at.found).to_list()
                spans = zip(listed, at.offset[at.found].tolist(), strict=True)
                for key, start in spans:
                    found = again.data[start : start + BLOCK].tobytes()
                    assert found == content(key.decode(), 1, BLOCK)
                again.unlink()


def test_a_name_that_is_gone_takes_nothing_from_a_mounted_segment(site: MooncakeSite) -> None:
    site.start_store(1)
    client = site.client()
    with (
        closing(MasterAdmin(site.admin)) as admin,
        closing(StoreService(site.store_url(1))) as service,
        closing(create_segment_file(site.stem, SIZE, group_shared=False)) as file,
    ):
        ids = service.mount(file.name, SIZE).segment_ids
        segment = next(one for one in admin.segments() if one.segment_id in ids)
        with case(FaultClass.HOSTILE_FILE, "segment file unlinked while it is mounted"):
            os.unlink(file.path)
            assert client.put(["gone"], 1, BLOCK, preferred_segment=segment.endpoint) == [0]
            at = admin.locate(KeyColumn.from_list([b"gone"]), [segment])
            start = int(at.offset[0])
            assert file.data[start : start + BLOCK].tobytes() == content("gone", 1, BLOCK)
            service.unmount(ids)


OTHER_SHARED_MEMORY = [
    *("unshare", "--mount", "--propagation", "private", "sh", "-c"),
    'mount -t tmpfs tmpfs /dev/shm && exec "$@"',
    "sh",
]


def test_a_store_that_does_not_see_our_shared_memory_refuses(site: MooncakeSite) -> None:
    """As in a container that does not share /dev/shm with ours."""
    site.start_store(2, prefix=OTHER_SHARED_MEMORY)
    with (
        case(FaultClass.NEIGHBOUR, "Mooncake's store service has another /dev/shm"),
        closing(StoreService(site.store_url(2))) as service,
        closing(create_segment_file(site.stem, SIZE, group_shared=False)) as file,
    ):
        with pytest.raises(SegmentError, match="check that it has the same directory"):
            service.mount(file.name, SIZE)
        assert service.alive()
        file.unlink()


def test_a_mount_over_the_end_of_a_file_is_refused(site: MooncakeSite) -> None:
    """It would end the store with SIGBUS as soon as it were full."""
    with (
        case(FaultClass.HOSTILE_FILE, "segment file shorter than its mount"),
        closing(StoreService(site.store_url(1))) as service,
        closing(create_segment_file(site.stem, SIZE, group_shared=False)) as file,
    ):
        with pytest.raises(SegmentError, match=f"of {4 * SIZE} bytes"):
            service.mount(file.name, 4 * SIZE)
        assert service.alive()
        file.unlink()


def test_nothing_is_left(site: MooncakeSite) -> None:
    assert leftover_files(site.stem) == []
