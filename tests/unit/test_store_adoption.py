"""Adoption: what a killed store left is served, what is damaged or unfinished is not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest
from store_kit import LocalStore, StoreClient, content, shared_memory_path

from snapd.errors import LockHeldError, NewerFormatError, SegmentError, SettingError
from snapd.formats import segment as layout
from snapd.formats.segment import SlotState
from snapd.segment import SegmentView, open_segment

SEED = 99


@pytest.fixture
def store() -> Iterator[LocalStore]:
    with shared_memory_path() as path:
        local = LocalStore(path)
        yield local
        local.close()


def fill(client: StoreClient, count: int = 40) -> dict[bytes, bytes]:
    blocks = {b"key-%d" % n: content(n, 1000 + 37 * n) for n in range(count)}
    assert set(client.put(blocks).values()) == {0}
    return blocks


def live_rows(client: StoreClient) -> list[int]:
    return np.flatnonzero(client.view.slots["state"] == SlotState.PUBLISHED).tolist()


def test_everything_published_is_served_again(store: LocalStore) -> None:
    blocks = fill(store.client())
    before = store.segment.geometry.segment_id, store.segment.boot_id
    store.restart()
    client = store.client()
    assert client.get(list(blocks)) == list(blocks.values())
    assert client.stats().adopted_blocks == len(blocks)
    assert client.hello.segment_id == before[0]
    assert client.hello.boot_id != before[1]


def test_sequences_rise_across_kills_and_are_never_used_twice(store: LocalStore) -> None:
    seen: list[int] = []
    for life in range(4):
        client = store.client()
        for number in range(3):
            client.put({b"%d-%d" % (life, number): b"x"})
            seen.append(int(client.slots()["sequence"].max()))
        store.restart()
    assert seen == sorted(set(seen))


def test_a_flipped_bit_in_any_slot_drops_that_slot_alone(store: LocalStore) -> None:
    generator = np.random.default_rng(SEED)
    filler = store.client()
    blocks = fill(filler)
    filler.close()  # with a writer left, the gaps would be withheld
    for _ in range(60):
        client = store.client()
        row = int(generator.choice(live_rows(client)))
        _, keys, good = client.view.read_blocks(np.array([row]))
        assert good.all()
        bit = int(generator.integers(512))
        client.close()
        store.kill()
        raw = store_bytes(store, row)
        raw[bit // 8] ^= 1 << (bit % 8)
        write_slot(store, row, raw)
        store.start()
        client = store.client()
        lost = keys.to_list()[0]
        assert client.stats().corrupt == 1, (SEED, bit)
        for key, value in blocks.items():
            assert client.get([key]) == [None if key == lost else value], (SEED, bit)
        client.put({lost: blocks[lost]})
        client.close()


def store_bytes(store: LocalStore, row: int) -> bytearray:
    with open(store.path, "rb") as file:
        file.seek(layout.HEADER_BYTES + 64 * row)
        return bytearray(file.read(64))


def write_slot(store: LocalStore, row: int, raw: bytes | bytearray) -> None:
    with open(store.path, "r+b") as file:
        file.seek(layout.HEADER_BYTES + 64 * row)
        file.write(raw)


def test_two_slots_that_claim_one_extent_are_both_dropped(store: LocalStore) -> None:
    client = store.client()
    blocks = fill(client, 10)
    one, two = live_rows(client)[:2]
    _, keys, _ = client.view.read_blocks(np.array([one, two]))
    client.close()
    store.kill()
    record = np.frombuffer(bytes(store_bytes(store, two)), layout.SLOT_DTYPE).copy()
    other = np.frombuffer(bytes(store_bytes(store, one)), layout.SLOT_DTYPE)
    record["extent"] = other["extent"]
    layout.seal_slots(record)
    write_slot(store, two, record.tobytes())
    store.start()
    client = store.client()
    gone = set(keys.to_list())
    assert client.stats().corrupt == 2
    for key, value in blocks.items():
        assert client.get([key]) == [None if key in gone else value]


def test_a_slot_that_points_outside_is_dropped(store: LocalStore) -> None:
    client = store.client()
    fill(client, 3)
    row = live_rows(client)[0]
    client.close()
    store.kill()
    record = np.frombuffer(bytes(store_bytes(store, row)), layout.SLOT_DTYPE).copy()
    record["extent"] = 2**31
    layout.seal_slots(record)
    write_slot(store, row, record.tobytes())
    store.start()
    assert store.client().stats().corrupt == 1


def test_a_torn_publish_is_still_an_unfinished_block(store: LocalStore) -> None:
    client = store.client()
    _, slots, _, _ = client.reserve([b"a"], [10])
    row = int(slots[0])
    client.view.slots["checksum"][row] = 77  # the first of the two stores of a publish
    store.restart()
    other = store.client()
    assert other.stats().corrupt == 0
    assert other.exist([b"a"]) == [0]
    assert other.stats().writers_lingering == 1, "its writer still holds its lock"
    client.close()
    store.advance(2)
    assert other.stats().writers_lingering == 0


def test_a_torn_reservation_is_a_free_slot(store: LocalStore) -> None:
    client = store.client()
    fill(client, 3)
    row = int(np.flatnonzero(client.view.slots["state"] == SlotState.FREE)[0])
    client.view.slots["sequence"][row] = 12345  # stores before the one that seals
    client.view.slots["size"][row] = 99
    client.close()
    store.restart()
    stats = store.client().stats()
    assert (stats.corrupt, stats.slots_used, stats.dropped_slots) == (0, 3, 0)


def test_of_two_versions_left_by_a_kill_the_newer_is_kept(store: LocalStore) -> None:
    client = store.client()
    client.put({b"a": b"old"})
    row = live_rows(client)[0]
    old = store_bytes(store, row)
    client.put({b"a": b"new"}, upsert=True)
    assert live_rows(client) != [row]
    client.close()
    store.kill()
    write_slot(store, row, old)
    store.start()
    client = store.client()
    assert client.get([b"a"]) == [b"new"]
    assert len(client.slots()) == 1


def test_a_removed_key_does_not_come_back_with_an_older_slot(store: LocalStore) -> None:
    client = store.client()
    client.put({b"a": b"old"})
    row = live_rows(client)[0]
    old = store_bytes(store, row)
    client.put({b"a": b"new"}, upsert=True)
    client.remove([b"a"])
    client.close()
    store.kill()
    write_slot(store, row, old)
    store.start()
    assert store.client().exist([b"a"]) == [0]


def test_removals_outlive_a_kill(store: LocalStore) -> None:
    client = store.client()
    blocks = fill(client, 6)
    client.remove(list(blocks)[:3])
    store.restart()
    client = store.client()
    assert client.exist(list(blocks)) == [0] * 3 + [1] * 3
    assert client.slots()["state"].tolist().count(SlotState.REMOVED) == 3


def test_an_epoch_killed_before_its_header_did_not_happen(store: LocalStore) -> None:
    client = store.client()
    blocks = fill(client, 6)
    rows = np.array(live_rows(client)[:2])
    store.blocks.book.restamp(rows, store.segment.epoch + 1)  # the step before the header's
    client.close()
    store.restart()
    client = store.client()
    assert client.get(list(blocks)) == list(blocks.values())
    assert client.remove_all(force=True) == 6
    store.restart()
    assert store.client().exist(list(blocks)) == [0] * 6


def test_an_epoch_killed_after_its_header_has_happened(store: LocalStore) -> None:
    client = store.client()
    blocks = fill(client, 6)
    store.segment.raise_epoch()
    client.close()
    store.restart()
    client = store.client()
    assert client.exist(list(blocks)) == [0] * 6
    assert client.stats().bytes_used == 0


def test_the_key_index_is_made_anew_from_the_slots(store: LocalStore) -> None:
    blocks = fill(store.client(), 120)
    geometry = store.segment.geometry
    length = 68 * geometry.index_buckets
    store.kill()
    with open(store.path, "r+b") as file:  # where an older version had it
        file.seek(geometry.index_offset)
        file.write(content(SEED, length))
    store.start()
    client = store.client()
    assert client.get(list(blocks)) == list(blocks.values())
    assert client.remove(list(blocks), force=True) == [0] * len(blocks)
    assert client.exist(list(blocks)) == [0] * len(blocks)
    assert not store.blocks.index.entries.any()


def test_a_segment_of_another_size_is_adopted_as_it_is(store: LocalStore) -> None:
    blocks = fill(store.client())
    store.changes = {"global_segment_size": 1 << 22, "segment_blocks_max": 1024}
    store.restart()
    client = store.client()
    assert client.get(list(blocks)) == list(blocks.values())
    assert client.stats().bytes_capacity == 1 << 20


@pytest.mark.parametrize("bit", [3, 70, 100, 200, 900])
def test_a_damaged_header_moves_the_segment_aside_and_never_stops_the_store(
    store: LocalStore, bit: int
) -> None:
    fill(store.client())
    segment_id = store.segment.geometry.segment_id
    store.kill()
    with open(store.path, "r+b") as file:
        header = bytearray(file.read(layout.HEADER_BYTES))
        header[bit // 8] ^= 1 << (bit % 8)
        file.seek(0)
        file.write(header)
    store.start()
    assert os.path.exists(store.path + ".bad")
    assert store.client().stats().blocks == 0
    assert store.segment.geometry.segment_id != segment_id


def test_one_flipped_bit_in_the_header_state_brings_no_old_epoch_back(store: LocalStore) -> None:
    for copy, changes in product(layout.STATE_OFFSETS, (0, 1)):
        client = store.client()
        for _ in range(changes):  # so that either copy is the one written last
            client.remove_all(force=True)
        blocks = fill(client, 4)
        store.segment.raise_epoch()  # killed before the slots of the old epoch are freed
        client.close()
        store.kill()
        with open(store.path, "r+b") as file:
            file.seek(copy + 3)
            byte = file.read(1)[0]
            file.seek(copy + 3)
            file.write(bytes([byte ^ 16]))
        store.start()
        client = store.client()
        assert client.exist(list(blocks)) == [0] * 4
        client.close()


def test_a_newer_layout_is_refused_and_left_alone(store: LocalStore) -> None:
    fill(store.client())
    geometry = store.segment.geometry
    store.kill()
    with open(store.path, "r+b") as file:
        file.write(layout.encode_header(geometry, layout_version=2)[: layout.HEADER_DTYPE.itemsize])
    before = os.stat(store.path)
    with pytest.raises(NewerFormatError):
        open_segment(store.path, 1 << 20, 256)
    assert os.stat(store.path).st_ino == before.st_ino
    with open(store.path, "r+b") as file:
        file.write(layout.encode_header(geometry)[: layout.HEADER_DTYPE.itemsize])
    store.start()
    assert store.client().stats().blocks == 40


@pytest.mark.parametrize("length", [0, 16, 4096, 50_000])
def test_a_kill_while_the_segment_is_made_starts_over(length: int) -> None:
    with shared_memory_path() as path:
        with open(path, "wb") as file:
            file.write(layout.encode_preamble()[:length])
            file.truncate(length)
        segment = open_segment(path, 1 << 20, 256)
        assert segment.created
        segment.close()


OTHER_FILES = {
    "zeros": bytes(12345),
    "a page of zeros": bytes(4096),
    "text": b"notes\n" * 2000,
    "short text": b"x",
    "almost a preamble": layout.encode_preamble()[4:] + bytes(8192),
    "random": content(SEED, 9000),
}


@pytest.mark.parametrize("kind", sorted(OTHER_FILES))
def test_a_file_that_is_no_segment_is_refused_and_left_alone(kind: str) -> None:
    with shared_memory_path() as path:
        with open(path, "wb") as file:
            file.write(OTHER_FILES[kind])
        before = os.stat(path)
        with pytest.raises(SettingError, match=f"{path} is not a segment of snapd"):
            open_segment(path, 1 << 20, 256)
        with open(path, "rb") as file:
            assert file.read() == OTHER_FILES[kind]
        after = os.stat(path)
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
        assert not os.path.exists(path + ".bad")


def test_a_damaged_segment_never_takes_the_place_of_another_file(store: LocalStore) -> None:
    fill(store.client())
    store.kill()
    with open(store.path, "r+b") as file:
        file.seek(20)
        file.write(b"\xff")
    with open(store.path + ".bad", "wb") as file:
        file.write(b"somebody's notes")
    with pytest.raises(SettingError, match=r"\.bad is not a segment"):
        open_segment(store.path, 1 << 20, 256)
    with open(store.path + ".bad", "rb") as file:
        assert file.read() == b"somebody's notes"
    os.unlink(store.path + ".bad")
    store.start()


def test_a_second_store_on_a_segment_is_refused(store: LocalStore) -> None:
    with pytest.raises(LockHeldError, match="another store"):
        open_segment(store.path, 1 << 20, 256)


def test_a_view_of_another_segment_is_refused(store: LocalStore) -> None:
    with pytest.raises(SegmentError, match="another segment"):
        SegmentView(store.path, bytes(16))
    with pytest.raises(SegmentError, match="cannot open"):
        SegmentView(store.path + ".none", bytes(16))


def test_the_store_sees_every_held_writer_lock(store: LocalStore) -> None:
    views = [SegmentView(store.path, store.segment.geometry.segment_id) for _ in range(3)]
    for view, writers in zip(views, ([1, 2, 5], [4_000_000_000], [3, 77]), strict=True):
        for writer in writers:
            view.hold_writer(writer)
    assert store.segment.held_writers() == {1, 2, 3, 5, 77, 4_000_000_000}
    with pytest.raises(SegmentError, match="holds the lock"):
        views[0].hold_writer(77)
    views[0].release_writer(2)
    views[2].close()
    assert store.segment.held_writers() == {1, 5, 4_000_000_000}
    for view in views:
        view.close()


def test_no_writer_number_is_given_while_its_lock_is_held(store: LocalStore) -> None:
    view = SegmentView(store.path, store.segment.geometry.segment_id)
    following = store.client().hello.writer + 1
    view.hold_writer(following)
    assert store.client().hello.writer == following + 1
    view.close()
