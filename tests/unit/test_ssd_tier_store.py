"""The SSD tier inside the store: a block that is on disk stays, cold, when it is evicted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from store_kit import Daemon, LocalStore, column, content, key_batch, shared_memory_path

from snapd.formats.segment import SlotState
from snapd.wire import messages as m
from snapd.wire.codes import ReturnCode

MISSING = ReturnCode.OBJECT_NOT_FOUND
BLOCK = 60_000
"""Seventeen of them fill the store of a megabyte."""


@pytest.fixture
def store() -> Iterator[LocalStore]:
    with shared_memory_path() as path:
        local = LocalStore(path, lease_sec=1.0)
        yield local
        local.close()


def tier(store: LocalStore, daemon_id: bytes = b"daemon") -> Daemon:
    """A daemon that offloads."""
    daemon = Daemon(store, daemon_id)
    daemon.call(m.ColdReady(offload=True), m.Codes)
    return daemon


def blocks(name: str, count: int) -> dict[bytes, bytes]:
    return {f"{name}{n}".encode(): content(hash(name) % 1000 + n, BLOCK) for n in range(count)}


def held(store: LocalStore, keys: Any) -> tuple[Any, Any]:
    """Slots and sequences of keys."""
    reply = store.client().call(m.Query(key_batch(list(keys))), m.Located)
    return column(reply.slots, np.uint32), column(reply.sequences, np.uint64)


def mark(daemon: Daemon, slots: Any, sequences: Any, epoch: int = 0) -> list[int]:
    request = m.MarkDurable(slots.tobytes(), sequences.tobytes(), epoch)
    codes: list[int] = column(daemon.call(request, m.Codes).codes, np.int32).tolist()
    return codes


def states(store: LocalStore, slots: Any) -> set[SlotState]:
    return {SlotState(state) for state in store.blocks.book.state[slots].tolist()}


def push_out(store: LocalStore, name: str = "push") -> None:
    """Put so much that everything before it has to go."""
    store.advance(2.0)
    for key, value in blocks(name, 20).items():
        assert store.client().put({key: value}) == {key: 0}
        store.advance(2.0)


def test_an_evicted_block_that_is_on_disk_stays_in_its_slot(store: LocalStore) -> None:
    daemon, client, kept = tier(store), store.client(), blocks("k", 4)
    client.put(kept)
    slots, sequences = held(store, kept)
    assert mark(daemon, slots, sequences) == [0] * 4
    push_out(store)
    assert states(store, slots) == {SlotState.COLD}
    assert client.exist(list(kept)) == [1] * 4
    assert client.sizes(list(kept)) == [BLOCK] * 4
    assert [part.tolist() for part in held(store, kept)] == [slots.tolist(), sequences.tolist()]
    assert client.put(kept) == dict.fromkeys(kept, 0), "there already: nothing is put again"
    assert states(store, slots) == {SlotState.COLD}
    assert client.stats().offloaded == 4
    assert client.stats().cold_blocks == 4
    assert not [keys for kind, keys in store.events if set(keys) & set(kept)], "they did not leave"
    record = store.blocks.book.records[slots]
    assert (store.client().view.read_slots(slots.astype(np.int64))[0] == record).all()


def test_it_comes_back_and_goes_again(store: LocalStore) -> None:
    daemon, client, kept = tier(store), store.client(), blocks("k", 2)
    client.put(kept)
    mark(daemon, *held(store, kept))
    for name in ("first", "second", "third"):
        push_out(store, name)
        assert store.send(client.connection, m.GetStart(key_batch(list(kept)), 2000)) is None
        slots, sequences = daemon.wanted()
        assert sorted(zip(slots, sequences, strict=True)) == sorted(
            zip(*held(store, kept), strict=True)
        )
        names = store.segment.mapping.keys_of(store.blocks.book.records[slots]).to_list()
        assert daemon.fill((slots, sequences), [kept[name] for name in names]) == [0, 0]
        store.collect()
        assert client.get(list(kept)) == list(kept.values())
    assert client.stats().offloaded == 6


def test_without_it_an_evicted_block_is_a_miss(store: LocalStore) -> None:
    daemon, client, kept = Daemon(store), store.client(), blocks("k", 4)
    daemon.ready()
    client.put(kept)
    mark(daemon, *held(store, kept))
    push_out(store)
    assert client.exist(list(kept)) == [0] * 4
    assert client.stats().offloaded == 0


def test_a_block_that_is_not_on_disk_is_a_miss(store: LocalStore) -> None:
    daemon, client, kept, lost = tier(store), store.client(), blocks("k", 2), blocks("l", 2)
    client.put(kept | lost)
    mark(daemon, *held(store, kept))
    push_out(store)
    assert client.exist([*kept, *lost]) == [1, 1, 0, 0]


def test_what_changed_since_it_was_written_is_not_on_disk(store: LocalStore) -> None:
    """Replaced, removed and put again, kept over a remove-all, or taken back by the daemon."""
    daemon, client = tier(store), store.client()
    names = [b"replaced", b"again", b"kept", b"taken"]
    client.put({name: content(1, BLOCK) for name in names})
    slots, sequences = held(store, names)
    assert mark(daemon, slots, sequences) == [0] * 4
    client.put({b"replaced": content(2, BLOCK)}, upsert=True)
    client.remove([b"again"], force=True)
    client.put({b"again": content(1, BLOCK)})
    daemon.call(m.DropCold(slots[3:].tobytes(), sequences[3:].tobytes()), m.Codes)
    now, versions = held(store, names)
    assert mark(daemon, slots[:2], sequences[:2]) == [MISSING, MISSING]
    assert not store.blocks.durable[now[[0, 1, 3]]].any()
    client.exist([b"kept"])
    assert client.remove_all() == 3, "the one that is leased stays"
    assert not store.blocks.durable[now].any()
    assert mark(daemon, now[2:3], versions[2:3], 0) == [MISSING], "it had not heard of that"
    assert mark(daemon, now[2:3], versions[2:3], 1) == [0]
    store.advance(2.0)
    push_out(store)
    assert client.exist(names) == [0, 0, 1, 0]


def test_a_cold_block_is_removed_and_replaced_like_any_other(store: LocalStore) -> None:
    daemon, client, kept = tier(store), store.client(), blocks("k", 3)
    client.put(kept)
    mark(daemon, *held(store, kept))
    push_out(store)
    assert client.remove([b"k0"]) == [0]
    assert client.put({b"k1": b"new"}, upsert=True) == {b"k1": 0}
    batch = daemon.events()
    assert m.decode_keys(batch.keys).to_list() == [b"k0", b"k1"], "both are told to the disk"
    daemon.events(batch.number)
    assert client.exist(list(kept)) == [0, 1, 1]
    assert client.get([b"k1"]) == [b"new"]


def test_the_next_daemon_has_to_say_it_again(store: LocalStore) -> None:
    daemon, client, kept = tier(store), store.client(), blocks("k", 4)
    client.put(kept)
    mark(daemon, *held(store, kept))
    push_out(store)
    store.drop(daemon)
    assert client.exist(list(kept)) == [0] * 4, "nobody can load them"
    more, lost = blocks("m", 1), blocks("l", 1)
    client.put(more | lost)
    first = Daemon(store)
    assert mark(first, *held(store, lost)) == [0]
    store.drop(first)
    second = Daemon(store, b"second")
    codes, _, _ = second.register({b"k0": kept[b"k0"], b"m0": more[b"m0"]})
    assert codes.tolist() == [0, ReturnCode.OBJECT_ALREADY_EXISTS]
    second.call(m.ColdReady(offload=True), m.Codes)
    assert client.exist(list(kept)) == [1, 0, 0, 0], "its packs have only one of them"
    push_out(store, "more")
    assert client.exist([b"m0"]) == [1], "resident and on disk, by its registration"
    assert client.exist([b"l0"]) == [0], "the one before had it on disk"
    third = Daemon(store, b"second")
    assert client.exist([b"k0"]) == [1], "the same daemon on another connection"
    store.drop(third)


def test_they_go_cold_while_the_daemon_is_away_and_are_removed_durably(store: LocalStore) -> None:
    daemon, client, kept = tier(store), store.client(), blocks("k", 2)
    client.put(kept)
    slots, sequences = held(store, kept)
    mark(daemon, slots, sequences)
    store.drop(daemon)
    push_out(store)
    assert states(store, slots) == {SlotState.COLD}
    assert client.remove([b"k0"]) == [0]
    second = Daemon(store, b"second")
    assert m.decode_keys(second.events().keys).to_list() == [b"k0"]
    codes, _, _ = second.register(kept)
    assert codes.tolist() == [ReturnCode.OBJECT_ALREADY_EXISTS, 0]


@pytest.mark.parametrize("leased", [False, True])
def test_no_put_fails_because_cold_blocks_have_the_slots(leased: bool) -> None:
    """A table of 64 slots. The coldest make room; with a lease on every one, too."""
    with shared_memory_path() as path:
        store = LocalStore(path, lease_sec=100.0, segment_blocks_max=64, eviction_ratio=0.01)
        daemon, client = tier(store), store.client()
        for number in range(60):
            value = {b"k%02d" % number: content(number, 25_000)}
            assert set(client.put(value).values()) == {0}
            mark(daemon, *held(store, value))
            store.advance(200.0)
        names = [b"k%02d" % number for number in range(60)]
        assert client.exist(names) == [1] * 60
        if not leased:
            store.advance(200.0)
        for number in range(10):
            name = b"n%02d" % number
            assert client.put({name: b"small"}) == {name: 0}
            assert client.exist([name]) == [1], "a lease on this one, too"
        assert client.exist([b"n%02d" % number for number in range(10)]) == [1] * 10
        there = client.exist(names)
        assert there == sorted(there), "not the coldest went first"
        assert 0 in there
        store.close()


def test_cold_slots_make_room_before_blocks_in_memory_lose_theirs() -> None:
    """Slots and memory run short at once: what is on disk keeps its slot if cold ones suffice."""
    with shared_memory_path() as path:
        store = LocalStore(path, lease_sec=1.0, segment_blocks_max=64, eviction_ratio=0.01)
        daemon, client = tier(store), store.client()
        for number in range(100):
            value = {b"k%03d" % number: content(number, BLOCK)}
            assert set(client.put(value).values()) == {0}
            mark(daemon, *held(store, value))
            store.advance(2.0)
        served = client.exist([b"k%03d" % number for number in range(100)])
        assert served == sorted(served)
        assert served.count(1) >= 62
        store.close()


def test_a_killed_store_finds_them_cold_and_serves_them_once_registered(
    store: LocalStore,
) -> None:
    daemon, kept = tier(store), blocks("k", 4)
    store.client().put(kept)
    slots, sequences = held(store, kept)
    mark(daemon, slots, sequences)
    push_out(store)
    store.restart()
    client = store.client()
    assert states(store, slots) == {SlotState.COLD}
    assert client.exist(list(kept)) == [0] * 4
    assert store.blocks.counters.corrupt == 0
    again = Daemon(store)
    codes, same, versions = again.register(kept)
    assert not codes.any()
    assert (same.tolist(), versions.tolist()) == (slots.tolist(), sequences.tolist())
    again.ready()
    assert client.exist(list(kept)) == [1] * 4


def test_a_large_block_pushes_them_out_of_its_way(store: LocalStore) -> None:
    daemon, client, kept = tier(store), store.client(), blocks("k", 12)
    client.put(kept)
    mark(daemon, *held(store, kept))
    store.advance(2.0)
    assert client.put({b"large": content(1, 900_000)}) == {b"large": 0}
    assert client.exist(list(kept)) == [1] * 12
