"""Growth of the data area: nothing is handed out without memory behind it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest
from store_kit import shared_memory_path

from snapd.errors import SegmentError
from snapd.segment import DataGrowth, Segment, growth, open_segment


@pytest.fixture
def segment(monkeypatch: pytest.MonkeyPatch) -> Iterator[Segment]:
    monkeypatch.setattr(growth, "CHUNK_BYTES", 1 << 20)
    with shared_memory_path() as path:
        made = open_segment(path, 4 << 20, 64)
        yield made
        made.close()


class WithoutMemory:
    """A segment whose file takes no more memory: every allocation on this descriptor fails."""

    def __init__(self, segment: Segment) -> None:
        self.path = segment.path
        self.geometry = segment.geometry
        self.mapping = segment.mapping
        self.data_allocated_bytes = 1 << 20
        self.descriptor = os.open("/dev/full", os.O_RDWR)


def test_memory_is_there_when_growth_says_so(segment: Segment) -> None:
    grown = DataGrowth(segment, lambda error: None)
    assert grown.allocated_units == 0
    grown.start()
    grown.wait_for(300)
    assert grown.allocated_units >= 300
    grown.wait_for(10_000)
    assert grown.allocated_units == 1024
    assert segment.data_allocated_bytes == 4 << 20
    assert os.stat(segment.path).st_blocks * 512 >= segment.geometry.file_bytes


def test_growth_goes_on_where_a_killed_store_stopped(segment: Segment) -> None:
    segment.note_allocated(2 << 20)
    path, geometry = segment.path, segment.geometry
    segment.close()
    again = open_segment(path, 4 << 20, 64)
    assert again.geometry == geometry
    grown = DataGrowth(again, lambda error: None)
    assert grown.allocated_units == 512
    grown.start()
    grown.wait_for(1024)
    grown.stop()
    again.close()


def test_no_memory_left_is_told_to_everybody_who_waits(segment: Segment) -> None:
    failures: list[SegmentError] = []
    failed = threading.Event()

    def on_failure(error: SegmentError) -> None:
        failures.append(error)
        failed.set()

    without = WithoutMemory(segment)
    grown = DataGrowth(without, on_failure)  # type: ignore[arg-type]
    grown.start()
    with pytest.raises(SegmentError, match="MOONCAKE_GLOBAL_SEGMENT_SIZE"):
        grown.wait_for(1024)
    assert failed.wait(5)
    assert len(failures) == 1
    assert grown.allocated_units == 256
    with pytest.raises(SegmentError):
        grown.check()
    os.close(without.descriptor)
