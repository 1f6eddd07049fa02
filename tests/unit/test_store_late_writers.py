"""Late writers (invariant 10): space is reused only on proof that nobody writes there any more."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from store_kit import LocalStore, content, shared_memory_path


@pytest.fixture
def store() -> Iterator[LocalStore]:
    with shared_memory_path() as path:
        local = LocalStore(path)
        yield local
        local.close()


def flood(store: LocalStore, rounds: int = 6) -> dict[bytes, bytes]:
    """Fill the segment over and over; the last blocks that fit."""
    client = store.client()
    kept: dict[bytes, bytes] = {}
    for number in range(rounds):
        blocks = {b"flood-%d-%d" % (number, n): content(n, 16_384) for n in range(40)}
        client.put(blocks)
        kept = blocks
        store.advance(60)
    return {key: value for key, value in kept.items() if client.get([key]) == [value]}


def test_a_broken_connection_frees_its_space_once_the_process_is_gone(store: LocalStore) -> None:
    client = store.client()
    used = client.stats().bytes_used
    dying = store.client()
    dying.reserve([b"a"], [100_000])
    store.drop(dying, process_is_gone=False)
    assert client.stats().bytes_used > used, "the process may still write"
    assert client.stats().writers_lingering == 1
    dying.close()
    store.advance(2)
    assert client.stats().bytes_used == used
    assert client.stats().writers_lingering == 0


def test_a_late_writer_changes_no_other_block(store: LocalStore) -> None:
    late = store.client()
    _, _, _, offsets = late.reserve([b"late"], [300_000])
    store.drop(late, process_is_gone=False)
    blocks = flood(store)
    late.write(int(offsets[0]), b"\xff" * 300_000)
    client = store.client()
    assert blocks
    assert client.get(list(blocks)) == list(blocks.values())


def test_a_late_writer_changes_no_other_block_across_a_restart_of_the_store(
    store: LocalStore,
) -> None:
    late = store.client()
    _, _, _, offsets = late.reserve([b"late"], [300_000])
    store.restart()
    blocks = flood(store)
    late.write(int(offsets[0]), b"\xff" * 300_000)
    client = store.client()
    assert blocks
    assert client.get(list(blocks)) == list(blocks.values())
    assert client.stats().writers_lingering == 1
    late.close()
    store.advance(60)
    assert client.stats().writers_lingering == 0
    assert client.put({b"wide": content(1, 900_000)}) == {b"wide": 0}


def test_a_damaged_reservation_of_a_late_writer_withholds_every_gap(store: LocalStore) -> None:
    client = store.client()
    client.put({b"kept": content(5, 20_000)})
    late = store.client()
    _, slots, _, offsets = late.reserve([b"late"], [300_000])
    client.close()
    late.view.slots["extent"][int(slots[0])] ^= 4  # nobody can tell any more where it may write
    store.restart()
    client = store.client()
    assert client.stats().corrupt == 1
    assert client.get([b"kept"]) == [content(5, 20_000)]
    assert set(client.put({b"n%d" % n: content(n, 4096) for n in range(3)}).values()) == {-200}
    late.write(int(offsets[0]), b"\xff" * 300_000)
    assert client.get([b"kept"]) == [content(5, 20_000)]
    late.close()
    store.advance(2)
    assert client.put({b"new": content(6, 500_000)}) == {b"new": 0}


def test_a_damaged_slot_withholds_nothing_when_no_writer_is_left(store: LocalStore) -> None:
    client = store.client()
    client.put({b"a": b"1"})
    row = int(np.flatnonzero(client.view.slots["state"])[0])
    client.view.slots["size"][row] ^= 8
    client.close()
    store.restart()
    client = store.client()
    assert client.stats().corrupt == 1
    assert client.put({b"b": content(1, 900_000)}) == {b"b": 0}


def test_a_damaged_slot_does_not_make_a_store_evict_everything(store: LocalStore) -> None:
    idle = store.client()  # as long as it is there, all that is free is withheld
    client = store.client()
    blocks = {b"k%d" % n: content(n, 4096) for n in range(60)}
    client.put(blocks)
    row = int(np.flatnonzero(client.view.slots["state"])[0])
    client.view.slots["size"][row] ^= 8
    client.close()
    store.restart()
    store.advance(60)
    client = store.client()
    assert client.put({b"new": content(1, 4096)}) == {b"new": 0}
    assert client.stats().evictions <= 5
    assert sum(client.get([key]) == [value] for key, value in blocks.items()) >= 54
    idle.close()
    store.advance(60)
    assert client.put({b"large": content(2, 500_000)}) == {b"large": 0}
    assert client.stats().evictions <= 5


def test_space_that_is_needed_is_asked_after_at_once(store: LocalStore) -> None:
    client = store.client()
    client.put({b"k%d" % n: content(n, 16_384) for n in range(20)})
    dying = store.client()
    dying.reserve([b"big"], [500_000])
    store.drop(dying, process_is_gone=False)
    dying.close()
    assert client.put({b"new": content(1, 400_000)}) == {b"new": 0}
    assert client.stats().evictions == 0
