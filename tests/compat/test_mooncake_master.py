"""The real master and store service do what our questions and `life.py` count on."""

from __future__ import annotations

import itertools
import json
import os
import signal
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from fault_ledger import FaultClass, case
from mooncake_site import MISSING, MooncakeClient, MooncakeSite, content

from snapd.attach.mooncake.counters import Counters
from snapd.attach.mooncake.files import SegmentFile, create_segment_file
from snapd.attach.mooncake.life import Activity, same_life
from snapd.attach.mooncake.master import Locations, MasterAdmin, MasterSegment
from snapd.attach.mooncake.service import StoreService
from snapd.blocks import KeyColumn
from snapd.errors import SegmentError, StoreUnavailableError

SIZE = 32 << 20
BLOCK = 65536
KEYS = itertools.count()


@dataclass
class Mounts:
    """A site whose stores have a file each."""

    site: MooncakeSite
    admin: MasterAdmin
    services: list[StoreService]
    files: list[SegmentFile]
    ids: list[tuple[str, ...]]

    def segment(self, index: int) -> MasterSegment:
        return next(s for s in self.admin.segments() if s.segment_id in self.ids[index])

    def locate(self, keys: list[str]) -> Locations:
        ours = [self.segment(index) for index in range(len(self.ids))]
        return self.admin.locate(KeyColumn.from_list([key.encode() for key in keys]), ours)

    def bytes_of(self, keys: list[str]) -> list[bytes]:
        """What our files hold where the master says that the keys are."""
        at = self.locate(keys)
        assert at.found.all()
        spans = zip(at.segment.tolist(), at.offset.tolist(), at.size.tolist(), strict=True)
        return [self.files[n].data[start : start + size].tobytes() for n, start, size in spans]


@contextmanager
def mounted(directory: Path, stores: int = 1, **options: object) -> Iterator[Mounts]:
    with ExitStack() as stack:
        site = stack.enter_context(MooncakeSite(directory, stores=stores, **options))
        site.start()
        admin = stack.enter_context(closing(MasterAdmin(site.admin)))
        mounts = Mounts(site, admin, [], [], [])
        for index in range(stores):
            service = stack.enter_context(closing(StoreService(site.store_url(index))))
            file = create_segment_file(site.stem, SIZE, group_shared=False)
            stack.enter_context(closing(file))
            mounts.services.append(service)
            mounts.files.append(file)
            mounts.ids.append(service.mount(file.name, SIZE).segment_ids)
        yield mounts


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounts]:
    with mounted(tmp_path_factory.mktemp("site"), stores=2) as mounts:
        yield mounts


@pytest.fixture(scope="module")
def client(real: Mounts) -> MooncakeClient:
    return real.site.client()


def fresh(count: int = 1) -> list[str]:
    return [f"key-{next(KEYS)}" for _ in range(count)]


def put(client: MooncakeClient, count: int = 1) -> list[str]:
    keys = fresh(count)
    client.put_all(keys, 1, BLOCK)
    return keys


# --- what counts ----------------------------------------------------------------------------------

REMOVED = {"may_have_removed", "may_have_moved"}
UNSEEN = REMOVED | {"may_have_removed_unseen"}
REWRITTEN = REMOVED | {"may_have_rewritten", "may_have_added"}

Act = Callable[[Mounts, MooncakeClient, list[str]], object]


def post_remove_all(real: Mounts, _client: MooncakeClient, _keys: list[str]) -> None:
    target = f"http://{real.site.admin}/api/v1/remove_all"
    request = urllib.request.Request(target, data=b"", method="POST")
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert json.loads(answer.read())["success"]


def start_put(_real: Mounts, client: MooncakeClient, _keys: list[str]) -> None:
    assert client.call("batch_put_session_start", fresh(), [BLOCK]) == [0]


def revoke_put(_real: Mounts, client: MooncakeClient, _keys: list[str]) -> None:
    keys = fresh()
    assert client.call("batch_put_session_start", keys, [BLOCK]) == [0]
    assert client.call("batch_put_session_revoke", keys) == [0]


def move(real: Mounts, client: MooncakeClient, keys: list[str]) -> None:
    here = int(real.locate(keys).segment[0])
    there = real.segment(1 - here).endpoint
    assert client.call("create_move_task", keys[0], real.segment(here).endpoint, there)[1] == 0
    real.site.until("it moved", lambda: int(real.locate(keys).segment[0]) == 1 - here)


ACTIONS: dict[str, tuple[Act, set[str]]] = {
    "nothing": (lambda real, client, keys: None, set()),
    "readers": (lambda real, client, keys: (client.read(keys), client.exist(keys)), set()),
    "our own questions": (lambda real, client, keys: (real.locate(keys), real.admin.keys()), set()),
    "put": (lambda real, client, keys: put(client), {"may_have_added"}),
    "put one by one": (
        lambda real, client, keys: client.do("put", keys=fresh(2), version=1, size=BLOCK),
        {"may_have_added"},
    ),
    "put of a known key": (lambda real, client, keys: client.put(keys, 2, BLOCK), set()),
    "a put that only starts": (start_put, set()),
    "a put that is taken back": (revoke_put, set()),
    "upsert in place": (lambda real, client, keys: client.upsert(keys, 2, BLOCK), REWRITTEN),
    "upsert in place, one by one": (
        lambda real, client, keys: client.do("upsert", keys=keys, version=2, size=BLOCK),
        REWRITTEN,
    ),
    "upsert of another size": (
        lambda real, client, keys: client.upsert(keys, 2, BLOCK // 2),
        REMOVED | {"may_have_added"},
    ),
    "upsert of a new key": (
        lambda real, client, keys: client.upsert(fresh(), 2, BLOCK),
        {"may_have_added"},
    ),
    "remove": (lambda real, client, keys: client.remove(keys, force=True), REMOVED),
    "remove of an unknown key": (lambda real, client, keys: client.remove(fresh()), UNSEEN),
    "batch remove": (lambda real, client, keys: client.call("batch_remove", keys, True), REMOVED),
    "remove by regex": (
        lambda real, client, keys: client.remove_by_regex(f"^{keys[0]}$", force=True),
        UNSEEN,
    ),
    "remove by a regex of nothing": (
        lambda real, client, keys: client.remove_by_regex("^nothing$"),
        UNSEEN,
    ),
    "clear": (lambda real, client, keys: client.call("batch_replica_clear", keys, ""), REMOVED),
    "a move": (move, REMOVED),
    "remove all": (
        lambda real, client, keys: client.remove_all(force=True),
        UNSEEN | {"removed_all"},
    ),
    "remove all over HTTP": (post_remove_all, UNSEEN | {"removed_all"}),
}

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


@pytest.mark.parametrize("action", ACTIONS)
def test_the_masters_counters_say_what_was_done(
    action: str, real: Mounts, client: MooncakeClient
) -> None:
    act, expected = ACTIONS[action]
    keys = put(client, 2)
    before = real.admin.counters()
    act(real, client, keys)
    activity = Activity(before, real.admin.counters())
    assert {name for name in PROPERTIES if getattr(activity, name)} == expected
    unseen = ("put of a known key", "a put that only starts", "a put that is taken back")
    if not expected and action not in unseen:
        assert activity.is_quiet
    assert same_life(activity.before, activity.now)


def test_the_first_object_of_a_life_is_no_rewrite_and_an_eviction_no_removal(
    tmp_path: Path,
) -> None:
    with mounted(tmp_path, eviction=(0.5, 0.2), lease_ttl_ms=1) as real:
        client = real.site.client()
        before = real.admin.counters()
        for _ in range(4):
            put(client, 100)
        real.site.until("evicted", lambda: real.admin.counters().evicted > before.evicted)
        activity = Activity(before, real.admin.counters())
        assert activity.evicted
        assert activity.may_have_moved
        assert not activity.may_have_removed
        assert not activity.removed_all


# --- what is listed, and where --------------------------------------------------------------------


def test_the_bytes_are_where_the_master_says(real: Mounts, client: MooncakeClient) -> None:
    keys = put(client, 200)
    assert real.bytes_of(keys) == [content(key, 1, BLOCK) for key in keys]
    assert set(keys) <= {key.decode() for key in real.admin.keys().to_list()}


def test_an_upsert_in_place_has_other_bytes_in_the_same_place(
    real: Mounts, client: MooncakeClient
) -> None:
    keys = put(client, 5)
    before = real.locate(keys)
    assert client.upsert(keys, 2, BLOCK) == [0] * 5
    after = real.locate(keys)
    assert after.segment.tolist() == before.segment.tolist()
    assert after.offset.tolist() == before.offset.tolist()
    assert real.bytes_of(keys) == [content(key, 2, BLOCK) for key in keys]


def test_a_put_under_way_is_not_listed(real: Mounts, client: MooncakeClient) -> None:
    keys = fresh()
    assert client.call("batch_put_session_start", keys, [BLOCK]) == [0]
    assert keys[0].encode() not in real.admin.keys().to_list()
    assert not real.locate(keys).found[0]
    assert client.call("batch_put_session_end", keys) == [0]
    assert keys[0].encode() in real.admin.keys().to_list()
    assert real.locate(keys).found[0]


ODD_KEYS = [
    "p%41",
    "p%",
    "am&p=1",
    "sp ace",
    "pl+us",
    'quo"te',
    "back\\slash",
    "tab\t",
    "cr\r",
    "ctl\x01",
    "nul\0",
    "hash#q?m/sl;semi",
    "<&>{}[]",
    "umlaut-\u00f6",
    "han-\u6f22",
    "emoji-\U0001f600",
    "separator-\u2028",
    "x" * 1024,
]


def test_keys_of_any_characters_are_listed_and_located(
    real: Mounts, client: MooncakeClient
) -> None:
    unaskable = ["com,ma", "y" * 1025]
    with_line_feed = "line\nfeed"
    client.do("put", keys=[*ODD_KEYS, *unaskable, with_line_feed], version=1, size=BLOCK)
    keys = real.admin.keys()
    listed = [key.decode() for key in keys.to_list()]
    assert set(ODD_KEYS) <= set(listed)
    assert not set(unaskable) & set(listed)
    assert keys.unlistable == len(unaskable)
    assert real.bytes_of(ODD_KEYS) == [content(key, 1, BLOCK) for key in ODD_KEYS]
    assert {"line", "feed"} <= set(listed)
    assert real.locate(["line", "feed", *unaskable]).found.tolist()[:3] == [False] * 3
    client.remove([*ODD_KEYS, *unaskable, with_line_feed], force=True)


def test_two_replicas_are_one_key_in_either_segment(real: Mounts, client: MooncakeClient) -> None:
    keys = fresh()
    assert client.put(keys, 1, BLOCK, replica_num=2) == [0]
    column = KeyColumn.from_list([keys[0].encode()])
    for index in (0, 1):
        segment = real.segment(index)
        at = real.admin.locate(column, [segment])
        assert at.segment.tolist() == [0]
        start = int(at.offset[0])
        found = real.files[index].data[start : start + BLOCK].tobytes()
        assert found == content(keys[0], 1, BLOCK)


# --- mounts ---------------------------------------------------------------------------------------


def test_a_mount_that_cannot_be_is_refused_with_the_reason(real: Mounts) -> None:
    before = len(real.admin.segments())
    for name in ("no-such-file", "../etc/hostname", ""):
        with (
            case(FaultClass.NEIGHBOUR, f"a mount of {name!r} in a real store service"),
            pytest.raises(SegmentError, match=r"refused to mount .* \(HTTP [45]00, "),
        ):
            real.services[0].mount(name, SIZE)
    with pytest.raises(SegmentError, match="refused to unmount 1-2"):
        real.services[0].unmount(["1-2"])
    with pytest.raises(SegmentError, match="refused to unmount"):
        real.services[0].unmount(real.ids[1])
    assert len(real.admin.segments()) == before


def test_an_unmount_ends_a_segment_and_its_keys_at_once(
    real: Mounts, client: MooncakeClient
) -> None:
    service = real.services[1]
    with closing(create_segment_file(real.site.stem, SIZE, group_shared=False)) as file:
        ids = service.mount(file.name, SIZE).segment_ids
        segment = next(s for s in real.admin.segments() if s.segment_id in ids)
        assert segment.is_ok
        assert segment.size_bytes == SIZE
        before = real.admin.counters()
        service.unmount(ids)
        assert not any(s.segment_id in ids for s in real.admin.segments())
        activity = Activity(before, real.admin.counters())
        assert activity.segments_changed
        assert not activity.may_have_removed


# --- deaths ---------------------------------------------------------------------------------------


def test_a_dead_store_counts_nothing_and_its_segment_goes(tmp_path: Path) -> None:
    with mounted(tmp_path) as real:
        client = real.site.client()
        keys = put(client, 20)
        before = real.admin.counters()
        with case(FaultClass.KILL, "Mooncake's store service"):
            real.site.kill_store()
            assert not real.services[0].alive()
            assert real.locate(keys).found.all()  # until client_ttl
            real.site.until("the segment is gone", lambda: not real.admin.segments())
            assert len(real.admin.keys()) == 0
            activity = Activity(before, real.admin.counters())
            assert same_life(activity.before, activity.now)
            assert not activity.may_have_removed
            assert not activity.evicted


def test_a_master_that_starts_again_is_another_life_with_the_same_segment(tmp_path: Path) -> None:
    with mounted(tmp_path) as real:
        client = real.site.client()
        keys = put(client, 20)
        before, segment = real.admin.counters(), real.segment(0)
        with case(FaultClass.KILL, "Mooncake's master"):
            real.site.kill_master()
            with pytest.raises(StoreUnavailableError, match="check that mooncake_master runs"):
                real.admin.counters()
            real.site.start_master()
            assert not same_life(before, real.admin.counters())
            real.site.until("the store is back", lambda: bool(real.admin.segments()))
            again = real.segment(0)
            assert again.base_address == segment.base_address
            assert again.used_bytes == 0
            assert len(real.admin.keys()) == 0
            assert set(client.read(keys).values()) == {MISSING}
            # However much is put from now on, the lives are told apart by what only we raise.
            for _ in range(3):
                put(client, 20)
            assert not same_life(before, real.admin.counters())


def test_a_stopped_master_is_too_slow_and_then_goes_on(
    real: Mounts, client: MooncakeClient
) -> None:
    process = real.site.master_process
    assert process is not None
    put(client, 1)
    with closing(MasterAdmin(real.site.admin, timeout_seconds=0.3)) as admin:
        first = admin.counters()
        os.kill(process.pid, signal.SIGSTOP)
        try:
            with (
                case(FaultClass.STOP, "Mooncake's master, a look at its counters"),
                pytest.raises(StoreUnavailableError, match=r"no answer within 0\.3 s"),
            ):
                admin.counters()
        finally:
            os.kill(process.pid, signal.SIGCONT)
        real.site.until("it answers", lambda: real.site.get_admin("/health") is not None)
        assert same_life(first, admin.counters())


def test_a_mount_that_a_stopped_store_did_not_answer_may_happen_later(tmp_path: Path) -> None:
    with mounted(tmp_path) as real:
        process = real.site.stores[0]
        with (
            closing(StoreService(real.site.store_url(), timeout_seconds=0.3)) as service,
            closing(create_segment_file(real.site.stem, SIZE, group_shared=False)) as file,
        ):
            os.kill(process.pid, signal.SIGSTOP)
            try:
                with (
                    case(FaultClass.STOP, "Mooncake's store service in a mount"),
                    pytest.raises(StoreUnavailableError, match="mount_shm"),
                ):
                    service.mount(file.name, SIZE)
                assert not service.alive()
            finally:
                os.kill(process.pid, signal.SIGCONT)
            real.site.until("mounted after all", lambda: len(real.admin.segments()) == 2)
            assert service.alive()


def test_a_store_that_dies_in_a_mount_is_away(tmp_path: Path) -> None:
    with mounted(tmp_path) as real:
        process = real.site.stores[0]
        with (
            case(FaultClass.KILL, "Mooncake's store service in a mount"),
            closing(create_segment_file(real.site.stem, SIZE, group_shared=False)) as file,
        ):
            os.kill(process.pid, signal.SIGSTOP)
            killer = threading.Timer(0.3, process.kill)
            killer.start()
            with pytest.raises(StoreUnavailableError, match="mount_shm"):
                real.services[0].mount(file.name, SIZE)
            killer.join()


def test_counters_are_read_twice_and_never_fall(real: Mounts, client: MooncakeClient) -> None:
    looks: list[Counters] = []
    stop = threading.Event()

    def look() -> None:
        with closing(MasterAdmin(real.site.admin)) as admin:
            while not stop.is_set():
                looks.append(admin.counters())

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        for _ in range(5):
            put(client, 100)
    finally:
        stop.set()
        watcher.join()
    assert len(looks) > 10
    assert all(same_life(one, two) for one, two in itertools.pairwise(looks))
    assert looks[-1].new_objects - looks[0].new_objects <= 500
