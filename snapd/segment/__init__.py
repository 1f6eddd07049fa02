"""The shared-memory segment: one file that holds blocks and outlives the store process."""

from snapd.segment.extents import ExtentAllocator
from snapd.segment.growth import DataGrowth
from snapd.segment.owner import Segment, open_segment
from snapd.segment.view import SegmentView

__all__ = ["DataGrowth", "ExtentAllocator", "Segment", "SegmentView", "open_segment"]
