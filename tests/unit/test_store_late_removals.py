"""Removals that the daemon does not make durable in time: said, not lost, and not waited for long.

The daemon here is one whose disk does not work: it takes its events and acknowledges nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fault_ledger import FaultClass, case
from store_kit import (
    Daemon,
    LocalStore,
    StoreClient,
    checksum_of,
    column,
    content,
    key_batch,
    shared_memory_path,
)

from snapd.blocks import KeyColumn
from snapd.formats.segment import SlotState
from snapd.store import removals
from snapd.store.answers import REMOVAL_ACK_LATE_SECONDS, REMOVAL_ACK_SECONDS
from snapd.store.events import NO_SLOT
from snapd.store.keys import PaddedKeys
from snapd.wire import messages as m
from snapd.wire.codes import ReturnCode

OK, MISSING, LATE = ReturnCode.OK, ReturnCode.OBJECT_NOT_FOUND, ReturnCode.WRITE_FAIL


@pytest.fixture
def store() -> Iterator[LocalStore]:
    with shared_memory_path() as path:
        local = LocalStore(path)
        yield local
        local.close()


def codes_of(reply: Any) -> list[int]:
    values: list[int] = column(reply.codes, np.int32).tolist()
    return values


def removal(*keys: bytes) -> m.Remove:
    return m.Remove(key_batch(list(keys)))


def removed_in(events: m.Events) -> set[bytes]:
    kinds = column(events.kinds, np.uint8)
    keys = m.decode_keys(events.keys).to_list() if len(kinds) else []
    pairs = zip(kinds.tolist(), keys, strict=True)
    return {key for kind, key in pairs if kind == m.EventKind.REMOVED}


def waits(store: LocalStore, client: StoreClient, request: m.Request, seconds: float) -> Any:
    """The reply, which must come after that time and not before."""
    assert store.send(client.connection, request) is None
    store.advance(seconds * 0.9)
    assert client.connection not in store.replies
    store.advance(seconds * 0.2)
    return store.replies.pop(client.connection)


def end_of_upsert(client: StoreClient, key: bytes, value: bytes) -> m.PutEnd:
    codes, slots, sequences, offsets = client.reserve([key], [len(value)], upsert=True)
    assert not codes.any()
    client.write(int(offsets[0]), value)
    return m.PutEnd(
        slots.astype(np.uint32).tobytes(),
        sequences.astype(np.uint64).tobytes(),
        np.array([checksum_of(value)], np.uint64).tobytes(),
    )


def test_each_kind_of_removal_says_that_it_is_not_durable(store: LocalStore) -> None:
    daemon, client = Daemon(store), store.client()
    daemon.events()
    old, new = content(1, 5000), content(2, 5000)
    client.put({b"removed": old, b"replaced": old, b"leased": old, b"rest": old})
    client.get([b"leased"])
    with case(FaultClass.FULL, "no acknowledgement: remove"):
        reply = waits(store, client, removal(b"removed", b"absent", b"leased"), REMOVAL_ACK_SECONDS)
        assert codes_of(reply) == [LATE, LATE, ReturnCode.OBJECT_HAS_LEASE]
        assert client.get([b"removed"]) == [None], "it stands in memory"
    with case(FaultClass.FULL, "no acknowledgement: upsert"):
        reply = waits(
            store, client, end_of_upsert(client, b"replaced", new), REMOVAL_ACK_LATE_SECONDS
        )
        assert codes_of(reply) == [LATE]
        assert client.get([b"replaced"]) == [new]
    with case(FaultClass.FULL, "no acknowledgement: upsert of a key that no slot holds"):
        reply = waits(store, client, end_of_upsert(client, b"new", new), REMOVAL_ACK_LATE_SECONDS)
        assert codes_of(reply) == [LATE]
    with case(FaultClass.FULL, "no acknowledgement: remove_all"):
        reply = waits(store, client, m.RemoveAll(True), REMOVAL_ACK_LATE_SECONDS)
        assert isinstance(reply, m.Failure)
        assert reply.code == LATE
    assert client.get([b"rest"]) == [None]


def test_who_comes_while_the_daemon_is_late_waits_a_moment_until_it_is_back(
    store: LocalStore,
) -> None:
    daemon, client, other = Daemon(store), store.client(), store.client()
    daemon.events()
    with case(FaultClass.FULL, "no acknowledgement: those who come later"):
        client.put({b"k%d" % n: content(n, 500) for n in range(9)})
        assert codes_of(waits(store, client, removal(b"k0"), REMOVAL_ACK_SECONDS)) == [LATE]
        for key in (b"k1", b"k2"):
            assert codes_of(waits(store, client, removal(key), REMOVAL_ACK_LATE_SECONDS)) == [LATE]
        assert client.put({b"more": content(1, 900)}) == {b"more": OK}, "puts do not wait"
        assert client.get([b"more"]) == [content(1, 900)]
        assert store.send(client.connection, removal(b"k3")) is None
        batch = daemon.events()
        daemon.events(batch.number)  # the disk works again
        batch = daemon.events()
        daemon.events(batch.number)
        assert codes_of(store.replies.pop(client.connection)) == [OK]
        assert codes_of(waits(store, other, removal(b"k4"), REMOVAL_ACK_SECONDS)) == [LATE]
    assert not (store.blocks.book.state == SlotState.REMOVED).sum() > 1


@pytest.mark.parametrize("same_daemon", [True, False])
def test_a_late_removal_of_a_key_that_no_slot_holds_is_told_to_the_next_daemon(
    store: LocalStore, same_daemon: bool
) -> None:
    daemon, client = Daemon(store), store.client()
    daemon.events()
    with case(FaultClass.FULL, f"no acknowledgement, then a daemon again: same {same_daemon}"):
        assert codes_of(waits(store, client, removal(b"evicted"), REMOVAL_ACK_SECONDS)) == [LATE]
        daemon.events()
        assert store.send(client.connection, removal(b"more")) is None
        store.drop(daemon)
        store.collect()
        assert codes_of(store.replies.pop(client.connection)) == [LATE], "only memory holds it"
        daemon = Daemon(store, b"daemon" if same_daemon else b"another")
        batch = daemon.events()
        assert removed_in(batch) == {b"evicted", b"more"}
        assert set(column(batch.slots, np.uint32).tolist()) == {NO_SLOT}
        daemon.events(batch.number)
        assert not len(daemon.events().kinds)


def test_a_remove_all_does_not_answer_for_what_was_sent_and_not_made_durable(
    store: LocalStore,
) -> None:
    daemon, first, second = Daemon(store), store.client(), store.client()
    third = store.client()
    client = store.client()
    client.put({b"sent": b"1", b"queued": b"2"})
    daemon.events()
    with case(FaultClass.FULL, "no acknowledgement: remove_all behind a batch that was sent"):
        assert store.send(first.connection, removal(b"sent")) is None
        batch = daemon.events()
        assert store.send(second.connection, removal(b"queued")) is None
        assert store.send(third.connection, m.RemoveAll(True)) is None
        daemon.events()  # asks again, because it could not journal the batch
        assert not store.replies.keys() & {c.connection for c in (first, second, third)}
        daemon.events(batch.number)
        assert codes_of(store.replies.pop(first.connection)) == [OK]
        assert not store.replies.keys() & {c.connection for c in (second, third)}
        batch = daemon.events()
        assert column(batch.kinds, np.uint8).tolist() == [m.EventKind.REMOVE_ALL]
        daemon.events(batch.number)
        assert codes_of(store.replies.pop(second.connection)) == [OK]
        assert isinstance(store.replies.pop(third.connection), m.Count)


def test_removals_that_wait_take_bounded_memory(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(removals, "SLOTLESS_EVENTS_MAX", 50)
    daemon, client = Daemon(store), store.client()
    daemon.events()
    client.put({b"resident": b"1"})
    with case(FaultClass.FULL, "no acknowledgement: very many removals of unknown keys"):
        reply = waits(store, client, removal(b"a"), REMOVAL_ACK_SECONDS)
        assert codes_of(reply) == [LATE]
        many = [b"m%d" % n for n in range(60)]
        reply = waits(store, client, removal(*many), REMOVAL_ACK_LATE_SECONDS)
        assert codes_of(reply) == [LATE] * 60
        store.advance(1.5)
        assert store.blocks.segment.epoch == 1
        assert client.get([b"resident"]) == [b"1"]
        batch = daemon.events()
        assert m.EventKind.REMOVE_ALL in column(batch.kinds, np.uint8).tolist()
        assert len(batch.kinds) < 60


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("killed", [False, True])
def test_what_an_upsert_replaced_while_no_daemon_was_there_is_told_to_the_next_one(
    store: LocalStore, killed: bool, held: bool
) -> None:
    """The disk may have a version of the key, and the new one may be evicted before a daemon
    comes: then the old one must not be registered again."""
    client = store.client()
    new = content(1, 5000)
    if held:
        client.put({b"evicted": content(2, 5000), b"kept": content(2, 5000)})
    name = f"upsert without a daemon, eviction, then a daemon: {killed=} {held=}"
    with case(FaultClass.KILL, name):
        assert client.put({b"evicted": new, b"kept": new}, upsert=True) == {
            b"evicted": 0,
            b"kept": 0,
        }
        sequences = client.slots()["sequence"]
        column_of = KeyColumn.from_list([b"evicted"])
        evicted = store.blocks.find(PaddedKeys(column_of, column_of.hashes()))
        newest = int(store.blocks.book.records["sequence"][evicted[0]])
        store.blocks.drop(evicted)
        if killed:
            store.restart()
            client = store.client()
        assert client.get([b"evicted", b"kept"]) == [None, new]
        daemon = Daemon(store)
        batch = daemon.events()
        assert removed_in(batch) == {b"evicted", b"kept"}
        keys = m.decode_keys(batch.keys).to_list()
        told = dict(zip(keys, column(batch.sequences, np.uint64).tolist(), strict=True))
        # Versions below these are gone, and the new ones are not among them.
        assert newest - 2 <= told[b"evicted"] <= newest
        assert told[b"kept"] <= int(sequences.max())
        codes, _, _ = daemon.register({b"evicted": new})
        assert codes.tolist() != [OK], "before it is journaled the old one is not taken"
        daemon.events(batch.number)
        assert not len(daemon.events().kinds)
        assert client.get([b"kept"]) == [new]
