"""Cold blocks, loads, pins and events: the store's side of the daemon."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
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

from snapd.blocks import hash_keys
from snapd.formats.segment import SlotState
from snapd.wire import messages as m
from snapd.wire.codes import ReturnCode

EXISTS, MISSING = ReturnCode.OBJECT_ALREADY_EXISTS, ReturnCode.OBJECT_NOT_FOUND
FULL = ReturnCode.NO_AVAILABLE_HANDLE


@pytest.fixture
def store() -> Iterator[LocalStore]:
    with shared_memory_path() as path:
        local = LocalStore(path)
        yield local
        local.close()


BLOCKS = {b"c%d" % n: content(n, 3000 + n) for n in range(5)}


def cold_store(store: LocalStore) -> tuple[Daemon, StoreClient, Any, Any]:
    daemon = Daemon(store)
    codes, slots, sequences = daemon.register(BLOCKS)
    assert not codes.any()
    daemon.ready()
    return daemon, store.client(), slots, sequences


def test_cold_blocks_are_served_from_ready_until_the_daemon_is_gone(store: LocalStore) -> None:
    daemon, client = Daemon(store), store.client()
    daemon.register(BLOCKS)
    assert client.exist(list(BLOCKS)) == [0] * 5
    daemon.ready()
    assert client.exist(list(BLOCKS)) == [1] * 5
    assert client.sizes(list(BLOCKS)) == [len(value) for value in BLOCKS.values()]
    assert client.get(list(BLOCKS)) == [None] * 5, "no wait, no load"
    store.drop(daemon)
    assert client.exist(list(BLOCKS)) == [0] * 5


def test_a_key_with_another_ones_hash_is_another_key(store: LocalStore) -> None:
    daemon, client = Daemon(store), store.client()
    daemon.register({b"aa": b"1", b"longer": b"2", b"d\0": b"3"}, hashed=[b"bb", b"cc", b"d"])
    daemon.ready()
    assert client.exist([b"bb", b"cc", b"d"]) == [0, 0, 0]
    assert client.put({b"bb": b"own"}) == {b"bb": 0}
    assert client.get([b"bb"]) == [b"own"]
    assert client.remove([b"cc"]) == [MISSING]


def test_a_get_waits_for_its_cold_blocks(store: LocalStore) -> None:
    daemon, client, _, _ = cold_store(store)
    client.put({b"warm": b"w"})
    keys = [b"c0", b"warm", b"c3", b"never"]
    request = m.GetStart(key_batch(keys), 2000)
    assert store.send(client.connection, request) is None
    slots, sequences = daemon.wanted()
    assert len(slots) == 2
    assert len(daemon.wanted()[0]) == 0, "asked for once"
    assert daemon.fill((slots[:1], sequences[:1]), [BLOCKS[b"c0"]]) == [0]
    assert client.connection not in store.replies
    assert daemon.fill((slots[1:], sequences[1:]), [BLOCKS[b"c3"]]) == [0]
    reply = store.replies[client.connection]
    assert column(reply.codes, np.int32).tolist() == [0, 0, 0, MISSING]
    assert client.get(keys) == [BLOCKS[b"c0"], b"w", BLOCKS[b"c3"], None]


def test_a_get_that_waited_too_long_is_answered_with_what_is_there(store: LocalStore) -> None:
    daemon, client, _, _ = cold_store(store)
    assert store.send(client.connection, m.GetStart(key_batch([b"c0", b"c1"]), 500)) is None
    slots, sequences = daemon.wanted()
    daemon.fill((slots[:1], sequences[:1]), [BLOCKS[b"c0"]])
    store.advance(0.6)
    codes = column(store.replies[client.connection].codes, np.int32).tolist()
    assert codes == [0, MISSING]
    assert client.stats().loads_waiting == 0


def test_gets_that_wait_are_answered_when_the_daemon_is_gone(store: LocalStore) -> None:
    daemon, client, _, _ = cold_store(store)
    assert store.send(client.connection, m.GetStart(key_batch([b"c0"]), 2000)) is None
    store.drop(daemon)
    assert column(store.replies[client.connection].codes, np.int32).tolist() == [MISSING]


def test_a_load_that_failed_is_a_miss_and_may_forget_the_block(store: LocalStore) -> None:
    daemon, client, _, _ = cold_store(store)
    for key, code, after in ((b"c0", -1, 1), (b"c1", ReturnCode.INVALID_READ, 0)):
        assert store.send(client.connection, m.GetStart(key_batch([key]), 2000)) is None
        cold = daemon.wanted()
        _, slots, sequences, _ = daemon.fill_start(*cold)
        assert daemon.fill_end(cold, (slots, sequences), [code]) == [0]
        assert column(store.replies[client.connection].codes, np.int32).tolist() == [MISSING]
        assert client.exist([key]) == [after]
    assert daemon.fill(cold_of(store, b"c0"), [BLOCKS[b"c0"]]) == [0]


def cold_of(store: LocalStore, key: bytes) -> tuple[Any, Any]:
    records = store.blocks.book.records
    rows = np.flatnonzero(
        (records["state"] == SlotState.COLD) & (records["key_hash"] == hash_keys([key])[0])
    )
    return rows.astype(np.uint32), records["sequence"][rows]


def test_a_connection_that_loads_and_dies_is_replaced_by_another(store: LocalStore) -> None:
    daemon, client, _, _ = cold_store(store)
    second = Daemon(store)
    assert store.send(client.connection, m.GetStart(key_batch([b"c0"]), 9000)) is None
    cold = daemon.wanted()
    daemon.fill_start(*cold)
    store.drop(daemon)
    again = second.wanted()
    assert again[0].tolist() == cold[0].tolist()
    assert second.fill(again, [BLOCKS[b"c0"]]) == [0]
    assert column(store.replies[client.connection].codes, np.int32).tolist() == [0]


def test_a_block_is_filled_by_one_at_a_time(store: LocalStore) -> None:
    daemon, _, slots, sequences = cold_store(store)
    assert daemon.fill_start(slots[:1], sequences[:1])[0].tolist() == [0]
    assert daemon.fill_start(slots[:1], sequences[:1])[0].tolist() == [EXISTS]
    twice = daemon.fill_start(np.repeat(slots[1:2], 2), np.repeat(sequences[1:2], 2))
    assert twice[0].tolist() == [0, EXISTS]
    assert daemon.fill_start(slots[2:3], sequences[2:3] + np.uint64(1))[0].tolist() == [MISSING]


@pytest.mark.parametrize("change", ["remove", "remove_all", "upsert", "drop"])
def test_a_fill_publishes_only_over_the_version_it_was_for(store: LocalStore, change: str) -> None:
    daemon, client, slots, sequences = cold_store(store)
    cold = slots[:1], sequences[:1]
    _, new, new_sequences, offsets = daemon.fill_start(*cold)
    daemon.write(int(offsets[0]), BLOCKS[b"c0"])
    if change == "remove":
        store.send(client.connection, m.Remove(key_batch([b"c0"]), force=True))
    elif change == "remove_all":
        store.send(client.connection, m.RemoveAll(force=True))
    elif change == "upsert":
        client.put({b"c0": b"newer"}, upsert=True)
    else:
        daemon.call(m.DropCold(cold[0].tobytes(), cold[1].tobytes()), m.Codes)
    assert daemon.fill_end(cold, (new, new_sequences), [0]) == [MISSING]
    assert client.get([b"c0"]) == [b"newer" if change == "upsert" else None]


def test_a_put_finds_a_cold_block_only_while_it_can_be_loaded(store: LocalStore) -> None:
    daemon, client, _, _ = cold_store(store)
    assert client.reserve([b"c0"], [3])[0].tolist() == [EXISTS]
    store.drop(daemon)
    assert client.put({b"c0": b"new"}) == {b"c0": 0}
    assert client.get([b"c0"]) == [b"new"]
    daemon = Daemon(store, b"next")
    codes = daemon.register(BLOCKS)[0].tolist()
    assert codes == [EXISTS, 0, 0, 0, 0], "the newer block stays"


def test_a_new_daemon_vouches_only_for_what_it_registers(store: LocalStore) -> None:
    daemon, client, slots, _ = cold_store(store)
    store.drop(daemon)
    daemon = Daemon(store, b"next")
    assert client.exist(list(BLOCKS)) == [0] * 5
    some = dict(list(BLOCKS.items())[:2])
    codes, again, _ = daemon.register(some)
    assert codes.tolist() == [0, 0]
    assert again.tolist() == slots[:2].tolist(), "what it had registered is the same"
    daemon.ready()
    assert client.exist(list(BLOCKS)) == [1, 1, 0, 0, 0]
    store.restart()
    client = store.client()
    assert client.exist(list(BLOCKS)) == [0] * 5, "cold until a daemon is back"


def test_registering_another_version_replaces_the_cold_block(store: LocalStore) -> None:
    daemon, _, _, _ = cold_store(store)
    codes, again, _ = daemon.register({b"c0": b"other"})
    assert codes.tolist() == [0]
    assert store.blocks.book.records["size"][int(again[0])] == 5


def test_registration_stops_at_a_full_slot_table_and_evicts_nothing(store: LocalStore) -> None:
    daemon, client = Daemon(store), store.client()
    client.put({b"warm%d" % n: b"w" for n in range(50)})
    store.advance(60)
    codes = daemon.register({b"c%d" % n: b"x" for n in range(300)})[0]
    assert codes[:206].tolist() == [0] * 206
    assert codes[206:].tolist() == [FULL] * 94
    assert client.exist([b"warm%d" % n for n in range(50)]) == [1] * 50


def test_background_fills_stop_below_the_watermark_and_demand_evicts(store: LocalStore) -> None:
    daemon, client = Daemon(store), store.client()
    client.put({b"warm%d" % n: content(n, 90_000) for n in range(10)})
    blocks = {b"c%d" % n: content(n, 60_000) for n in range(3)}
    _, slots, sequences = daemon.register(blocks)
    daemon.ready()
    store.advance(60)
    codes = daemon.fill_start(slots, sequences, demand=False)[0].tolist()
    assert codes == [0, FULL, FULL]
    assert client.stats().evictions == 0
    assert daemon.fill_start(slots[1:], sequences[1:], demand=True)[0].tolist() == [0, 0]
    assert client.stats().evictions > 0


def test_pinned_blocks_are_not_evicted_until_the_connection_is_gone(store: LocalStore) -> None:
    daemon, client = Daemon(store), store.client()
    client.put({b"k%d" % n: content(n, 90_000) for n in range(5)})
    rows = np.flatnonzero(client.view.slots["state"] == SlotState.PUBLISHED).astype(np.uint32)
    pin = m.PinBlocks(rows.tobytes(), client.view.slots["sequence"][rows].tobytes())
    assert column(daemon.call(pin, m.Codes).codes, np.int32).tolist() == [0] * 5
    store.advance(60)
    assert client.put({b"big": content(9, 800_000)}) == {b"big": FULL}
    unpin = m.UnpinBlocks(rows[:1].tobytes(), client.view.slots["sequence"][rows[:1]].tobytes())
    assert column(daemon.call(unpin, m.Codes).codes, np.int32).tolist() == [0]
    store.drop(daemon)
    assert client.put({b"big": content(9, 800_000)}) == {b"big": 0}


def test_a_removal_is_answered_when_the_daemon_has_journaled_it(store: LocalStore) -> None:
    daemon, client = Daemon(store), store.client()
    client.put({b"a": b"1", b"b": b"2"})
    sequence = {int(s["sequence"]) for s in client.slots()}
    assert client.remove([b"b"]) == [0], "nobody listens yet"
    first = daemon.events()
    assert store.send(client.connection, m.Remove(key_batch([b"a"]))) is None
    assert client.connection not in store.replies
    batch = daemon.events(first.number)
    assert batch.number == first.number + 1
    assert column(batch.kinds, np.uint8).tolist() == [m.EventKind.REMOVED]
    assert m.decode_keys(batch.keys).to_list() == [b"a"]
    assert int(column(batch.sequences, np.uint64)[0]) - 1 in sequence
    assert client.connection not in store.replies
    assert len(column(daemon.events(batch.number).kinds, np.uint8)) == 0
    assert column(store.replies[client.connection].codes, np.int32).tolist() == [0]
    assert client.stats().slots_used == 0, "journaled removals leave their slots"


def test_events_are_given_again_until_they_are_acknowledged(store: LocalStore) -> None:
    daemon, client = Daemon(store), store.client()
    client.put({b"a": b"1"})
    client.remove([b"a"])
    assert daemon.events() == daemon.events()
    store.drop(daemon)
    store.restart()
    daemon = Daemon(store)
    batch = daemon.events()
    assert m.decode_keys(batch.keys).to_list() == [b"a"]
    daemon.events(batch.number)
    store.restart()
    assert len(column(Daemon(store).events().kinds, np.uint8)) == 0


def test_a_daemon_that_hangs_does_not_hold_removals_for_ever(store: LocalStore) -> None:
    daemon, client = Daemon(store), store.client()
    daemon.events()
    client.put({b"a": b"1"})
    assert store.send(client.connection, m.Remove(key_batch([b"a"]))) is None
    store.advance(6)
    codes = column(store.replies[client.connection].codes, np.int32).tolist()
    assert codes == [ReturnCode.WRITE_FAIL], "removed here, and nobody knows for how long"
    client.put({b"b": b"1"})
    assert store.send(client.connection, m.Remove(key_batch([b"b"]))) is None
    store.drop(daemon)
    assert column(store.replies[client.connection].codes, np.int32).tolist() == [0]


def test_a_removed_key_cannot_be_registered_before_its_removal_is_journaled(
    store: LocalStore,
) -> None:
    client = store.client()
    client.put({b"c0": b"1"})
    client.remove([b"c0"])
    daemon = Daemon(store)
    assert daemon.register(BLOCKS)[0].tolist() == [EXISTS, 0, 0, 0, 0]
    batch = daemon.events()
    daemon.events(batch.number)
    assert daemon.register({b"c0": b"1"})[0].tolist() == [0]


def test_remove_all_is_an_event_and_kills_cold_blocks(store: LocalStore) -> None:
    daemon, client, _, _ = cold_store(store)
    daemon.events()
    client.put({b"leased": b"1"})
    client.get([b"leased"])
    assert store.send(client.connection, m.RemoveAll()) is None
    batch = daemon.events()
    assert column(batch.kinds, np.uint8).tolist() == [m.EventKind.REMOVE_ALL]
    assert column(batch.epochs, np.uint32).tolist() == [1]
    daemon.events(batch.number)
    assert store.replies[client.connection].value == 5
    assert client.exist([*BLOCKS, b"leased"]) == [0] * 5 + [1]
    assert Daemon(store).epoch == 1


def test_a_corrupt_block_is_an_event_and_no_eviction(store: LocalStore) -> None:
    daemon, client = Daemon(store), store.client()
    client.put({b"a": b"value"})
    reply = client.call(m.GetStart(key_batch([b"a"]), 0), m.Located)
    client.view.data[int(column(reply.offsets, np.uint64)[0])] ^= 1
    client.call(m.ReportCorrupt(reply.slots, reply.sequences), m.Codes)
    batch = daemon.events()
    assert column(batch.kinds, np.uint8).tolist() == [m.EventKind.CORRUPT]
    assert batch.slots == reply.slots
    assert batch.sequences == reply.sequences
    assert client.stats().evictions == 0


def test_removals_without_a_daemon_fill_the_table_and_become_an_epoch(store: LocalStore) -> None:
    client = store.client()
    client.put({b"kept%d" % n: b"k" for n in range(10)})
    for number in range(60):
        keys = [b"%d-%d" % (number, n) for n in range(20)]
        assert set(client.put(dict.fromkeys(keys, b"x")).values()) == {0}
        assert client.remove(keys) == [0] * 20
    assert store.segment.epoch > 0
    assert client.stats().evictions == 0
    assert client.get([b"kept%d" % n for n in range(10)]) == [b"k"] * 10
    store.restart()
    client = store.client()
    assert client.stats().blocks == 10
    assert client.exist([b"%d-%d" % (n, n) for n in range(20)]) == [0] * 20


def test_one_daemon_at_a_time(store: LocalStore) -> None:
    daemon = Daemon(store)
    Daemon(store)
    connection, call = store.connect()
    call(m.Hello(m.PROTOCOL_VERSION, "daemon", "other"), m.HelloReply)
    assert call(m.Attach(b"other"), m.Failure).code == EXISTS
    assert call(m.ColdReady(), m.Failure).message == "attach first"
    store.drop(daemon)
    assert call(m.Attach(b"other"), m.Failure).code == EXISTS, "its second connection is there"
    assert connection


def test_a_long_poll_is_answered_by_what_it_waits_for(store: LocalStore) -> None:
    daemon, client, _, _ = cold_store(store)
    events = Daemon(store)
    assert store.send(daemon.connection, m.LoadWait(5000)) is None
    assert store.send(events.connection, m.EventsWait(0, 5000)) is None
    assert store.send(client.connection, m.GetStart(key_batch([b"c2"]), 2000)) is None
    assert len(column(store.replies[daemon.connection].slots, np.uint32)) == 1
    store.advance(6)
    assert store.replies[events.connection].kinds == b""
    assert store.send(events.connection, m.EventsWait(0, 5000)) is None
    assert store.send(client.connection, m.Remove(key_batch([b"c3"]))) is None
    assert m.decode_keys(store.replies[events.connection].keys).to_list() == [b"c3"]


def test_what_an_upsert_replaces_is_removed_from_disk_before_it_is_answered(
    store: LocalStore,
) -> None:
    daemon, client = Daemon(store), store.client()
    daemon.events()
    daemon.ready()
    client.put({b"a": b"old"})
    store.on_put_off = lambda: None
    _, slots, sequences, offsets = client.reserve([b"a"], [5], upsert=True)
    client.write(int(offsets[0]), b"newer")
    end = m.PutEnd(
        slots.tobytes(), sequences.tobytes(), np.array([checksum_of(b"newer")], np.uint64).tobytes()
    )
    assert store.send(client.connection, end) is None
    assert client.get([b"a"]) == [b"newer"], "readers do not wait for the disk"
    batch = daemon.events()
    assert column(batch.kinds, np.uint8).tolist() == [m.EventKind.REMOVED]
    assert column(batch.sequences, np.uint64)[0] <= sequences[0], "the new version is not removed"
    daemon.events(batch.number)
    assert column(store.replies[client.connection].codes, np.int32).tolist() == [0]
    assert len(client.slots()) == 1


def test_an_upsert_of_the_same_bytes_is_no_news_to_the_disk(store: LocalStore) -> None:
    daemon, client = Daemon(store), store.client()
    daemon.events()
    daemon.ready()
    client.put({b"a": b"same"})
    assert client.put({b"a": b"same"}, upsert=True) == {b"a": 0}
    assert not daemon.events().kinds


def test_a_key_not_registered_yet_can_be_removed_and_replaced(store: LocalStore) -> None:
    """Between attach and the end of registration the store does not know what is on disk."""
    daemon, client = Daemon(store), store.client()
    daemon.events()
    assert store.send(client.connection, m.Remove(key_batch([b"a"]))) is None
    batch = daemon.events()
    assert m.decode_keys(batch.keys).to_list() == [b"a"]
    daemon.events(batch.number)
    assert column(store.replies[client.connection].codes, np.int32).tolist() == [MISSING]
    assert client.put({b"b": b"1"}) == {b"b": 0}, "a put does not wait"
    batch = daemon.events(batch.number)
    assert m.decode_keys(batch.keys).to_list() == [b"b"]
    assert column(batch.sequences, np.uint64)[0] <= client.slots()["sequence"][0]
    daemon.events(batch.number)
    daemon.ready()
    # Nor does it know, later, of what was evicted since the last snapshot.
    assert store.send(client.connection, m.Remove(key_batch([b"c"]))) is None
    batch = daemon.events(batch.number)
    assert m.decode_keys(batch.keys).to_list() == [b"c"]
    daemon.events(batch.number)
    assert column(store.replies[client.connection].codes, np.int32).tolist() == [MISSING]
    assert client.put({b"d": b"1"}) == {b"d": 0}
    assert not daemon.events(batch.number).kinds, "a put brings the key's own bytes"
