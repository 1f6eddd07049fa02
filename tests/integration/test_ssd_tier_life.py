"""The SSD tier between store, flusher, loader, compactor and repository."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import pytest
from fault_ledger import FaultClass, case
from repository_kit import contents_of
from store_kit import content, shared_memory_path
from tier_life import TierLife

from snapd.disk.simulated import SimulatedDisk
from snapd.formats.segment import SlotState
from snapd.plans.residency import COLDER
from snapd.repository import Repository

SEED = 1_609
BLOCK = 30_000
"""Thirty of them fit into memory."""
BLOCKS = {b"key-%03d" % number: content(number, BLOCK) for number in range(120)}
NAMES = list(BLOCKS)


@pytest.fixture
def made() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def life_of(stack: ExitStack, **settings: int) -> TierLife:
    path = stack.enter_context(shared_memory_path())
    life = TierLife(path, SimulatedDisk(SEED), **settings)
    stack.callback(life.close)
    return life


def fill(life: TierLife, names: list[bytes] = NAMES) -> None:
    """Put blocks a few at a time, each durable before the next come."""
    assert life.daemon is not None
    for at in range(0, len(names), 10):
        assert set(life.put({name: BLOCKS[name] for name in names[at : at + 10]}).values()) == {0}
        life.daemon.flush()


def read(life: TierLife, names: list[bytes]) -> list[bytes | None]:
    return life.read(names, at_once=10)


def cold(life: TierLife) -> int:
    return int((life.store.blocks.book.state == SlotState.COLD).sum())


def test_four_times_as_much_as_memory_holds_is_read_back_and_written_once(
    made: ExitStack,
) -> None:
    life = life_of(made)
    assert life.daemon is not None
    fill(life)
    assert cold(life) > 80
    assert life.client.exist(NAMES) == [1] * len(NAMES)
    written = life.disk.bytes_written  # type: ignore[attr-defined]
    for _ in range(3):
        assert read(life, NAMES) == list(BLOCKS.values())
        result = life.daemon.flush()
        assert (result.written, result.evicted, result.rejected) == (0, 0, 0)
    assert life.disk.bytes_written == written  # type: ignore[attr-defined]
    assert life.client.stats().offloaded > 300
    assert life.daemon.repository.catalog.live_totals()[0] == len(NAMES)
    life.daemon.commit()
    life.power_cut()
    assert read(life, NAMES) == list(BLOCKS.values()), "the same packs are the snapshot"


def test_off_what_is_evicted_leaves_the_live_set(made: ExitStack) -> None:
    life = life_of(made)
    life.kill_daemon()
    life.attach(offloads=False)
    assert life.daemon is not None
    life.daemon.flush()
    fill(life)
    assert cold(life) == 0
    life.daemon.flush()
    there = life.client.exist(NAMES)
    assert there.count(1) < 40
    assert life.daemon.repository.catalog.live_totals()[0] == there.count(1)


def test_a_block_that_went_before_the_store_was_told_is_a_miss_and_no_more(
    made: ExitStack,
) -> None:
    life = life_of(made)
    assert life.daemon is not None
    life.daemon.flush()
    first = NAMES[:10]
    life.put({name: BLOCKS[name] for name in first})
    life.daemon.flush(tell=False)
    life.put({name: BLOCKS[name] for name in NAMES[10:60]})
    assert life.client.exist(first) == [0] * 10
    life.daemon.flush()
    assert life.put({name: BLOCKS[name] for name in first}) == dict.fromkeys(first, 0)
    result = life.daemon.flush()
    assert (result.written, result.matched) == (0, 10), "its bytes are on disk already"


def test_removed_and_replaced_while_they_are_on_disk_only(made: ExitStack) -> None:
    life = life_of(made)
    assert life.daemon is not None
    fill(life)
    assert life.client.remove(NAMES[:5], force=True) == [0] * 5
    new = {name: content(9_000, 100) for name in NAMES[5:10]}
    assert set(life.put(new, upsert=True).values()) == {0}
    life.daemon.flush()
    expected = (BLOCKS | new).copy()
    for name in NAMES[:5]:
        del expected[name]
    assert read(life, NAMES) == [expected.get(name) for name in NAMES]
    life.daemon.flush()
    life.daemon.commit()
    life.power_cut()
    assert read(life, NAMES) == [expected.get(name) for name in NAMES]
    life.client.remove_all(force=True)
    assert life.client.exist(NAMES) == [0] * len(NAMES)
    life.daemon.flush()
    life.power_cut()
    assert life.client.exist(NAMES) == [0] * len(NAMES)


def test_compaction_moves_them_under_their_slots(made: ExitStack) -> None:
    life = life_of(made)
    assert life.daemon is not None
    fill(life)
    life.client.remove(NAMES[::2], force=True)
    life.daemon.flush()
    assert life.daemon.compact().copied == 60
    for _ in range(life.daemon.repository.retain + 1):
        life.daemon.commit()
    life.daemon.repository.catalog.shrink(rows_min=1)
    expected = [None if at % 2 == 0 else BLOCKS[name] for at, name in enumerate(NAMES)]
    assert read(life, NAMES) == expected
    result = life.daemon.flush()
    assert (result.written, result.matched) == (0, 0)


def test_a_budget_drops_the_coldest_and_the_store_hears_of_it(made: ExitStack) -> None:
    """Cold blocks that are dropped are misses at once; resident ones stay, and are misses once
    they are evicted."""
    life = life_of(made, bytes_max=4 << 20)
    assert life.daemon is not None
    fill(life, NAMES[:90])
    catalog = life.daemon.repository.catalog
    for _ in range(6):
        life.store.advance(3.0)
        life.daemon.commit()
        life.daemon.compactor.look()
        life.daemon.flush()
    files = life.disk.usage()
    assert files.capacity_bytes - files.free_bytes <= 4 << 20
    # What is live on disk and what the store serves from there are the same blocks.
    live = set(catalog.take(catalog.live_rows()).keys.to_list())
    book = life.store.blocks.book
    rows = np.flatnonzero(book.state == SlotState.COLD)
    offloaded = set(life.store.segment.mapping.keys_of(book.records[rows]).to_list())
    assert offloaded <= live
    assert life.daemon.compactor.dropped + len(catalog.live_rows()) >= 60
    resident = np.flatnonzero(book.state == SlotState.PUBLISHED)
    durable = resident[life.store.blocks.durable[resident] > 0]
    assert set(life.store.segment.mapping.keys_of(book.records[durable]).to_list()) <= live
    for name, value in zip(NAMES, read(life, NAMES), strict=True):
        assert value in (None, BLOCKS[name])
        assert value is not None or name not in live, name


def test_what_a_budget_drops_between_two_flushes_is_never_promised(made: ExitStack) -> None:
    life = life_of(made)
    assert life.daemon is not None
    assert life.daemon.session is not None
    fill(life, NAMES[:30])
    catalog, session = life.daemon.repository.catalog, life.daemon.session
    rows = catalog.live_rows()
    life.daemon.compactor._drop(session, rows)
    assert not life.store.blocks.durable.any()
    life.put({name: BLOCKS[name] for name in NAMES[30:]})
    assert life.client.exist(NAMES[:30]) == [0] * 30
    life.daemon.flush()
    assert catalog.live_totals()[0] == life.client.exist(NAMES).count(1)


def test_a_cold_block_whose_row_died_unseen_is_dropped_by_the_next_flush(made: ExitStack) -> None:
    """Its pack was found bad, say: nobody waits for the deadline of a get to learn that."""
    life = life_of(made)
    assert life.daemon is not None
    fill(life)
    assert life.daemon.session is not None
    residency = life.daemon.session.residency
    book = life.store.blocks.book
    slots = np.flatnonzero(book.state == SlotState.COLD)[:10]
    lost = life.store.segment.mapping.keys_of(book.records[slots]).to_list()
    life.daemon.repository.catalog.set_lost(residency.row[slots])
    life.daemon.flush()
    assert life.client.exist(lost) == [0] * 10
    assert set(life.put({name: BLOCKS[name] for name in lost}).values()) == {0}
    life.daemon.flush()
    assert read(life, lost) == [BLOCKS[name] for name in lost]


def test_bytes_that_went_bad_on_disk_are_a_miss_and_can_be_put_again(made: ExitStack) -> None:
    life = life_of(made)
    assert life.daemon is not None
    fill(life)
    disk = life.disk
    assert isinstance(disk, SimulatedDisk)
    with case(FaultClass.DISK_LIES, "SSD tier: every byte of the data of every pack changes"):
        for name in disk.list("packs"):
            data = np.frombuffer(disk.contents(f"packs/{name}"), np.uint8).copy()
            data[4096:-8192] ^= 0x55
            disk.replace_contents(f"packs/{name}", data.tobytes())
        values = dict(zip(NAMES, read(life, NAMES), strict=True))
        assert all(value in (None, BLOCKS[name]) for name, value in values.items())
        lost = [name for name, value in values.items() if value is None]
        assert lost
        assert life.client.exist(lost) == [0] * len(lost)


@pytest.mark.parametrize("who", ["store", "daemon", "both"])
def test_a_kill_of_either_loses_nothing_that_is_on_disk(made: ExitStack, who: str) -> None:
    life = life_of(made)
    fill(life)
    for round_ in range(3):
        with case(FaultClass.KILL, f"SSD tier: {who} killed between steps, round {round_}"):
            if who in ("daemon", "both"):
                life.kill_daemon()
            if who in ("store", "both"):
                life.kill_store()
            if life.daemon is None:
                life.attach()
            assert life.daemon is not None
            if who == "store":
                life.daemon.flush()  # as the keeper asks for, once everything is served
            # A new daemon told the store of what is in memory when it registered its blocks.
            life.put({b"more-%d-%d" % (round_, at): content(at, BLOCK) for at in range(10)})
            assert life.client.exist(NAMES) == [1] * len(NAMES)
            life.daemon.flush()
            assert read(life, NAMES) == list(BLOCKS.values())


def test_switching_it_off_drops_nothing(made: ExitStack) -> None:
    life = life_of(made)
    assert life.daemon is not None
    fill(life)
    life.daemon.commit()
    life.kill_daemon()
    life.attach(offloads=False)
    assert life.client.exist(NAMES) == [1] * len(NAMES)
    assert read(life, NAMES[:5]) == [BLOCKS[name] for name in NAMES[:5]]


def test_a_new_segment_serves_all_of_it(made: ExitStack) -> None:
    """The memory is gone and the daemon lives."""
    life = life_of(made)
    fill(life)
    life.client.close()
    life.store.kill()
    os.unlink(life.path)
    life.store.start()
    life.client = life.store.client()
    assert life.daemon is not None
    life.daemon.attach()
    assert read(life, NAMES) == list(BLOCKS.values())
    life.daemon.flush()
    assert life.daemon.repository.catalog.live_totals()[0] == len(NAMES)


def test_slots_are_its_budget_too(made: ExitStack) -> None:
    """Fewer slots than blocks: the coldest go, from the store and from the live set."""
    life = life_of(made, slots=64)
    fill(life)
    assert life.daemon is not None
    life.daemon.flush()
    there = life.client.exist(NAMES)
    assert there == sorted(there)
    assert 55 <= there.count(1) <= 64
    assert life.daemon.repository.catalog.live_totals()[0] == there.count(1)
    assert life.read(NAMES[-50:]) == [BLOCKS[name] for name in NAMES[-50:]]


def test_a_power_cut_keeps_what_a_manifest_or_a_sealed_pack_says(made: ExitStack) -> None:
    life = life_of(made)
    assert life.daemon is not None
    fill(life, NAMES[:60])
    life.daemon.commit()
    fill(life, NAMES[60:])
    life.kill_daemon()
    disk = life.disk
    assert isinstance(disk, SimulatedDisk)
    with case(FaultClass.POWER_CUT, "SSD tier: blocks on disk only, behind the last manifest"):
        disk.crash()
        with Repository.open(disk, read_only=True) as repository:
            repository.recover()
            assert contents_of(repository) == BLOCKS


def test_what_is_live_again_is_told_once_a_manifest_says_so(made: ExitStack) -> None:
    """Else the next daemon would find it dead on disk, and its bytes in no memory."""
    life = life_of(made)
    assert life.daemon is not None
    fill(life, NAMES[:10])
    session, catalog = life.daemon.session, life.daemon.repository.catalog
    assert session is not None
    life.daemon.compactor._drop(session, catalog.live_rows()[:5])
    life.daemon.commit()
    with session.residency.lock:
        session.residency.forget(session.residency.waiting(COLDER))  # as when there is room again
    result = life.daemon.flush()
    assert (result.written, result.matched) == (0, 5)
    durable = life.store.blocks.durable
    assert int((durable > 0).sum()) == 5, "only this process knows that the others live"
    assert life.daemon.compact().copied == 10
    life.daemon.flush()
    assert int((durable > 0).sum()) == 5, "a copy is no news"
    life.daemon.commit()
    life.daemon.flush()
    assert int((durable > 0).sum()) == 10


def test_what_survives_a_remove_all_is_told_again(made: ExitStack) -> None:
    """Leased blocks stay, in a new epoch: on disk they are dead, and are written again."""
    life = life_of(made)
    assert life.daemon is not None
    fill(life, NAMES[:10])
    kept = NAMES[:5]
    life.client.exist(kept)
    assert life.client.remove_all() == 5
    assert not life.store.blocks.durable.any()
    assert life.daemon.flush().written == 5
    assert int((life.store.blocks.durable > 0).sum()) == 5
    fill(life, NAMES[20:])
    assert life.client.exist(kept) == [1] * 5
    assert read(life, kept) == [BLOCKS[name] for name in kept]


def test_what_was_dropped_and_is_written_again_is_told_again(made: ExitStack) -> None:
    life = life_of(made)
    assert life.daemon is not None
    fill(life, NAMES[:10])
    session, catalog = life.daemon.session, life.daemon.repository.catalog
    assert session is not None
    life.daemon.compactor._drop(session, catalog.live_rows())
    life.daemon.commit()  # nothing needs their packs any more
    with session.residency.lock:
        session.residency.forget(session.residency.waiting(COLDER))
    assert life.daemon.flush().written == 10
    assert int((life.store.blocks.durable > 0).sum()) == 10
    fill(life, NAMES[20:])
    assert life.client.exist(NAMES[:10]) == [1] * 10
