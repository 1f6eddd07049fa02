"""Memory that somebody wrote into: what is damaged is dropped and counted, and only that."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from fault_ledger import FaultClass, case
from store_kit import Daemon, LocalStore, StoreClient, content, shared_memory_path

from snapd.formats import segment as layout
from snapd.formats.segment import KEY_UNIT_BYTES, SlotState
from snapd.wire import messages as m

SEED = 20261121


@pytest.fixture
def store() -> Iterator[LocalStore]:
    with shared_memory_path() as path:
        local = LocalStore(path, lease_sec=0.001)
        yield local
        local.close()


def fill(client: StoreClient, count: int = 20, prefix: bytes = b"key") -> dict[bytes, bytes]:
    blocks = {b"%s-%d" % (prefix, n): content(n, 1000 + 37 * n) for n in range(count)}
    assert set(client.put(blocks).values()) == {0}
    return blocks


def slot_of(store: LocalStore, key: bytes, state: SlotState = SlotState.PUBLISHED) -> int:
    rows = np.flatnonzero(store.blocks.book.state == state)
    keys = store.segment.mapping.keys_of(store.blocks.book.records[rows]).to_list()
    return int(rows[keys.index(key)])


def damage_key(store: LocalStore, row: int, bit: int = 3) -> None:
    """Flip a bit of the key in the shared heap."""
    start = int(store.blocks.book.records["key_offset"][row]) * KEY_UNIT_BYTES
    store.segment.mapping.key_heap[start + bit // 8] ^= 1 << bit % 8


def damage_slot(store: LocalStore, row: int, bit: int = 3) -> None:
    """Flip a bit of the slot in the shared table."""
    raw = store.segment.mapping.slots[row : row + 1].view(np.uint8)
    raw[bit // 8] ^= 1 << bit % 8


def kinds(events: m.Events) -> list[int]:
    return np.frombuffer(events.kinds, np.uint8).tolist()


# --- keys -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("restart", [False, True])
def test_a_flipped_bit_in_a_key_drops_that_block_and_counts_it(
    store: LocalStore, restart: bool
) -> None:
    client = store.client()
    blocks = fill(client)
    generator = np.random.default_rng(SEED)
    for number, key in enumerate(list(blocks)[:12]):
        bit = int(generator.integers(8 * len(key)))
        with case(FaultClass.NEIGHBOUR, f"key heap: bit {bit} flipped, restart {restart}"):
            damage_key(store, slot_of(store, key), bit)
            if restart:
                client.close()
                store.restart()
                client = store.client()
            before = client.stats().corrupt
            assert client.get([key]) == [None], (SEED, bit)
            assert client.stats().corrupt == before + 1, (SEED, bit)
            assert client.exist([key]) == [0]
            assert client.put({key: b"again"}) == {key: 0}
            assert client.get([key]) == [b"again"]
            rest = list(blocks)[number + 1 :]
            assert client.get(rest) == [blocks[other] for other in rest]


def test_a_damaged_key_is_told_to_the_daemon_by_the_name_that_was_asked_for(
    store: LocalStore,
) -> None:
    client, daemon = store.client(), Daemon(store)
    daemon.ready()
    fill(client, 3)
    row = slot_of(store, b"key-1")
    sequence = int(store.blocks.book.records["sequence"][row])
    damage_key(store, row)
    with case(FaultClass.NEIGHBOUR, "key heap: damaged key of a resident block, daemon attached"):
        assert client.get([b"key-1"]) == [None]
        events = daemon.events()
        assert kinds(events) == [m.EventKind.CORRUPT]
        assert events.keys.heap == b"key-1"
        assert np.frombuffer(events.sequences, np.uint64).tolist() == [sequence]


def test_a_key_damaged_between_reserving_and_publishing_replaces_nothing(
    store: LocalStore,
) -> None:
    client = store.client()
    client.put({b"a": b"old"})
    codes, slots, sequences, offsets = client.reserve([b"a"], [3], upsert=True)
    assert codes.tolist() == [0]
    client.write(int(offsets[0]), b"new")
    with case(FaultClass.NEIGHBOUR, "key heap: damaged under an unfinished put"):
        damage_key(store, int(slots[0]))
        assert client.publish(slots, sequences, [1]) == [-500]
        assert client.get([b"a"]) == [b"old"]
        assert client.stats().corrupt == 1
        assert client.stats().blocks == 1


def test_a_removal_whose_key_is_damaged_before_a_daemon_hears_of_it_kills_all_that_is_on_disk(
    store: LocalStore,
) -> None:
    client = store.client()
    blocks = fill(client, 6)
    row = slot_of(store, b"key-2")
    assert client.remove([b"key-2"], force=True) == [0]
    with case(FaultClass.NEIGHBOUR, "key heap: damaged key of a removal that no daemon has"):
        damage_key(store, row)
        epoch = store.segment.epoch
        daemon = Daemon(store)
        assert daemon.epoch == epoch + 1, "nothing on disk counts any more"
        assert not kinds(daemon.events())
        left = [key for key in blocks if key != b"key-2"]
        assert client.get(left) == [blocks[key] for key in left]
        assert client.stats().corrupt == 1


def test_of_two_versions_of_which_one_has_a_damaged_key_neither_is_served(
    store: LocalStore,
) -> None:
    client = store.client()
    client.put({b"a": b"old", b"b": b"other"})
    old = slot_of(store, b"a")
    raw = store.segment.mapping.slots[old : old + 1].copy()
    client.put({b"a": b"new"}, upsert=True)
    new = slot_of(store, b"a")
    client.close()
    with case(FaultClass.NEIGHBOUR, "key heap: damaged key of the newer of two versions"):
        store.segment.mapping.slots[old : old + 1] = raw  # killed before it was retired
        damage_key(store, new)
        store.restart()
        client = store.client()
        assert client.get([b"a", b"b"]) == [None, b"other"]
        assert client.stats().corrupt == 2


# --- slots that may have been a removal -----------------------------------------------------------


def test_a_damaged_slot_that_held_a_removal_kills_all_that_is_on_disk(store: LocalStore) -> None:
    client = store.client()
    blocks = fill(client, 6)
    row = slot_of(store, b"key-2")
    client.remove([b"key-2"], force=True)
    client.close()
    with case(FaultClass.NEIGHBOUR, "slot table: damaged slot of a removal that no daemon has"):
        damage_slot(store, row)
        epoch = store.segment.epoch
        store.restart()
        assert store.segment.epoch == epoch + 1
        client = store.client()
        left = [key for key in blocks if key != b"key-2"]
        assert client.exist([b"key-2"]) == [0]
        assert client.get(left) == [blocks[key] for key in left]
        assert client.stats().corrupt == 1


def test_a_damaged_slot_of_a_block_costs_that_block_and_no_epoch(store: LocalStore) -> None:
    client = store.client()
    blocks = fill(client, 6)
    client.remove([b"key-2"], force=True)
    row = slot_of(store, b"key-3")
    client.close()
    with case(FaultClass.NEIGHBOUR, "slot table: damaged slot beside a removal"):
        damage_slot(store, row)
        epoch = store.segment.epoch
        store.restart()
        assert store.segment.epoch == epoch
        client = store.client()
        gone = (b"key-2", b"key-3")
        wanted = [None if key in gone else value for key, value in blocks.items()]
        assert client.get(list(blocks)) == wanted
        assert Daemon(store).epoch == epoch


# --- slots that may have been a reservation -------------------------------------------------------


def test_a_damaged_block_beside_an_idle_writer_withholds_nothing(store: LocalStore) -> None:
    idle = store.client()
    blocks = fill(idle, 20)
    with case(FaultClass.NEIGHBOUR, "slot table: damaged slot beside a writer that only holds on"):
        damage_slot(store, slot_of(store, b"key-3"))
        store.restart()
        client = store.client()
        assert not store.blocks.space.withheld_until_gone
        more = {b"more-%d" % n: content(n, 4096) for n in range(100)}
        assert set(client.put(more).values()) == {0}
        assert client.stats().evictions == 0
        wanted = [None if key == b"key-3" else value for key, value in blocks.items()]
        assert client.get(list(blocks)) == wanted
    idle.close()


@pytest.mark.parametrize("kills", [1, 2])
def test_a_damaged_reservation_of_a_writer_that_is_still_there_withholds_all_free_space(
    store: LocalStore, kills: int
) -> None:
    late = store.client()
    _, slots, _, offsets = late.reserve([b"late"], [200_000])
    with case(FaultClass.NEIGHBOUR, f"slot table: damaged reservation, {kills} restarts"):
        damage_slot(store, int(slots[0]))
        for _ in range(kills):  # the second adoption does not find the damaged slot any more
            store.restart()
        client = store.client()
        assert store.blocks.space.withheld_until_gone == {late.hello.writer}
        codes = client.put({b"more-%d" % n: content(n, 4096) for n in range(100)})
        late.write(int(offsets[0]), b"\xff" * 200_000)
        good = [key for key, code in codes.items() if code == 0]
        assert client.get(good) == [content(int(key[5:]), 4096) for key in good]
        late.close()
        store.advance(2)
        assert not store.blocks.space.withheld_until_gone
        assert not store.segment.in_doubt
        assert set(client.put({b"x%d" % n: content(n, 4096) for n in range(100)}).values()) == {0}


# --- everything else that is mapped writable ------------------------------------------------------


def test_a_header_page_that_somebody_wrote_into_is_written_again(store: LocalStore) -> None:
    client = store.client()
    blocks = fill(client, 6)
    header = store.segment.mapping.header
    generator = np.random.default_rng(SEED)
    for offset, length in ((0, 136), (1024, 64), (2048, 64), (0, 4096)):
        with case(FaultClass.NEIGHBOUR, f"header page: {length} bytes at {offset} overwritten"):
            expected = layout.decode_header(header.tobytes())
            header[offset : offset + length] = np.frombuffer(generator.bytes(length), np.uint8)
            store.advance(1.5)
            assert layout.decode_header(header.tobytes()) == expected
            assert client.view.epoch == store.segment.epoch
            assert client.get(list(blocks)) == list(blocks.values())
    client.close()
    store.restart()
    client = store.client()
    assert client.get(list(blocks)) == list(blocks.values())


def test_a_slot_that_somebody_wrote_into_is_written_again_when_it_is_reported(
    store: LocalStore,
) -> None:
    client = store.client()
    blocks = fill(client, 6)
    row = slot_of(store, b"key-3")
    record = store.blocks.book.records[row]
    for bit in (0, 70, 130, 200, 448, 500):
        with case(FaultClass.NEIGHBOUR, f"slot table: bit {bit} flipped while it is served"):
            damage_slot(store, row, bit)
            report = m.ReportCorrupt(
                np.array([row], np.uint32).tobytes(), np.array([record["sequence"]]).tobytes()
            )
            assert np.frombuffer(client.call(report, m.Codes).codes, np.int32).tolist() == [-705]
            assert client.get(list(blocks)) == list(blocks.values())


def test_tallies_of_an_older_version_are_not_believed(store: LocalStore) -> None:
    client = store.client()
    fill(client, 6)
    row = slot_of(store, b"key-2")
    client.close()
    with case(FaultClass.NEIGHBOUR, "header page: tallies lost, and a damaged slot"):
        store.segment.mapping.header[layout.TALLY_OFFSET : layout.TALLY_OFFSET + 16] = 0
        damage_slot(store, row)
        epoch = store.segment.epoch
        store.restart()
        assert store.segment.epoch == epoch + 1, "it may have been a removal"
        assert store.client().stats().blocks == 5
