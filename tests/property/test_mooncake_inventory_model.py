"""The inventory beside a dictionary: whatever happens in which order, both say the same."""

from __future__ import annotations

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from snapd.attach.mooncake.inventory import ColdPolicy, Inventory
from snapd.attach.mooncake.places import NOWHERE, Places
from snapd.blocks import BlockTable, KeyColumn
from snapd.wire.codes import ReturnCode
from snapd.wire.messages import EventKind

KEYS = st.sets(st.integers(0, 19).map(lambda number: b"key" * (number % 4) + b"%d" % number))
CHECKSUMS = st.integers(1, 3)
FILES = st.integers(0, 2)
CAPACITY = 16


def at(file: int, checksum: int, rows: int) -> Places:
    return Places(
        np.full(rows, file, np.int64),
        np.arange(rows, dtype=np.uint64) * np.uint64(100),
        np.full(rows, 100 + checksum, np.uint64),
    )


class InventoryMachine(RuleBasedStateMachine):
    """`resident` maps a key to (sequence, checksum, file), `cold` to (sequence, checksum)."""

    def __init__(self) -> None:
        super().__init__()
        self.inventory = Inventory(CAPACITY)
        self.inventory.begin(b"0" * 16, ColdPolicy.LOST)
        self.resident: dict[bytes, tuple[int, int, int]] = {}
        self.cold: dict[bytes, tuple[int, int]] = {}
        self.places: dict[bytes, tuple[int, int]] = {}
        """What may be held: (file, checksum) of keys in dead segments."""
        self.waiting: set[bytes] | None = None
        """Keys that may come back in this session; None: any."""
        self.is_registered = False
        self.lost: set[bytes] = set()
        self.removals: dict[bytes, int] = {}
        self.newest: dict[bytes, int] = {}
        """The highest sequence that any version of a key ever had."""
        self.look = 0

    @rule(keys=KEYS, checksum=CHECKSUMS, file=FILES)
    def see(self, keys: set[bytes], checksum: int, file: int) -> None:
        """A look finds keys that are not resident."""
        new = sorted(keys - self.resident.keys())
        self.look += 1
        column = KeyColumn.from_list(new)
        sums = np.full(len(new), checksum, np.uint64)
        left_out = self.inventory.insert(
            column, column.hashes(), at(file, checksum, len(new)), sums, look=self.look
        )
        room = CAPACITY - len(self.resident) - len(self.cold.keys() - keys)
        same = {key for key in new if self.cold.get(key, (0, 0))[1] == checksum}
        others = [key for key in new if key not in same]
        assert left_out == max(0, len(same) + len(others) - room)
        slots = self.slots(new)
        for key, slot in zip(new, slots, strict=True):
            self.cold.pop(key, None)
            if slot >= 0:
                self.resident[key] = (self.sequence(slot), checksum, file)
                self.places.pop(key, None) if key in same else None

    @rule(keys=KEYS, removed=st.booleans())
    def vanish(self, keys: set[bytes], removed: bool) -> None:
        gone = sorted(keys & self.resident.keys())
        slots = np.array(self.slots(gone), np.int64)
        sequences = np.array([self.resident[key][0] for key in gone], np.uint64)
        assert self.inventory.vanished(slots, sequences, removed=removed) == len(gone)
        for key in gone:
            del self.resident[key]
        self.check_told(gone if removed else [])

    @rule(keys=KEYS, checksum=CHECKSUMS)
    def hash_again(self, keys: set[bytes], checksum: int) -> None:
        again = sorted(keys & self.resident.keys())
        before = [self.resident[key] for key in again]
        slots = np.array(self.slots(again), np.int64)
        sequences = np.array([one[0] for one in before], np.uint64)
        self.look += 1
        sums = np.full(len(again), checksum, np.uint64)
        self.inventory.renew(slots, sequences, at(0, checksum, len(again)), sums, look=self.look)
        for key, slot, (_, old, _) in zip(again, slots.tolist(), before, strict=True):
            self.resident[key] = (self.sequence(slot), checksum, 0)
            assert (self.sequence(slot) == sequences[again.index(key)]) == (old == checksum)
        self.check_told([k for k, one in zip(again, before, strict=True) if one[1] != checksum])

    @rule(keys=KEYS, checksum=CHECKSUMS)
    def register(self, keys: set[bytes], checksum: int) -> None:
        names = sorted(keys)
        column = KeyColumn.from_list(names)
        table = BlockTable.for_keys(column, column.hashes()).with_columns(
            size=np.full(len(names), 100 + checksum), checksum=np.full(len(names), checksum)
        )
        answer = self.inventory.register_cold(table)
        held = self.inventory.held(answer.slots)
        for row, key in enumerate(names):
            known = key in self.resident or key in self.cold
            barred = self.waiting is not None and key not in self.waiting
            if known or barred:
                assert answer.codes[row] == ReturnCode.OBJECT_ALREADY_EXISTS
            elif answer.codes[row] == ReturnCode.OK:
                self.cold[key] = (int(answer.sequences[row]), checksum)
                place = self.places.get(key, (NOWHERE, 0))
                assert held.file[row] == (place[0] if place[1] == checksum else NOWHERE)
            else:
                assert answer.codes[row] == ReturnCode.NO_AVAILABLE_HANDLE
                assert len(self.resident) + len(self.cold) == CAPACITY

    @rule(keys=KEYS, file=FILES)
    def put_back(self, keys: set[bytes], file: int) -> None:
        names = sorted(keys & self.cold.keys())
        slots = np.array(self.slots(names), np.uint32)
        sequences = np.array([self.cold[key][0] for key in names], np.uint64)
        mask, fresh = self.inventory.take_cold(slots, sequences)
        assert mask.all()
        codes = self.inventory.publish(slots, sequences, fresh, at(file, 0, len(names)))
        assert not codes.any()
        for key, sequence in zip(names, fresh.tolist(), strict=True):
            self.resident[key] = (sequence, self.cold.pop(key)[1], file)
            self.places.pop(key, None)
        again = self.inventory.publish(slots, sequences, fresh, at(file, 0, len(names)))
        assert not again.any()

    @rule(file=FILES)
    def lose(self, file: int) -> None:
        dead = {key: one for key, one in self.resident.items() if one[2] == file}
        lost = self.inventory.lose(np.array([file], np.int64))
        assert len(lost) == len(dead)
        for key, (_, checksum, _) in dead.items():
            del self.resident[key]
            self.places[key] = (file, checksum)
            self.lost.add(key)

    @rule()
    def begin(self) -> None:
        unregistered = set() if self.is_registered else self.waiting or set()
        self.waiting = set(self.cold) | self.lost | unregistered
        self.is_registered = False
        self.lost = set()
        self.cold.clear()
        self.inventory.begin(b"1" * 16, ColdPolicy.KNOWN)

    @rule()
    def registered(self) -> None:
        self.inventory.registered()
        self.is_registered = True

    @rule()
    def doubt(self) -> None:
        assert self.inventory.drop_all_cold() == len(self.cold)
        self.check_told(sorted(self.cold))
        self.cold.clear()

    @rule()
    def remove_all(self) -> None:
        self.inventory.remove_all()
        self.cold.clear()
        for key, slot in zip(self.resident, self.slots(list(self.resident)), strict=True):
            _, checksum, file = self.resident[key]
            self.resident[key] = (self.sequence(slot), checksum, file)
        self.acknowledge()

    @invariant()
    def agrees(self) -> None:
        counts = self.inventory.counts()
        assert (counts[0], counts[2]) == (len(self.resident), len(self.cold))
        scan = self.inventory.scan()
        for key, slot in zip(self.resident, self.slots(list(self.resident)), strict=True):
            assert (int(scan.sequence[slot]), bool(scan.cold[slot])) == (
                self.resident[key][0],
                False,
            )
        table = self.inventory.describe(np.flatnonzero(scan.sequence))
        for key, slot, sequence in zip(
            table.keys.to_list(), table.slot.tolist(), table.slot_sequence.tolist(), strict=True
        ):
            expected = self.cold[key] if scan.cold[slot] else self.resident[key][:2]
            assert sequence == expected[0]
            assert sequence >= self.newest.get(key, 0)
            self.newest[key] = sequence
            assert sequence >= self.removals.get(key, 0)

    # --- helpers ------------------------------------------------------------------------------

    def slots(self, names: list[bytes]) -> list[int]:
        column = KeyColumn.from_list(names)
        return self.inventory.look_up(column, column.hashes()).tolist()

    def sequence(self, slot: int) -> int:
        return int(self.inventory.scan().sequence[slot])

    def check_told(self, names: list[bytes]) -> None:
        """All of these are among what is told; what is told ends nothing that is there now."""
        told = self.acknowledge()
        assert set(names) <= told

    def acknowledge(self) -> set[bytes]:
        told: set[bytes] = set()
        while len(batch := self.inventory.changes.batch()):
            for kind, key, sequence in zip(
                batch.kinds.tolist(),
                batch.keys.to_list(),
                batch.sequences.tolist(),
                strict=True,
            ):
                if kind == EventKind.REMOVED:
                    told.add(key)
                    assert sequence > self.newest.get(key, 0) or key in self.resident
                    self.removals[key] = max(self.removals.get(key, 0), sequence)
            self.inventory.changes.acknowledge(batch.number)
        return told


TestInventory = InventoryMachine.TestCase
TestInventory.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
