"""A scripted master: what happens to Mooncake's keys at one exact step of a look.

Everything is real but the master: the files in shared memory, the inventory, the look. The master
is a table of objects and counters that count as Mooncake's do (each rule was seen by running it),
and a script may change both before or after any step: `counters`, `segments`, `keys` and `locate`
of the master, and `hash` of the memory.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import MappingProxyType, TracebackType
from typing import Self

import numpy as np
import xxhash

from snapd.attach.mooncake import counters as names
from snapd.attach.mooncake.counters import Counters
from snapd.attach.mooncake.files import SegmentFile, create_segment_file
from snapd.attach.mooncake.inventory import ColdPolicy, Inventory
from snapd.attach.mooncake.layout import Layout, LiveSegment
from snapd.attach.mooncake.master import Locations, MasterAdmin, MasterKeys, MasterSegment
from snapd.attach.mooncake.memory import Memory
from snapd.attach.mooncake.places import Places
from snapd.attach.mooncake.poll import Look, Poll
from snapd.blocks import BlockTable, KeyColumn
from snapd.blocks.keys import I64, U64, Bools
from snapd.wire.messages import EventKind

BLOCK_BYTES = 512
FILE_BYTES = 64 << 10
ENDPOINT = "127.0.0.1:1"
ELSEWHERE = MasterSegment("9-9", "9-8", 0x9000_0000, FILE_BYTES, "127.0.0.2:1", 0, is_ok=True)
"""A segment of another host."""

Action = Callable[[], None]


@dataclass(frozen=True, slots=True)
class _Object:
    address: int
    size: int
    endpoint: str


@dataclass
class _Cue:
    step: str
    passes: int
    """Passes of the step until it is its turn."""
    action: Action


class Script:
    """What happens at which step; every cue must have had its turn in the end."""

    def __init__(self) -> None:
        self._cues: list[_Cue] = []

    def before(self, step: str, action: Action, nth: int = 1) -> None:
        """Just before the nth pass of this step from now on."""
        self._cues.append(_Cue(f"before {step}", nth, action))

    def after(self, step: str, action: Action, nth: int = 1) -> None:
        """Just after it."""
        self._cues.append(_Cue(f"after {step}", nth, action))

    def reach(self, step: str) -> None:
        due = []
        for cue in self._cues:
            if cue.step == step:
                cue.passes -= 1
                if not cue.passes:
                    due.append(cue)
        self._cues = [cue for cue in self._cues if cue.passes]
        for cue in due:
            cue.action()

    def check_all_reached(self) -> None:
        assert not self._cues, f"never reached: {[cue.step for cue in self._cues]}"


class ScriptedAdmin(MasterAdmin):
    """Answers from a table."""

    def __init__(self, script: Script) -> None:
        super().__init__("127.0.0.1:1")  # it connects to nothing before it is asked
        self._script = script
        self.objects: dict[bytes, _Object] = {}
        self.listed: list[MasterSegment] = [ELSEWHERE]
        self.counts: Counter[str] = Counter()

    def counters(self) -> Counters:
        self._script.reach("before counters")
        values = {name: self.counts[name] for name in names.COUNTERS}
        values[names.NEW_OBJECTS] += names.NEW_OBJECTS_AT_FIRST
        answer = Counters(MappingProxyType(values))
        self._script.reach("after counters")
        return answer

    def segments(self) -> list[MasterSegment]:
        self._script.reach("before segments")
        answer = list(self.listed)
        self._script.reach("after segments")
        return answer

    def keys(self) -> MasterKeys:
        self._script.reach("before keys")
        answer = MasterKeys(KeyColumn.from_list(sorted(self.objects)), 0)
        self._script.reach("after keys")
        return answer

    def locate(self, keys: KeyColumn, segments: Sequence[MasterSegment]) -> Locations:
        self._script.reach("before locate")
        count = len(keys)
        answer = Locations(
            np.zeros(count, np.bool_),
            np.full(count, -1, np.int64),
            np.zeros(count, np.uint64),
            np.zeros(count, np.uint64),
        )
        for row, key in enumerate(keys.to_list()):
            found = self.objects.get(key)
            answer.found[row] = found is not None
            for position, one in enumerate(segments):
                if found and found.endpoint == one.endpoint:
                    offset = found.address - one.base_address
                    if 0 <= offset <= one.size_bytes - found.size:
                        answer.segment[row] = position
                        answer.offset[row], answer.size[row] = offset, found.size
        self._script.reach("after locate")
        return answer


class ScriptedMemory(Memory):
    """Real memory; the script sees every hash."""

    def __init__(self, script: Script) -> None:
        super().__init__()
        self._script = script

    def hashes(self, places: Places) -> tuple[U64, Bools]:
        self._script.reach("before hash")
        answer = super().hashes(places)
        self._script.reach("after hash")
        return answer


class Scene:
    """One daemon's look, its inventory and memory, and a master that does as it is told."""

    def __init__(self) -> None:
        self.script = Script()
        self.admin = ScriptedAdmin(self.script)
        self.memory = ScriptedMemory(self.script)
        self.inventory = Inventory(8192, clock=lambda: 0.0)
        self.poll = Poll(self.admin, self.inventory, self.memory, lambda: 0)
        self.dead: dict[str, int] = {}
        self._files: list[SegmentFile] = []
        self.layout = Layout(())
        self.inventory.begin(b"session-0", ColdPolicy.LOST)
        self.mount()
        self.poll.begin_life(self.admin.counters(), known=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for file in self._files:
            file.unlink()
            file.close()
        if kind is None:
            self.script.check_all_reached()

    # --- segments and sessions --------------------------------------------------------------------

    def mount(self) -> None:
        """A new file, mounted as the one segment of a new session."""
        file = create_segment_file(f"snapd-scripted-{os.getpid()}", FILE_BYTES, group_shared=False)
        self._files.append(file)
        number = self.memory.add(file)
        base = 0x1000_0000 * (number + 1)
        segment = MasterSegment(f"1-{number}", "2-1", base, FILE_BYTES, ENDPOINT, 0, is_ok=True)
        self.admin.listed.append(segment)
        self.layout = Layout((LiveSegment(segment, number, 0, 0),))

    @property
    def segment(self) -> MasterSegment:
        """That of the session."""
        return self.layout.live[0].segment

    def unlist(self, segment_id: str) -> None:
        """The master forgets a segment and the keys in it, and counts nothing."""
        gone = [one for one in self.admin.listed if one.segment_id == segment_id]
        self.admin.listed = [one for one in self.admin.listed if one not in gone]
        for key, found in list(self.admin.objects.items()):
            if any(
                one.endpoint == found.endpoint
                and 0 <= found.address - one.base_address < one.size_bytes
                for one in gone
            ):
                del self.admin.objects[key]

    def replace_segment(self) -> None:
        """Another segment is where ours was: same endpoint, same addresses, another file."""
        at = self.admin.listed.index(self.segment)
        old = self.segment
        self.admin.listed[at] = MasterSegment(
            "7-7", "2-1", old.base_address, old.size_bytes, old.endpoint, 0, is_ok=True
        )

    def store_dies(self) -> str:
        """The store of the session is found dead, and a new session begins with another file; the
        name of the dead segment, which the master lists still."""
        number, name = self.layout.live[0].file, self.segment.segment_id
        self.dead[name] = number
        files: I64 = np.array([number], np.int64)
        self.poll.end_segments(files, self.dead)
        self.inventory.lose(files)
        self.inventory.registered()
        self.inventory.begin(f"session-{number + 1}".encode(), ColdPolicy.KNOWN)
        self.mount()
        return name

    def restart(self) -> None:
        """The master begins a new life: no keys, and all counters at 0; the stores register their
        segments again."""
        self.admin.objects.clear()
        self.admin.counts.clear()

    # --- what clients and the master do -----------------------------------------------------------

    def put(self, key: str, *, at: int = 0, version: int = 1) -> None:
        """A put of a new key, to block number `at` of the live segment."""
        self._count(names.PUT_STARTS[0], names.NEW_OBJECTS, names.PUT_ENDS[0])
        segment = self.segment
        self._write(key, segment.base_address + at * BLOCK_BYTES, version)

    def put_elsewhere(self, key: str) -> None:
        """A put of a new key into another host's memory."""
        self._count(names.PUT_STARTS[0], names.NEW_OBJECTS, names.PUT_ENDS[0])
        one = ELSEWHERE
        self.admin.objects[key.encode()] = _Object(one.base_address, BLOCK_BYTES, one.endpoint)

    def upsert(self, key: str, *, version: int) -> None:
        """Other bytes of the same size, written in place."""
        self._count(names.PUT_STARTS[0], names.PUT_ENDS[0])
        self._write(key, self.admin.objects[key.encode()].address, version)

    def remove(self, key: str) -> None:
        """A removal by name."""
        self.count_removal()
        if self.admin.objects.pop(key.encode(), None) is None:
            self._count(names.FAILED_REMOVES[0])

    def count_removal(self) -> None:
        """One that the master has counted and not carried out."""
        self._count(names.REMOVES)

    def forget(self, key: str) -> None:
        """The key is not listed any more, and nothing is counted."""
        del self.admin.objects[key.encode()]

    def clear(self, key: str) -> None:
        """Its client clears the replicas of a key."""
        self._count(names.CLEARS)
        self.forget(key)

    def remove_matching(self) -> None:
        """A removal by a pattern that no listed key has."""
        self._count(names.REGEX_REMOVES)

    def remove_all(self) -> None:
        """A removal of everything."""
        self._count(names.REMOVE_ALLS)
        self.admin.objects.clear()

    def evict(self, key: str) -> None:
        """The master evicts a key."""
        self._count(names.EVICTED)
        self.forget(key)

    def discard(self, key: str) -> None:
        """An upsert of another size lets go of what was there, and is taken back."""
        self._count(names.PUT_STARTS[0], names.NEW_OBJECTS, names.DISCARDS, names.REVOKES[0])
        self.forget(key)

    def move(self, key: str, *, to: int) -> None:
        """A key goes to another place of the live segment."""
        self._count(names.MOVES[1])
        old = self.admin.objects[key.encode()]
        number = self.layout.live[0].file
        start = old.address - self.segment.base_address
        data = bytes(self._files[number].data[start : start + old.size])
        self._place(key, self.segment.base_address + to * BLOCK_BYTES, data)

    def swap(self, old: str, new: str, *, at: int = 0) -> Action:
        """An action: `old` is evicted, and `new` put where it was."""

        def action() -> None:
            self.evict(old)
            self.put(new, at=at)

        return action

    def register_anew(self) -> None:
        """A client registers anew, as one does that the master took for dead."""
        self._count(names.REMOUNTS)

    # --- what snapd does and knows ----------------------------------------------------------------

    def look(self) -> Look:
        """Look once."""
        return self.poll.look(self.layout, self.dead)

    def look_twice(self) -> None:
        """So that everything so far is accounted for."""
        self.look()
        self.look()

    def register_cold(self, *keys: str, version: int = 1) -> BlockTable:
        """The blocks of these keys are on disk, and wait to be put back; what is in the slots."""
        column = KeyColumn.from_list([key.encode() for key in keys])
        table = BlockTable.for_keys(column, column.hashes()).with_columns(
            size=np.full(len(keys), BLOCK_BYTES),
            checksum=np.array([checksum(key, version) for key in keys], np.uint64),
        )
        registered = self.inventory.register_cold(table)
        self.inventory.registered()
        return self.inventory.describe(registered.slots[registered.codes == 0].astype(np.int64))

    def put_back(self, table: BlockTable, *, at: int = 0) -> None:
        """As the sink does it: put one block, and publish it where it was seen."""
        _, fresh = self.inventory.take_cold(table.slot, table.slot_sequence)
        (key,) = table.keys.to_list()
        self.put(key.decode(), at=at)
        places = Places(
            np.array([self.layout.live[0].file], np.int64),
            np.array([at * BLOCK_BYTES], np.uint64),
            np.array([BLOCK_BYTES], np.uint64),
        )
        codes = self.inventory.publish(table.slot, table.slot_sequence, fresh, places)
        assert codes.tolist() == [0]

    def resident(self) -> dict[str, int]:
        """Checksum of each resident block."""
        kept = self.inventory.resident()
        keys = [key.decode() for key in self.inventory.keys_of(kept.slots).to_list()]
        return dict(zip(keys, kept.checksum.tolist(), strict=True))

    def cold(self) -> set[str]:
        """Keys that wait to be put back."""
        slots = np.flatnonzero(self.inventory.scan().cold)
        return {key.decode() for key in self.inventory.keys_of(slots).to_list()}

    def told(self) -> list[str]:
        """Keys that were told as removed, and `*` for a removal of everything; each once."""
        batch = self.inventory.changes.batch()
        self.inventory.changes.acknowledge(batch.number)
        pairs = zip(batch.kinds.tolist(), batch.keys.to_list(), strict=True)
        return ["*" if kind == EventKind.REMOVE_ALL else key.decode() for kind, key in pairs]

    # --- inside -----------------------------------------------------------------------------------

    def _count(self, *counted: str) -> None:
        self.admin.counts.update(counted)

    def _write(self, key: str, address: int, version: int) -> None:
        self._place(key, address, content(key, version))

    def _place(self, key: str, address: int, data: bytes) -> None:
        number = self.layout.live[0].file
        with open(self._files[number].path, "r+b", buffering=0) as stream:
            stream.seek(address - self.segment.base_address)
            stream.write(data)
        self.admin.objects[key.encode()] = _Object(address, len(data), ENDPOINT)


def content(key: str, version: int = 1) -> bytes:
    """The bytes of a key."""
    return xxhash.xxh3_128_digest(f"{key}/{version}".encode()) * (BLOCK_BYTES // 16)


def checksum(key: str, version: int = 1) -> int:
    """Of these bytes."""
    return xxhash.xxh3_64_intdigest(content(key, version))
