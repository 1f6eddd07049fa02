"""`KeyColumn`: a column of keys as one heap of bytes and one array of offsets.

A million keys as Python objects cost over 100 MB and a second to make; as a column they cost their
own bytes plus 8 a key, and every operation here is vectorised. Only `from_list`, `to_list` and
`hash_keys` touch single keys, and they are for the edges (a client's batch, an operator's screen).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import xxhash

KEY_BYTES_MAX = 1024
"""Longest key accepted, in bytes of UTF-8."""

_GATHER_ROWS = 65536
"""Rows gathered at a time, which bounds what is copied beside the result."""

_WIDTHS_MAX = 32
"""Different lengths in one gather up to which each is gathered by itself."""

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]


def hash_keys(keys: Iterable[bytes]) -> U64:
    """XXH3-64 of each key, uint64 [n]. An index into tables, never a proof of equality."""
    digest = xxhash.xxh3_64_intdigest
    return np.fromiter((digest(key) for key in keys), dtype=np.uint64)


class KeyColumn:
    """n keys: `heap` uint8 [total bytes], `offsets` int64 [n + 1], both read-only by convention."""

    __slots__ = ("heap", "offsets")

    def __init__(self, heap: U8, offsets: I64) -> None:
        self.heap = heap
        self.offsets = offsets

    @classmethod
    def empty(cls) -> KeyColumn:
        """A column of no keys."""
        return cls(np.empty(0, np.uint8), np.zeros(1, np.int64))

    @classmethod
    def from_list(cls, keys: Sequence[bytes]) -> KeyColumn:
        """A column of these keys, in order."""
        lengths = np.fromiter((len(key) for key in keys), dtype=np.int64, count=len(keys))
        return cls.from_lengths(np.frombuffer(b"".join(keys), np.uint8), lengths)

    @classmethod
    def from_lengths(cls, heap: U8, lengths: npt.NDArray[np.integer]) -> KeyColumn:
        """A column over `heap`, whose keys follow each other with these lengths.

        Raises ValueError if the lengths do not add up to the heap.
        """
        offsets = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        if int(offsets[-1]) != len(heap) or (len(lengths) and int(np.min(lengths)) < 0):
            raise ValueError(f"key lengths add up to {int(offsets[-1])}, heap has {len(heap)}")
        return cls(heap, offsets)

    @classmethod
    def concatenate(cls, columns: Sequence[KeyColumn]) -> KeyColumn:
        """One column with the rows of all of them, in order."""
        if not columns:
            return cls.empty()
        heap = np.concatenate([c.heap[c.offsets[0] : c.offsets[-1]] for c in columns])
        return cls.from_lengths(heap, np.concatenate([c.lengths for c in columns]))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> bytes:
        return self.heap[self.offsets[row] : self.offsets[row + 1]].tobytes()

    @property
    def lengths(self) -> I64:
        """Length of each key in bytes, int64 [n]."""
        return np.diff(self.offsets)

    @property
    def nbytes(self) -> int:
        """Bytes of memory held by the column."""
        return self.heap.nbytes + self.offsets.nbytes

    def to_list(self) -> list[bytes]:
        """The keys as Python objects; for small columns only."""
        raw, ends = self.heap.tobytes(), self.offsets.tolist()
        return [raw[a:b] for a, b in zip(ends[:-1], ends[1:], strict=True)]

    def hashes(self) -> U64:
        """XXH3-64 of each key, uint64 [n]; one call a key, so keep the result."""
        view, ends = np.ascontiguousarray(self.heap).data, self.offsets.tolist()
        digest = xxhash.xxh3_64_intdigest
        pairs = zip(ends[:-1], ends[1:], strict=True)
        return np.fromiter((digest(view[a:b]) for a, b in pairs), np.uint64, count=len(self))

    def take(self, rows: npt.NDArray[np.integer] | Bools) -> KeyColumn:
        """The keys of `rows` (indices, or a mask of n), in that order."""
        index = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows.astype(np.int64)
        lengths = self.lengths[index]
        out = np.empty(int(lengths.sum()), np.uint8)
        starts, done = self.offsets[:-1][index], 0
        for first in range(0, len(index), _GATHER_ROWS):
            part = slice(first, first + _GATHER_ROWS)
            chunk = gather_ranges(self.heap, starts[part], lengths[part])
            out[done : done + len(chunk)] = chunk
            done += len(chunk)
        return KeyColumn.from_lengths(out, lengths)

    def equal(self, rows: I64, other: KeyColumn, other_rows: I64) -> Bools:
        """Whether key `rows[i]` here is key `other_rows[i]` there, bool [m], on the full bytes."""
        return equal_ranges(
            (self.heap, self.offsets[:-1][rows], self.lengths_of(rows)),
            (other.heap, other.offsets[:-1][other_rows], other.lengths_of(other_rows)),
        )

    def lengths_of(self, rows: I64) -> I64:
        """Lengths of the keys at `rows`, int64 [m]."""
        return self.offsets[1:][rows] - self.offsets[:-1][rows]

    def starts_with(self, prefix: bytes) -> Bools:
        """Which keys begin with `prefix`, bool [n]."""
        long_enough = np.flatnonzero(self.lengths >= len(prefix))
        result: Bools = np.zeros(len(self), np.bool_)
        pattern = np.frombuffer(prefix, np.uint8)
        for first in range(0, len(long_enough), _GATHER_ROWS):
            rows = long_enough[first : first + _GATHER_ROWS]
            window = self.offsets[:-1][rows][:, None] + np.arange(len(prefix))
            result[rows] = (self.heap[window] == pattern).all(axis=1)
        return result


Ranges = tuple[U8, I64, I64]
"""A heap uint8, with the starts and the lengths (int64 [m]) of m ranges of it."""


def gather_ranges(heap: U8, starts: I64, lengths: I64) -> U8:
    """The bytes of m ranges of `heap`, one after another, uint8 [sum of lengths].

    Raises IndexError if a range reaches out of the heap.
    """
    if len(lengths) == 0:
        return np.empty(0, np.uint8)
    width = int(lengths[0])
    if bool((lengths == width).all()):
        fixed: U8 = _windows(heap, width)[starts].reshape(-1)
        return fixed
    ends = np.cumsum(lengths)
    targets = ends - lengths
    widths = np.unique(lengths)
    if len(widths) > _WIDTHS_MAX:
        mixed: U8 = heap[np.repeat(starts - targets, lengths) + np.arange(int(ends[-1]))]
        return mixed
    out = np.empty(int(ends[-1]), np.uint8)
    for each in widths.tolist():
        rows = np.flatnonzero(lengths == each)
        _windows(out, each)[targets[rows]] = _windows(heap, each)[starts[rows]]
    return out


def _windows(heap: U8, width: int) -> U8:
    """Row i is the `width` bytes from byte i on, uint8 [bytes - width + 1, width]; no copy.

    Rows are gathered as runs of bytes, sixteen times as fast as by an index for each byte, and an
    index is checked against the rows, so no gather leaves the heap.
    """
    shape = (max(0, len(heap) - width + 1), width)
    step = heap.strides[0]
    rows: U8 = np.lib.stride_tricks.as_strided(heap, shape, (step, step))
    return rows


def equal_ranges(left: Ranges, right: Ranges) -> Bools:
    """Whether range i of `left` has the bytes of range i of `right`, bool [m]."""
    (left_heap, left_starts, left_lengths) = left
    (right_heap, right_starts, right_lengths) = right
    result: Bools = left_lengths == right_lengths
    rows = np.flatnonzero(result)
    for first in range(0, len(rows), _GATHER_ROWS):
        part = rows[first : first + _GATHER_ROWS]
        lengths = left_lengths[part]
        same = gather_ranges(left_heap, left_starts[part], lengths) == gather_ranges(
            right_heap, right_starts[part], lengths
        )
        result[part] = _all_in_runs(same, lengths)
    return result


def _all_in_runs(flags: Bools, lengths: I64) -> Bools:
    """For consecutive runs of `flags` with these lengths, whether each is true throughout."""
    ends = np.cumsum(lengths)
    totals = np.concatenate([np.zeros(1, np.int64), np.cumsum(~flags)])
    clean: Bools = totals[ends] == totals[ends - lengths]
    return clean
