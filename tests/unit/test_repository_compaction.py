"""Compaction moves blocks and changes nothing else, whatever happens to them meanwhile."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from fault_ledger import FaultClass, case
from repository_kit import append, blank, content, contents_of, put, remove

from snapd.blocks import Codec, KeyColumn, hash_keys
from snapd.blocks.keys import I64
from snapd.disk.simulated import SimulatedDisk
from snapd.errors import DiskError
from snapd.repository import Moved, Purge, Repository, RowState, intake

SEED = 11_031
SIZE = 6000


def opened(disk: SimulatedDisk, *, retain: int = 1, codec: Codec = Codec.RAW) -> Repository:
    repository = Repository.open(disk, retain=retain, codec=codec)
    repository.recover()
    return repository


def values(sequence: int, *names: str) -> dict[bytes, bytes]:
    return {name.encode(): content(name.encode(), sequence, SIZE) for name in names}


def row_of(repository: Repository, key: bytes) -> I64:
    return repository.catalog.find(KeyColumn.from_list([key]), hash_keys([key]))


def sequences(repository: Repository) -> list[int]:
    return [pack.sequence for pack in repository.packs()]


def after(disk: SimulatedDisk, ending: str) -> dict[bytes, bytes]:
    """What is there after the power is cut, by the manifest or without any."""
    disk.crash()
    with opened(disk) as repository:
        if ending == "rebuild":
            repository.rebuild()
        return contents_of(repository)


@pytest.mark.parametrize("codec", [Codec.RAW, Codec.ZSTD])
@pytest.mark.parametrize("ending", ["recover", "rebuild"])
def test_blocks_move_and_what_is_dead_goes_from_the_disk(codec: Codec, ending: str) -> None:
    disk = SimulatedDisk(SEED)
    with opened(disk, codec=codec) as repository:
        zeros = {b"zeros": bytes(SIZE)}
        put(repository, {**values(1, "a", "b", "c", "d"), **zeros}, sequence=1)
        put(repository, values(2, "b", "e"), sequence=2)
        remove(repository, [b"c"], sequence=3)
        repository.commit()
        right = {**values(1, "a", "d"), **values(2, "b", "e"), **zeros}
        old, before = sequences(repository), repository.bytes_used
        result = repository.compact(old)
        assert (result.packs, result.packs_written, result.copied) == (2, 1, 5)
        assert (result.rejected, result.died, result.complete) == (0, 0, True)
        assert result.copied_bytes == 5 * SIZE
        assert contents_of(repository) == right
        repository.commit()
        assert not set(sequences(repository)) & set(old), "emptied packs are still there"
        assert repository.bytes_used < before
        assert repository.verify(all_blocks=True).findings == []
    assert after(disk, ending) == right


def test_evicted_blocks_are_not_copied_and_what_they_said_still_holds() -> None:
    disk = SimulatedDisk(SEED)
    with opened(disk) as repository:
        put(repository, values(1, "a", "keeps-the-first-pack"), sequence=1)
        put(repository, values(2, "a", "b"), sequence=2)
        repository.catalog.set_live(row_of(repository, b"a"), live=False)
        repository.commit()
        result = repository.compact([2])
        assert (result.copied, result.died) == (1, 0)
        repository.commit()
        assert sequences(repository) == [1, 3]
    # Only the pack that is gone said that the first version of `a` was superseded.
    assert after(disk, "rebuild") == {**values(1, "keeps-the-first-pack"), **values(2, "b")}


def test_a_deleted_pack_does_not_take_the_copy_along_with_the_original() -> None:
    """The second pack keeps a dead original of `a` when the first, which had `a` too, is deleted:
    to say then that the original ended would end its copy."""
    disk = SimulatedDisk(SEED)
    with opened(disk) as repository:
        put(repository, values(1, "a"), sequence=1)
        put(repository, values(2, "a", "b"), sequence=2)
        repository.catalog.set_live(row_of(repository, b"b"), live=False)
        repository.compact([2])
        repository.catalog.set_live(row_of(repository, b"b"), live=True)
        right = values(2, "a", "b")
        repository.commit()
        assert sequences(repository) == [2, 3]
        put(repository, values(4, "c"), sequence=4)
        assert contents_of(repository) == {**right, **values(4, "c")}
    assert after(disk, "rebuild") == {**right, **values(4, "c")}


# --- what happens to a block while it is copied ---------------------------------------------------


def upsert(repository: Repository) -> None:
    put(repository, values(5, "a"), sequence=5)


def remove_it(repository: Repository) -> None:
    remove(repository, [b"a"], sequence=5)


def remove_all(repository: Repository) -> None:
    repository.journal(epoch=1)


def evict(repository: Repository) -> None:
    repository.catalog.set_live(row_of(repository, b"a"), live=False)


@contextmanager
def then(work: Callable[[], None]) -> Iterator[Moved]:
    """Do this while the new pack is on disk already and not yet in the catalog."""
    work()
    yield lambda old, new: None


EVENTS = {
    upsert: {**values(5, "a"), **values(1, "b")},
    remove_it: values(1, "b"),
    remove_all: {},
    evict: values(1, "b"),
}


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("moment", ["before the read", "before the seal", "before the adoption"])
@pytest.mark.parametrize("ending", ["go on", "recover", "commit", "rebuild"])
def test_what_happens_meanwhile_wins_over_the_copy(
    event: Callable[[Repository], None], moment: str, ending: str
) -> None:
    disk = SimulatedDisk(SEED)
    repository = opened(disk)
    put(repository, values(1, "a"), sequence=1)
    put(repository, values(1, "b"), sequence=1)
    calls = 0

    def pace(amount: int) -> None:
        nonlocal calls
        calls += 1
        if calls == {"before the read": 1, "before the seal": 2}.get(moment):
            event(repository)

    late = moment == "before the adoption"
    repository.compact(
        [1, 2], pace=pace, adopting=lambda: then(lambda: event(repository) if late else None)
    )
    right = EVENTS[event]
    assert contents_of(repository) == right
    if ending == "commit":
        repository.commit()
        repository.commit()
    repository.close()
    if ending != "go on":
        found = after(disk, ending)
        # Evicted blocks may come back with their bytes until a snapshot says that they left.
        back = values(1, "a") if event is evict and ending != "commit" else {}
        assert found in (right, {**right, **back})


def test_a_removal_whose_pack_came_and_went_is_said_by_the_pack_it_concerns() -> None:
    """A pack that was begun before this one may carry the removal, and be deleted before this one
    is sealed: then neither a journal nor another pack tells a rebuild."""
    disk = SimulatedDisk(SEED)
    with opened(disk) as repository:
        earlier = repository.begin_pack()
        append(earlier, values(2, "soon-evicted"), sequence=2)
        writer = repository.begin_pack()
        append(writer, values(3, "a", "b"), sequence=3)
        remove(repository, [b"a"], sequence=4)
        earlier.seal()
        repository.catalog.set_live(row_of(repository, b"soon-evicted"), live=False)
        repository.commit()
        repository.commit()
        assert sequences(repository) == []
        assert disk.list("journal") == []
        writer.seal()
        assert contents_of(repository) == values(3, "b")
    assert after(disk, "rebuild") == values(3, "b")


def test_an_upsert_whose_pack_came_and_went_still_wins_over_the_copy() -> None:
    disk = SimulatedDisk(SEED)
    with opened(disk) as repository:
        put(repository, values(1, "a", "b"), sequence=1)
        earlier = repository.begin_pack()
        append(earlier, values(2, "a"), sequence=2)

        def work() -> None:
            earlier.seal()
            repository.catalog.set_live(row_of(repository, b"a"), live=False)
            repository.catalog.set_live(row_of(repository, b"b"), live=False)
            repository.commit()
            repository.commit()
            assert sequences(repository) == []

        repository.compact([1], adopting=lambda: then(work))
        assert b"a" not in contents_of(repository)
    assert b"a" not in after(disk, "rebuild")


# --- rows, slots and readers ----------------------------------------------------------------------


def test_whoever_keeps_rows_is_told_in_the_step_that_moves_them() -> None:
    disk = SimulatedDisk(SEED)
    with opened(disk) as repository:
        old = put(repository, values(1, "a", "b", "c"), sequence=1)
        repository.catalog.set_heat(old, np.array([1.5, 2.5, 3.5], np.float32))
        told: list[tuple[list[int], list[int]]] = []
        inside = False

        @contextmanager
        def adopting() -> Iterator[Moved]:
            nonlocal inside
            inside = True
            assert repository.catalog.is_live(old).all()
            repository.catalog.set_heat(old[2:], np.array([9.5], np.float32))
            yield lambda before, now: told.append((before.tolist(), now.tolist()))
            assert not repository.catalog.is_live(old).any()
            inside = False

        repository.compact([1], adopting=adopting)
        assert not inside
        [(before, now)] = told
        assert before == old.tolist()
        new = np.array(now)
        assert (repository.catalog.state_of(old) == RowState.SUPERSEDED).all()
        assert repository.catalog.is_live(new).all()
        assert repository.catalog.newest_copies(old).tolist() == now
        assert repository.catalog.column("heat", new).tolist() == [1.5, 2.5, 9.5]


def test_a_read_follows_a_block_whose_pack_is_gone() -> None:
    disk = SimulatedDisk(SEED)
    with opened(disk) as repository:
        old = put(repository, values(1, "a", "b"), sequence=1)
        repository.commit()
        repository.compact([1])
        repository.commit()
        assert sequences(repository) == [2]
        buffers = [blank(SIZE), blank(SIZE)]
        good, rows = repository.read_newest(old, buffers)
        assert good.all()
        assert repository.catalog.is_live(rows).all()
        assert bytes(buffers[0][:SIZE]) == values(1, "a")[b"a"]
        repository.catalog.shrink(rows_min=1)
        assert (repository.catalog.state_of(old) == RowState.LOST).all()
        assert not repository.read(old, buffers).any(), "a row that is gone is nobody's"


def test_a_purge_reaches_blocks_that_moved_while_it_went_on() -> None:
    disk = SimulatedDisk(SEED)
    with opened(disk) as repository:
        put(repository, values(1, "secret-a", "b"), sequence=1)
        rows_end = repository.catalog.rows_end
        repository.compact([1])
        purge = Purge(repository, b"secret", repository.compact)
        purge.remove(rows_end)
        assert contents_of(repository) == values(1, "b")
        assert purge.erase().keys == 1
    assert after(disk, "rebuild") == values(1, "b")


def test_removals_in_great_number_seal_a_pack_that_is_open_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(intake, "RECENT_REMOVALS_MAX", 3)
    disk = SimulatedDisk(SEED)
    with opened(disk) as repository:
        for name in ("a", "b", "c"):
            put(repository, values(1, name), sequence=1)
        calls = 0

        def pace(amount: int) -> None:
            nonlocal calls
            calls += 1
            if calls == 2:
                remove(repository, [b"a", b"x", b"y", b"z"], sequence=7)

        result = repository.compact([1, 2, 3], pace=pace)
        assert (result.packs_written, result.copied, result.died) == (2, 2, 1)
        assert contents_of(repository) == values(1, "b", "c")
    assert after(disk, "rebuild") == values(1, "b", "c")


# --- damage and failures --------------------------------------------------------------------------


def test_a_bad_block_is_counted_and_kept_for_a_look_and_never_copied() -> None:
    disk = SimulatedDisk(SEED)
    with opened(disk) as repository:
        rows = put(repository, values(1, "a", "b", "c"), sequence=1)
        [name] = disk.list("packs")
        data = bytearray(disk.contents(f"packs/{name}"))
        data[int(repository.catalog.column("pack_offset", rows[1:2])[0]) + 17] ^= 1
        disk.replace_contents(f"packs/{name}", bytes(data))
        with case(FaultClass.DISK_LIES, "compaction/a flipped bit in a block that is copied"):
            result = repository.compact([1])
            assert (result.copied, result.rejected, result.died) == (2, 1, 0)
            assert len(disk.list("quarantine")) == 1
            assert contents_of(repository) == values(1, "a", "c")
        repository.commit()
    assert after(disk, "recover") == values(1, "a", "c")


def test_a_rebuild_beside_a_damaged_pack_keeps_the_copies_of_dead_originals() -> None:
    disk = SimulatedDisk(SEED)
    with opened(disk) as repository:
        put(repository, values(1, "a", "b", "removed"), sequence=1)
        put(repository, values(1, "lost"), sequence=1)
        remove(repository, [b"removed"], sequence=2)
        repository.commit()
        repository.compact([1])
        [name] = [pack.name for pack in repository.packs() if pack.sequence == 2]
        disk.replace_contents(name, disk.contents(name)[:-4096])
    disk.crash()
    with opened(disk) as repository:
        assert [pack.sequence for pack in repository.packs()] == [1, 3]
        assert repository.rebuild().unreadable_packs
        assert contents_of(repository) == values(1, "a", "b")


@pytest.mark.parametrize("kind", ["create", "read", "write", "sync", "rename", "syncdir"])
def test_a_disk_that_fails_costs_no_block_and_the_next_try_works(kind: str) -> None:
    disk = SimulatedDisk(SEED)
    right = values(1, "a", "b", "c")
    with opened(disk) as repository:
        put(repository, right, sequence=1)
        disk.fail_kind(kind, 0, errno.ENOSPC if kind in {"create", "write"} else errno.EIO)
        with case(FaultClass.DISK_REFUSES, f"compaction/the first {kind} fails, then again"):
            with pytest.raises(DiskError):
                repository.compact([1])
            disk.fault = None
            assert contents_of(repository) == right
            assert repository.compact([1]).copied == 3
        repository.commit()
        assert contents_of(repository) == right
    assert after(disk, "rebuild") == right


def test_it_stops_when_asked_and_what_was_not_sealed_stays_where_it_was() -> None:
    disk = SimulatedDisk(SEED)
    right = values(1, "a", "b", "c")
    with opened(disk) as repository:
        for name in ("a", "b", "c"):
            put(repository, values(1, name), sequence=1)
        asked = 0

        def stop() -> bool:
            nonlocal asked
            asked += 1
            return asked == 3

        result = repository.compact([1, 2, 3], stop=stop)
        assert (result.complete, result.packs, result.copied) == (False, 2, 0)
        assert contents_of(repository) == right
        assert not [name for name in disk.list("packs") if name.endswith(".tmp")]
        assert sequences(repository) == [1, 2, 3]
        assert repository.compact([1, 99, 3]).copied == 2, "a pack that is not there is passed over"
    assert after(disk, "rebuild") == right
