"""The store's rules, on the engine and a real segment: who wins, what is refused, what goes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from store_kit import LocalStore, column, content, key_batch, shared_memory_path

from snapd.formats.segment import SlotState
from snapd.wire import messages as m
from snapd.wire.codes import ReturnCode

EXISTS, MISSING = ReturnCode.OBJECT_ALREADY_EXISTS, ReturnCode.OBJECT_NOT_FOUND
FULL, LEASED = ReturnCode.NO_AVAILABLE_HANDLE, ReturnCode.OBJECT_HAS_LEASE
INVALID = ReturnCode.INVALID_PARAMS


@pytest.fixture
def store() -> Iterator[LocalStore]:
    with shared_memory_path() as path:
        local = LocalStore(path)
        yield local
        local.close()


def test_what_is_put_is_got_at_every_length_of_key_and_block(store: LocalStore) -> None:
    client = store.client()
    blocks = {
        b"k" * length: content(length, size)
        for length, size in ((1, 1), (31, 4095), (32, 4096), (33, 4097), (1024, 70_000))
    }
    assert set(client.put(blocks).values()) == {0}
    assert client.get(list(blocks)) == list(blocks.values())
    assert client.sizes(list(blocks)) == [len(value) for value in blocks.values()]
    assert client.exist([*blocks, b"never"]) == [1] * 5 + [0]


def test_a_block_is_invisible_until_it_is_published(store: LocalStore) -> None:
    client = store.client()
    codes, slots, sequences, _ = client.reserve([b"a"], [10])
    assert codes[0] == 0
    assert client.exist([b"a"]) == [0]
    assert client.publish(slots, sequences, [1]) == [0]
    assert client.exist([b"a"]) == [1]
    assert client.publish(slots, sequences, [1]) == [MISSING]


def test_a_put_of_an_existing_key_writes_nothing_and_an_upsert_replaces_it(
    store: LocalStore,
) -> None:
    client = store.client()
    client.put({b"a": b"old"})
    assert client.reserve([b"a"], [3])[0].tolist() == [EXISTS]
    assert client.put({b"a": b"ignored"}) == {b"a": 0}
    assert client.get([b"a"]) == [b"old"]
    client.put({b"a": b"newer"}, upsert=True)
    assert client.get([b"a"]) == [b"newer"]
    states = client.slots()["state"].tolist()
    assert sorted(states) == [SlotState.PUBLISHED, SlotState.REMOVED], "the old one, for the disk"


def test_of_two_writers_of_a_key_the_first_to_publish_wins(store: LocalStore) -> None:
    one, two = store.client(), store.client()
    _, first, first_sequence, first_offset = one.reserve([b"a"], [1])
    _, second, second_sequence, second_offset = two.reserve([b"a"], [1])
    one.write(int(first_offset[0]), b"1")
    two.write(int(second_offset[0]), b"2")
    assert two.publish(second, second_sequence, [0]) == [0]
    assert one.publish(first, first_sequence, [0]) == [EXISTS]
    assert len(one.slots()) == 1
    assert one.slots()["sequence"][0] == second_sequence[0]


def test_an_upsert_that_was_reserved_earlier_is_the_newest_version_when_it_ends(
    store: LocalStore,
) -> None:
    one, two = store.client(), store.client()
    _, slot, sequence, _ = one.reserve([b"a"], [1], upsert=True)
    two.put({b"a": b"2"}, upsert=True)
    newer = int(two.slots()["sequence"].max())
    assert one.publish(slot, sequence, [7]) == [0]
    slots = one.slots()
    published = slots[slots["state"] == SlotState.PUBLISHED]
    assert published["checksum"].tolist() == [7]
    assert int(published["sequence"][0]) > newer


def test_a_block_published_after_a_removal_is_newer_than_the_removal(store: LocalStore) -> None:
    one, two = store.client(), store.client()
    _, slot, sequence, _ = one.reserve([b"a"], [1])
    two.put({b"a": b"2"})
    assert two.remove([b"a"]) == [0]
    removed_below = int(two.slots()["sequence"].max()) + 1
    assert one.publish(slot, sequence, [7]) == [0]
    assert int(one.slots()["sequence"].max()) >= removed_below
    store.restart()
    assert store.client().exist([b"a"]) == [1]


def test_duplicates_in_one_batch(store: LocalStore) -> None:
    client = store.client()
    codes = client.reserve([b"a", b"b", b"a"], [1, 1, 1])[0]
    assert codes.tolist() == [0, 0, EXISTS]
    codes, slots, sequences, _ = client.reserve([b"c", b"c", b"c"], [1, 1, 1], upsert=True)
    assert client.publish(slots, sequences, [1, 2, 3]) == [0, 0, 0]
    assert [int(s["checksum"]) for s in client.slots() if s["state"] == 2] == [3]
    assert client.publish(np.repeat(slots[:1], 2), np.repeat(sequences[:1], 2), [1, 1]) == (
        [MISSING] * 2
    )
    assert client.remove([b"c", b"c"]) == [0, MISSING]


def test_a_batch_of_one_key_over_and_over_is_bounded(store: LocalStore) -> None:
    client = store.client()
    client.put({b"a": b"1"})
    codes = client.remove([b"a"] * 5000)
    assert codes.count(0) == 1


@pytest.mark.parametrize(
    ("size", "pin", "code"),
    [
        (0, 0, INVALID),
        ((1 << 20) + 1, 0, FULL),
        (2**63, 0, FULL),
        (2**64 - 1, 0, FULL),
        (1, 3, INVALID),
    ],
)
def test_blocks_that_cannot_be_are_refused(
    store: LocalStore, size: int, pin: int, code: int
) -> None:
    assert store.client().reserve([b"a"], [size], pin=pin)[0].tolist() == [code]


def test_a_block_of_the_whole_segment_fits_and_evicts_what_was_there(store: LocalStore) -> None:
    client = store.client()
    client.put({b"k%d" % number: b"x" * 4096 for number in range(200)})
    store.advance(60)
    whole = content(1, 1 << 20)
    assert client.put({b"whole": whole}) == {b"whole": 0}
    assert client.get([b"whole"]) == [whole]
    assert client.exist([b"k%d" % number for number in range(200)]) == [0] * 200


def test_a_large_block_clears_one_run_and_not_the_store() -> None:
    with shared_memory_path() as path:
        store = LocalStore(path, global_segment_size=8 << 20, segment_blocks_max=4096)
        client = store.client()
        keys = [b"k%d" % number for number in range(1940)]
        for first in range(0, len(keys), 97):
            client.put(dict.fromkeys(keys[first : first + 97], b"x" * 4096))
        store.advance(60)
        client.get(keys[::2])  # every other one is leased, then just newer
        store.advance(60)
        large = content(1, 1 << 20)
        assert client.put({b"large": large}) == {b"large": 0}
        assert client.get([b"large"]) == [large]
        assert sum(client.exist(keys)) > 1000
        store.close()


def test_leased_blocks_are_neither_evicted_nor_removed(store: LocalStore) -> None:
    client = store.client()
    client.put({b"k%d" % n: b"x" * 4096 for n in range(64)})
    store.advance(60)
    assert client.exist([b"k0"]) == [1]
    assert client.remove([b"k0"]) == [LEASED]
    for batch in range(10):
        client.put({b"n%d-%d" % (batch, n): b"y" * 4096 for n in range(60)})
        if batch % 3 == 2:
            store.advance(3)
    assert store.blocks.counters.evictions > 0
    assert client.get([b"k0"]) == [b"x" * 4096]
    assert client.remove([b"k0"], force=True) == [0]
    assert client.exist([b"k0"]) == [0]


def test_eviction_takes_the_least_recently_used_first_and_soft_pins_last(
    store: LocalStore,
) -> None:
    client = store.client()
    for number in range(24):
        pin = 1 if number < 4 else 2 if number < 6 else 0
        client.put({b"k%d" % number: b"x" * 40_000}, pin=pin)
        store.advance(1)
    client.get([b"k6"])
    store.advance(60)
    client.put({b"big": b"y" * 400_000})
    left = client.exist([b"k%d" % number for number in range(24)])
    assert left[:6] == [1] * 6, "soft and hard pins stay while others can go"
    assert left[6] == 1, "read last"
    assert left[7:15] == [0] * 8
    assert left[23] == 1
    store.advance(60)
    for number in range(5):
        assert client.put({b"m%d" % number: b"z" * 160_000}) == {b"m%d" % number: 0}
        client.get([b"m%d" % number])  # under a lease it stays
    left = client.exist([b"k%d" % number for number in range(24)])
    assert left[4:6] == [1, 1], "hard pins stay for ever"
    assert sum(left[:4]) < 4


def test_a_soft_pin_that_ran_out_holds_nothing(store: LocalStore) -> None:
    client = store.client()
    client.put({b"pinned": b"x" * 400_000}, pin=1, soft_pin_ttl_ms=5000)
    store.advance(1)
    client.put({b"later": b"x" * 400_000})
    store.advance(60)
    client.put({b"new": b"y" * 400_000})
    assert client.exist([b"pinned", b"later"]) == [0, 1]


def test_without_anything_to_evict_a_put_is_refused_and_costs_nothing(store: LocalStore) -> None:
    client = store.client()
    keys = [b"k%d" % n for n in range(9)]
    client.put(dict.fromkeys(keys, b"x" * 100_000))
    client.exist(keys)
    assert client.put({b"new": b"y" * 300_000}) == {b"new": FULL}
    assert client.get(keys) == [b"x" * 100_000] * 9


def test_running_out_of_slots_and_of_key_space_evicts(store: LocalStore) -> None:
    client = store.client()
    for batch in range(8):
        small = {b"%d-%d" % (batch, n): b"1" for n in range(64)}
        assert set(client.put(small).values()) == {0}
        store.advance(60)
    for batch in range(8):
        long = {(b"%d-%d-" % (batch, n)).ljust(1024, b"x"): b"1" for n in range(8)}
        assert set(client.put(long).values()) == {0}
        store.advance(60)
    assert store.blocks.counters.evictions > 200
    logged = [key for kind, keys in store.events if kind == "evict" for key in keys]
    assert len(logged) == store.blocks.counters.evictions == len(set(logged))


def test_revoked_space_is_free_at_once(store: LocalStore) -> None:
    client = store.client()
    before = client.stats().bytes_used
    _, slots, sequences, _ = client.reserve([b"a", b"b"], [5000, 5000])
    assert client.stats().bytes_used > before
    reply = client.call(m.PutRevoke(slots.tobytes(), sequences.tobytes()), m.Codes)
    assert column(reply.codes, np.int32).tolist() == [0, 0]
    assert client.stats().bytes_used == before
    assert client.publish(slots, sequences, [1, 1]) == [MISSING] * 2


def test_nobody_ends_or_revokes_what_another_one_reserved(store: LocalStore) -> None:
    one, two = store.client(), store.client()
    _, slots, sequences, _ = one.reserve([b"a"], [1])
    assert two.publish(slots, sequences, [1]) == [MISSING]
    reply = two.call(m.PutRevoke(slots.tobytes(), sequences.tobytes()), m.Codes)
    assert column(reply.codes, np.int32).tolist() == [MISSING]
    assert one.publish(slots, sequences + np.uint64(1), [1]) == [MISSING]
    assert one.publish(slots, sequences, [1]) == [0]


def test_space_is_reserved_only_for_holders_of_their_writer_lock(store: LocalStore) -> None:
    client = store.client()
    client.view.release_writer(client.hello.writer)
    request = m.PutStart(key_batch([b"a"]), np.array([1], np.uint64).tobytes())
    refusal = client.call(request, m.Failure)
    assert refusal.code == ReturnCode.INVALID_WRITE
    client.view.hold_writer(client.hello.writer)
    client.call(request, m.Reserved)


def test_remove_all_keeps_what_is_leased_unless_forced(store: LocalStore) -> None:
    client = store.client()
    client.put({b"a": b"1", b"b": b"2", b"c": b"3"})
    client.get([b"b"])
    assert client.remove_all() == 2
    assert client.exist([b"a", b"b", b"c"]) == [0, 1, 0]
    assert client.slots()["epoch"].tolist() == [1]
    store.restart()
    client = store.client()
    assert client.get([b"a", b"b", b"c"]) == [None, b"2", None]
    assert client.remove_all(force=True) == 1
    assert client.exist([b"b"]) == [0]


def test_a_put_across_a_remove_all_is_published_in_the_new_epoch(store: LocalStore) -> None:
    client = store.client()
    _, slots, sequences, offsets = client.reserve([b"a"], [3])
    client.write(int(offsets[0]), b"abc")
    client.remove_all(force=True)
    assert client.publish(slots, sequences, [1]) == [0]
    store.restart()
    assert store.client().exist([b"a"]) == [1]


def test_operators_only_read(store: LocalStore) -> None:
    client = store.client("operator")
    assert client.stats().blocks == 0
    for request in (m.Remove(key_batch([b"a"])), m.RemoveAll(), m.Exist(key_batch([b"a"]))):
        assert client.call(request, m.Failure).code == INVALID


def test_a_corrupt_block_is_dropped_when_reported_and_a_good_one_is_not(
    store: LocalStore,
) -> None:
    client = store.client()
    client.put({b"good": b"g" * 5000, b"bad": b"b" * 5000})
    reply = client.call(m.GetStart(key_batch([b"good", b"bad"]), 0), m.Located)
    offset = int(column(reply.offsets, np.uint64)[1])
    client.view.data[offset + 4999] ^= 1
    report = m.ReportCorrupt(reply.slots, reply.sequences)
    assert column(client.call(report, m.Codes).codes, np.int32).tolist() == [EXISTS, 0]
    assert client.exist([b"good", b"bad"]) == [1, 0]
    assert client.stats().corrupt == 1
    assert column(client.call(report, m.Codes).codes, np.int32).tolist() == [EXISTS, MISSING]


def test_a_damaged_shared_slot_of_a_running_store_is_written_again(store: LocalStore) -> None:
    client = store.client()
    client.put({b"a": b"value"})
    reply = client.call(m.GetStart(key_batch([b"a"]), 0), m.Located)
    slot = int(column(reply.slots, np.uint32)[0])
    client.view.slots["size"][slot] ^= 1 << 20
    assert client.get([b"a"]) == [None]
    client.call(m.ReportCorrupt(reply.slots, reply.sequences), m.Codes)
    assert client.get([b"a"]) == [b"value"]
    assert client.stats().corrupt == 1


def test_reads_are_counted_and_decay(store: LocalStore) -> None:
    client = store.client()
    client.put({b"a": b"1"})
    slot = int(np.flatnonzero(client.view.slots["state"] == 2)[0])
    for _ in range(4):
        client.get([b"a"])
    assert client.view.heat["access_count"][slot] == 4
    store.advance(900)
    client.get([b"a"])
    assert client.view.heat["access_count"][slot] == pytest.approx(3, abs=0.01)
    assert (client.stats().hits, client.stats().misses) == (5, 0)


def test_read_blocks_gives_slots_and_keys_that_belong_together(store: LocalStore) -> None:
    client = store.client()
    client.put({b"a": b"1", b"bb": b"2"})
    rows = np.arange(4)
    slots, keys, good = client.view.read_blocks(rows)
    assert sorted(keys.take(good).to_list()) == [b"a", b"bb"]
    first = int(np.flatnonzero(good)[0])
    start = client.view.geometry.key_heap_offset + int(slots["key_offset"][first]) * 32
    client.view.data[start] ^= 1
    assert int(client.view.read_blocks(rows)[2].sum()) == 1


def test_a_block_for_which_no_run_can_be_cleared_evicts_nothing(store: LocalStore) -> None:
    client = store.client()
    keys = [b"k%d" % number for number in range(200)]
    client.put(dict.fromkeys(keys, b"x" * 4096))
    store.advance(60)
    client.get(keys[100:101])  # leased, in the middle
    assert client.put({b"large": b"y" * 1_000_000}) == {b"large": FULL}
    assert client.exist(keys) == [1] * 200


def test_large_blocks_of_one_batch_do_not_count_on_each_others_space(store: LocalStore) -> None:
    client = store.client()
    client.put({b"k%d" % number: b"x" * 90_000 for number in range(10)})
    store.advance(60)
    assert set(client.put({b"n%d" % n: content(n, 120_000) for n in range(8)}).values()) == {0}
    assert client.get([b"n%d" % n for n in range(8)]) == [content(n, 120_000) for n in range(8)]


def test_a_clock_that_was_set_back_leases_nothing_for_ever(store: LocalStore) -> None:
    client = store.client()
    client.put({b"k%d" % number: b"x" * 90_000 for number in range(10)})
    client.view.heat["last_access"][:] = 4_000_000_000
    store.restart()
    store.advance(1)
    assert store.client().put({b"new": b"y" * 900_000}) == {b"new": 0}
