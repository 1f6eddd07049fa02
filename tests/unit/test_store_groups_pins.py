"""How the store keeps blocks that callers asked it to keep: groups, soft pins and hard pins."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from store_kit import (
    Daemon,
    LocalStore,
    StoreClient,
    checksum_of,
    key_batch,
    shared_memory_path,
    unpack_reserved,
)

from snapd.blocks import Pin, hash_keys
from snapd.store.groups import GroupUse, with_their_groups
from snapd.wire import messages as m
from snapd.wire.codes import ReturnCode

SIZE = 40_000
INVALID = int(ReturnCode.INVALID_PARAMS)


@pytest.fixture
def store() -> Iterator[LocalStore]:
    with shared_memory_path() as path:
        local = LocalStore(path, lease_sec=5.0)
        yield local
        local.close()


def put_in_groups(client: StoreClient, groups: dict[bytes, int], **options: object) -> list[int]:
    codes = client.put_at_once(
        dict.fromkeys(groups, b"x" * SIZE),
        groups=np.array(list(groups.values()), np.uint32).tobytes(),
        **options,
    )
    return list(codes.values())


def fill(store: LocalStore, client: StoreClient, count: int, start: int = 0) -> None:
    """Put so many blocks without a group, one after another; they evict the oldest."""
    for number in range(start, start + count):
        client.put({b"filler %d" % number: b"y" * SIZE})
        store.advance(1)


def test_reading_one_block_of_a_group_keeps_the_others(store: LocalStore) -> None:
    client = store.client()
    put_in_groups(client, {b"page_k": 7, b"page_v": 7, b"alone_k": 0, b"alone_v": 0})
    store.advance(1)
    fill(store, client, 10)
    client.get([b"page_k", b"alone_k"])
    store.advance(20)
    fill(store, client, 12, start=10)
    assert client.exist([b"page_k", b"page_v", b"alone_k", b"alone_v"]) == [1, 1, 1, 0]


def test_a_group_is_evicted_as_a_whole(store: LocalStore) -> None:
    client = store.client()
    names = [b"%d_%d" % (group, part) for group in range(1, 5) for part in range(4)]
    for part in range(4):  # in turns, so that only the group puts its blocks next to each other
        put_in_groups(client, {b"%d_%d" % (group, part): group for group in range(1, 5)})
        store.advance(1)
    for group in range(1, 5):
        client.get([b"%d_1" % group])
        store.advance(10)
    left = []
    for number in range(16):
        fill(store, client, 1, start=number)
        there = client.view.read_slots()[0]["group"]
        left.append([int((there == group).sum()) for group in range(1, 5)])
    assert [counts for counts in left if set(counts) - {0, 4}] == []
    assert left[-1][0] == 0, "the group that was used longest ago went first"
    assert len(names) == 16


def test_two_groups_that_share_a_place_lose_nothing_but_order() -> None:
    use = GroupUse(16)
    groups = np.array([3, 3 + 16, 4, 0, 0], np.uint32)
    use.note(groups[:1], 50.0)
    use.note(groups[3:], 90.0)
    until = np.array([1.0, 2.0, 3.0, 4.0, 95.0])
    assert use.latest(groups, until).tolist() == [50.0, 50.0, 3.0, 4.0, 95.0]
    use.note(groups[:1], 40.0)
    assert use.latest(groups, until)[0] == 50.0, "a use never makes a block older"


def test_without_groups_the_order_is_that_of_the_leases() -> None:
    use = GroupUse(1)
    until = np.array([1.0, 2.0])
    use.note(np.zeros(2, np.uint32), 9.0)
    assert use.latest(np.zeros(2, np.uint32), until) is until


def test_the_rest_of_a_victims_group_goes_with_it() -> None:
    age = np.array([5.0, 1.0, 5.0, 5.0, 5.0, 9.0])
    groups = np.array([2, 1, 2, 3, 0, 2], np.uint32)
    victims = np.array([1, 0])
    assert with_their_groups(victims, age, groups).tolist() == [1, 0, 2]
    assert with_their_groups(np.array([4]), age, groups).tolist() == [4]
    assert with_their_groups(np.empty(0, np.int64), age, groups).tolist() == []


def test_a_key_keeps_its_group_until_it_is_removed(store: LocalStore) -> None:
    client = store.client()
    assert put_in_groups(client, {b"a": 1, b"b": 0}) == [0, 0]
    assert put_in_groups(client, {b"a": 2, b"b": 2, b"c": 2}, upsert=True) == [INVALID, INVALID, 0]
    client.put({b"a": b"newer"}, upsert=True)
    assert put_in_groups(client, {b"a": 1}, upsert=True) == [0]
    assert client.get([b"a"]) == [b"x" * SIZE]
    assert put_in_groups(client, {b"a": 0}, upsert=True) == [INVALID]
    client.remove([b"a"], force=True)
    assert put_in_groups(client, {b"a": 2}, upsert=True) == [0]


def test_a_group_survives_the_store(store: LocalStore) -> None:
    client = store.client()
    put_in_groups(client, {b"page_k": 7, b"page_v": 7})
    client.close()
    store.restart()
    assert put_in_groups(store.client(), {b"page_k": 8}, upsert=True) == [INVALID]


def test_reads_do_not_prolong_a_soft_pin(store: LocalStore) -> None:
    client = store.client()
    client.put({b"pinned": b"x" * SIZE}, pin=int(Pin.SOFT), soft_pin_ttl_ms=10_000)
    for _ in range(3):
        store.advance(3)
        client.get([b"pinned"])
    store.advance(6)
    fill(store, client, 30)
    assert client.exist([b"pinned"]) == [0]


def test_a_block_that_comes_from_disk_does_not_begin_its_soft_pin_anew(store: LocalStore) -> None:
    """As in Mooncake: what was restored is ordinary cache."""
    daemon = Daemon(store)
    registered = m.RegisterCold(
        key_batch([b"pinned"]),
        hash_keys([b"pinned"]).tobytes(),
        np.array([SIZE], np.uint64).tobytes(),
        np.array([checksum_of(b"x" * SIZE)], np.uint64).tobytes(),
        np.zeros(1, np.uint32).tobytes(),
        np.array([Pin.SOFT], np.uint8).tobytes(),
        np.ones(1, np.float32).tobytes(),
    )
    _, slots, sequences, _ = unpack_reserved(daemon.call(registered, m.Reserved))
    daemon.ready()
    _, new, numbers, offsets = daemon.fill_start(slots, sequences)
    daemon.write(int(offsets[0]), b"x" * SIZE)
    assert daemon.fill_end((slots, sequences), (new, numbers), [0]) == [0]
    client = store.client()
    assert client.get([b"pinned"]) == [b"x" * SIZE]
    assert store.blocks.soft_until[int(new[0])] < store.now
    store.advance(10)
    fill(store, client, 30)
    assert client.get([b"pinned"]) == [None]


@pytest.mark.parametrize(("keep", "stays"), [(True, 1), (False, 0)])
def test_an_upsert_keeps_a_soft_pin_as_it_was_or_takes_it_away(
    store: LocalStore, keep: bool, stays: int
) -> None:
    client = store.client()
    client.put({b"pinned": b"x" * SIZE}, pin=int(Pin.SOFT), soft_pin_ttl_ms=60_000)
    store.advance(10)
    client.put({b"pinned": b"z" * SIZE}, upsert=True, keep_pin=keep)
    store.advance(10)
    fill(store, client, 30)
    assert client.exist([b"pinned"]) == [stays]
    store.advance(20)
    fill(store, client, 30, start=30)
    assert client.exist([b"pinned"]) == [0], "its time began with the first put"


def test_an_upsert_does_not_take_a_hard_pin_away(store: LocalStore) -> None:
    client = store.client()
    client.put({b"pinned": b"x" * SIZE}, pin=int(Pin.HARD))
    client.put({b"pinned": b"z" * SIZE}, upsert=True)
    store.advance(10)
    fill(store, client, 40)
    assert client.get([b"pinned"]) == [b"z" * SIZE]
