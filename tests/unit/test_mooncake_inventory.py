"""The inventory: versions, cold blocks, places that outlive their segment, and what is told."""

from __future__ import annotations

import numpy as np
import pytest

from snapd.attach.mooncake.inventory import ColdPolicy, Inventory
from snapd.attach.mooncake.places import NOWHERE, Places
from snapd.blocks import BlockTable, KeyColumn
from snapd.blocks.keys import I64, U64
from snapd.wire.codes import ReturnCode
from snapd.wire.messages import EventKind


def column(*names: str) -> KeyColumn:
    return KeyColumn.from_list([name.encode() for name in names])


def places(file: int, offsets: list[int], size: int = 100) -> Places:
    rows = len(offsets)
    return Places(
        np.full(rows, file, np.int64), np.array(offsets, np.uint64), np.full(rows, size, np.uint64)
    )


def blocks(*names: str, checksum: int = 7, size: int = 100) -> BlockTable:
    keys = column(*names)
    rows = len(names)
    return BlockTable.for_keys(keys, keys.hashes()).with_columns(
        size=np.full(rows, size),
        checksum=np.full(rows, checksum),
        heat=np.full(rows, 2.0),
        parent=np.full(rows, 9),
    )


def insert(
    inventory: Inventory, *names: str, file: int = 0, checksum: int = 7, look: int = 1
) -> None:
    keys = column(*names)
    offsets = [100 * at for at in range(len(names))]
    sums = np.full(len(names), checksum, np.uint64)
    inventory.insert(keys, keys.hashes(), places(file, offsets), sums, look=look)


def slots_of(inventory: Inventory, *names: str) -> I64:
    keys = column(*names)
    return inventory.look_up(keys, keys.hashes())


def sequences(inventory: Inventory, slots: I64) -> U64:
    return inventory.scan().sequence[slots]


def told(inventory: Inventory) -> list[tuple[int, bytes]]:
    batch = inventory.changes.batch()
    return list(zip(batch.kinds.tolist(), batch.keys.to_list(), strict=True))


@pytest.fixture
def inventory() -> Inventory:
    fresh = Inventory(64)
    fresh.begin(b"s" * 16, ColdPolicy.LOST)
    return fresh


def test_what_is_inserted_is_described_with_its_place(inventory: Inventory) -> None:
    insert(inventory, "a", "bb")
    slots = slots_of(inventory, "bb", "a")
    table = inventory.describe(slots)
    assert table.keys.to_list() == [b"bb", b"a"]
    assert table.offset.tolist() == [100, 0]
    assert table.checksum.tolist() == [7, 7]
    where = inventory.places(slots, table.slot_sequence)
    assert where.file.tolist() == [0, 0]
    assert (
        inventory.places(slots, table.slot_sequence + np.uint64(1)).file.tolist() == [NOWHERE] * 2
    )


def test_a_slot_is_used_again_under_another_sequence(inventory: Inventory) -> None:
    insert(inventory, "a")
    slot = slots_of(inventory, "a")
    before = sequences(inventory, slot)
    assert inventory.vanished(slot, before, removed=False) == 1
    insert(inventory, "b")
    assert slots_of(inventory, "b").tolist() == slot.tolist()
    assert sequences(inventory, slot)[0] > before[0]
    assert inventory.vanished(slot, before, removed=True) == 0
    assert told(inventory) == []


def test_a_removal_is_told_with_a_sequence_above_the_version(inventory: Inventory) -> None:
    insert(inventory, "a")
    slot = slots_of(inventory, "a")
    before = sequences(inventory, slot)
    inventory.vanished(slot, before, removed=True)
    batch = inventory.changes.batch()
    assert told(inventory) == [(EventKind.REMOVED, b"a")]
    assert batch.sequences[0] > before[0]
    inventory.changes.acknowledge(batch.number)
    assert told(inventory) == []


def test_other_bytes_at_the_same_place_are_a_new_version(inventory: Inventory) -> None:
    insert(inventory, "a", "b")
    slots = slots_of(inventory, "a", "b")
    before = sequences(inventory, slots)
    sums = np.array([7, 8], np.uint64)
    assert inventory.renew(slots, before, places(0, [0, 100]), sums, look=2) == 1
    after = sequences(inventory, slots)
    assert after[0] == before[0]
    assert after[1] > before[1]
    assert told(inventory) == [(EventKind.REMOVED, b"b")]
    # The removal ends what was before the new version, and not the version itself.
    assert inventory.changes.batch().sequences[0] == after[1]


def test_a_cold_block_is_published_once(inventory: Inventory) -> None:
    answer = inventory.register_cold(blocks("a"))
    assert answer.codes.tolist() == [ReturnCode.OK]
    mask, fresh = inventory.take_cold(answer.slots, answer.sequences)
    assert mask.all()
    again = inventory.take_cold(answer.slots, answer.sequences)
    assert again[1].tolist() == fresh.tolist()
    codes = inventory.publish(answer.slots, answer.sequences, fresh, places(3, [500]))
    assert codes.tolist() == [ReturnCode.OK]
    assert inventory.places(answer.slots, fresh).offset.tolist() == [500]
    assert inventory.describe(answer.slots.astype(np.int64)).parent.tolist() == [9]
    assert not inventory.take_cold(answer.slots, answer.sequences)[0].any()


def test_a_look_that_sees_what_was_put_back_first_keeps_the_promised_sequence(
    inventory: Inventory,
) -> None:
    answer = inventory.register_cold(blocks("a"))
    _, fresh = inventory.take_cold(answer.slots, answer.sequences)
    insert(inventory, "a")
    assert sequences(inventory, answer.slots.astype(np.int64)).tolist() == fresh.tolist()
    codes = inventory.publish(answer.slots, answer.sequences, fresh, places(0, [0]))
    assert codes.tolist() == [ReturnCode.OK]
    assert told(inventory) == []


def test_other_bytes_that_a_client_put_meanwhile_win_over_a_cold_block(
    inventory: Inventory,
) -> None:
    answer = inventory.register_cold(blocks("a"))
    _, fresh = inventory.take_cold(answer.slots, answer.sequences)
    insert(inventory, "a", checksum=8)
    codes = inventory.publish(answer.slots, answer.sequences, fresh, places(0, [0]))
    assert codes.tolist() == [ReturnCode.OBJECT_NOT_FOUND]
    batch = inventory.changes.batch()
    assert told(inventory) == [(EventKind.REMOVED, b"a")]
    now = sequences(inventory, slots_of(inventory, "a"))
    assert fresh[0] < batch.sequences[0] <= now[0]


def test_a_resident_key_is_not_registered_cold(inventory: Inventory) -> None:
    insert(inventory, "a")
    answer = inventory.register_cold(blocks("a", "b"))
    assert answer.codes.tolist() == [ReturnCode.OBJECT_ALREADY_EXISTS, ReturnCode.OK]


def test_no_slot_left_is_said_and_counted() -> None:
    inventory = Inventory(2)
    assert inventory.register_cold(blocks("a", "b", "c")).codes.tolist() == [
        ReturnCode.OK,
        ReturnCode.OK,
        ReturnCode.NO_AVAILABLE_HANDLE,
    ]
    insert(inventory, "x", "y")
    assert inventory.dropped_for_space == 2


@pytest.mark.parametrize("policy", [ColdPolicy.GONE, ColdPolicy.REMOVED])
def test_in_a_life_that_goes_on_what_is_not_listed_is_gone(policy: ColdPolicy) -> None:
    inventory = Inventory(8)
    inventory.begin(b"s" * 16, policy)
    insert(inventory, "here")
    answer = inventory.register_cold(blocks("here", "left"))
    assert answer.codes.tolist() == [ReturnCode.OBJECT_ALREADY_EXISTS] * 2
    expected = [(EventKind.REMOVED, b"left")] if policy is ColdPolicy.REMOVED else []
    assert told(inventory) == expected


def test_a_session_that_ends_before_all_is_registered_passes_on_what_it_was_to_put_back() -> None:
    inventory = Inventory(8)
    inventory.begin(b"s" * 16, ColdPolicy.LOST)
    insert(inventory, "a", file=1)
    inventory.registered()
    inventory.lose(np.array([1]))
    for boot in (b"t", b"u"):
        inventory.begin(boot * 16, ColdPolicy.KNOWN)
    answer = inventory.register_cold(blocks("a", "never lost"))
    assert answer.codes.tolist() == [ReturnCode.OK, ReturnCode.OBJECT_ALREADY_EXISTS]
    inventory.registered()
    inventory.drop_cold(answer.slots[:1], answer.sequences[:1])
    inventory.begin(b"v" * 16, ColdPolicy.KNOWN)
    assert inventory.register_cold(blocks("a")).codes.tolist() == [ReturnCode.OBJECT_ALREADY_EXISTS]


def test_what_is_in_doubt_before_it_is_registered_is_so_in_the_next_session_too() -> None:
    inventory = Inventory(8)
    inventory.begin(b"s" * 16, ColdPolicy.LOST)
    inventory.doubt_waiting()
    inventory.begin(b"t" * 16, ColdPolicy.LOST)
    inventory.register_cold(blocks("a"))
    assert told(inventory) == [(EventKind.REMOVED, b"a")]
    inventory.registered()
    inventory.begin(b"u" * 16, ColdPolicy.LOST)
    assert inventory.register_cold(blocks("a")).codes.tolist() == [ReturnCode.OK]


def test_the_place_in_a_dead_segment_is_held_until_the_block_is_back(
    inventory: Inventory,
) -> None:
    insert(inventory, "a", "b", "c", file=1)
    insert(inventory, "other", file=2)
    lost = inventory.lose(np.array([1]))
    assert len(lost) == 3
    assert slots_of(inventory, "a", "other")[0] == -1
    inventory.begin(b"t" * 16, ColdPolicy.LOST)
    table = BlockTable.concatenate([blocks("a", "b"), blocks("c", checksum=99), blocks("new")])
    answer = inventory.register_cold(table)
    held = inventory.held(answer.slots)
    # Other bytes than the disk has, and a key that was never there, are not held.
    assert held.file.tolist() == [1, 1, NOWHERE, NOWHERE]
    assert held.offset.tolist()[:2] == [0, 100]
    _, fresh = inventory.take_cold(answer.slots[:1], answer.sequences[:1])
    inventory.publish(answer.slots[:1], answer.sequences[:1], fresh, places(2, [700]))
    assert inventory.held(answer.slots).file.tolist() == [NOWHERE, 1, NOWHERE, NOWHERE]
    inventory.begin(b"u" * 16, ColdPolicy.LOST)
    assert inventory.held(inventory.register_cold(blocks("b")).slots).file.tolist() == [1]
    inventory.forget_files(np.array([1]))
    assert inventory.held(slots_of(inventory, "b").astype(np.uint32)).file.tolist() == [NOWHERE]


def test_in_doubt_cold_blocks_are_dropped_and_told(inventory: Inventory) -> None:
    inventory.register_cold(blocks("a", "b"))
    insert(inventory, "c")
    assert inventory.drop_all_cold() == 2
    assert told(inventory) == [(EventKind.REMOVED, b"a"), (EventKind.REMOVED, b"b")]
    assert inventory.counts()[0] == 1


def test_after_remove_all_what_is_listed_is_newer_than_the_epoch(inventory: Inventory) -> None:
    insert(inventory, "a")
    inventory.register_cold(blocks("b"))
    before = sequences(inventory, slots_of(inventory, "a"))
    assert inventory.remove_all() == 1
    table = inventory.describe(slots_of(inventory, "a"))
    assert table.epoch.tolist() == [1]
    assert table.sequence[0] > before[0]
    batch = inventory.changes.batch()
    assert batch.kinds.tolist() == [EventKind.REMOVE_ALL]
    assert batch.epochs.tolist() == [1]


def test_a_session_takes_what_was_not_acknowledged_along_in_its_own_epochs(
    inventory: Inventory,
) -> None:
    insert(inventory, "a", "b")
    inventory.vanished(
        slots_of(inventory, "a"), sequences(inventory, slots_of(inventory, "a")), removed=True
    )
    inventory.remove_all()
    inventory.vanished(
        slots_of(inventory, "b"), sequences(inventory, slots_of(inventory, "b")), removed=True
    )
    assert inventory.begin(b"t" * 16, ColdPolicy.LOST) == 1
    batch = inventory.changes.batch()
    assert told(inventory) == [(EventKind.REMOVED, b"b")]
    assert batch.epochs.tolist() == [1]
    inventory.changes.acknowledge(batch.number)
    assert inventory.begin(b"u" * 16, ColdPolicy.LOST) == 0


def test_a_mark_separates_what_became_resident_later(inventory: Inventory) -> None:
    insert(inventory, "a")
    mark = inventory.mark()
    insert(inventory, "b")
    assert inventory.resident(mark).slots.tolist() == slots_of(inventory, "a").tolist()
    assert len(inventory.resident().slots) == 2


def test_doubt_has_a_block_hashed_again(inventory: Inventory) -> None:
    insert(inventory, "a", look=5)
    slot = slots_of(inventory, "a")
    inventory.doubt(slot, sequences(inventory, slot))
    assert inventory.resident().hashed_at.tolist() == [0]
