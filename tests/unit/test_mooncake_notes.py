"""The note of our segments on the disk: whole or not there, and never waited for without an end."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from fault_ledger import FaultClass, case

from snapd.attach.mooncake.master import MasterSegment
from snapd.attach.mooncake.notes import NOTED_SECONDS_MAX, NOTES_FILE, MountNotes
from snapd.disk.machine import SimulatedCrash
from snapd.disk.simulated import SimulatedDisk

URL = "http://127.0.0.1:8088"
SEGMENTS = {URL: ("1-2", "3-4")}


def listed(*segment_ids: str) -> list[MasterSegment]:
    return [
        MasterSegment(one, "9-9", 1 << 20, 1 << 20, "h:1", 0, is_ok=True) for one in segment_ids
    ]


def test_what_was_noted_is_read() -> None:
    disk = SimulatedDisk()
    assert MountNotes(disk).read() == {}
    MountNotes(disk).write({URL: ["3-4", "1-2"]})
    assert MountNotes(disk).read() == SEGMENTS
    MountNotes(disk).write({URL: []})
    assert MountNotes(disk).read() == {URL: ()}


def test_a_note_that_says_nothing_new_is_not_written() -> None:
    disk = SimulatedDisk()
    MountNotes(disk).write(SEGMENTS)
    before = disk.bytes_written
    notes = MountNotes(disk)
    notes.read()
    notes.write(SEGMENTS)
    assert disk.bytes_written == before


def test_a_power_cut_leaves_the_note_before_or_the_new_one() -> None:
    newer = {URL: ("5-6",)}
    whole = SimulatedDisk()
    MountNotes(whole).write(SEGMENTS)
    first = len(whole.operations)
    MountNotes(whole).write(newer)
    for number in range(first, len(whole.operations)):
        name = f"{whole.operations[number].kind} of the note of segments: power cut after it"
        with case(FaultClass.POWER_CUT, name):
            disk = SimulatedDisk(seed=number)
            MountNotes(disk).write(SEGMENTS)
            disk.crash_after = number
            with pytest.raises(SimulatedCrash):
                MountNotes(disk).write(newer)
            disk.crash()
            assert MountNotes(disk).read() in (SEGMENTS, newer), f"seed {number}"
            MountNotes(disk).write({})
            assert MountNotes(disk).read() == {}, "what the cut left is in nobody's way"


@pytest.mark.parametrize(
    "damage",
    [
        lambda note: note[: len(note) // 2],
        lambda note: note.replace(b"1-2", b"1-3"),
        lambda note: note.replace(URL.encode(), b"http://127.0.0.1:8089"),
        lambda note: note.replace(b'"version": 1', b'"version": 2'),
        lambda note: note.replace(b"1-2", b"\xff-2"),
        lambda note: json.dumps({"version": 1, "segments": {"u": ["x"]}, "checksum": ""}).encode(),
        lambda note: b"[" * 100_000,
        lambda note: b"\0" * (2 << 20),
        lambda note: b"",
    ],
)
def test_a_damaged_note_is_passed_over(damage: Callable[[bytes], bytes]) -> None:
    disk = SimulatedDisk()
    MountNotes(disk).write(SEGMENTS)
    disk.replace_contents(NOTES_FILE, damage(disk.contents(NOTES_FILE)))
    notes = MountNotes(disk)
    assert notes.read() == {}
    notes.write(SEGMENTS)
    assert MountNotes(disk).read() == SEGMENTS


def test_what_is_listed_for_too_long_is_somebody_elses() -> None:
    now = 100.0
    notes = MountNotes(SimulatedDisk(), lambda: now)
    notes.wait_for({"1-2", "3-4"})
    now += NOTED_SECONDS_MAX - 1
    assert notes.outlived(listed("1-2", "7-8")) == frozenset()
    now += 1
    assert notes.outlived(listed("1-2", "7-8")) == {"1-2"}
    assert notes.outlived(listed("1-2")) == frozenset(), "that is told once"


def test_nothing_is_somebody_elses_where_nothing_was_noted() -> None:
    now = 0.0
    notes = MountNotes(SimulatedDisk(), lambda: now)
    now += 2 * NOTED_SECONDS_MAX
    assert notes.outlived(listed("1-2")) == frozenset()
