"""Small tables that packs and manifests both carry: incarnations and fingerprints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from snapd.errors import CorruptError
from snapd.formats.layout import RecordField, record_dtype
from snapd.formats.sections import Column, Sections

FINGERPRINTS_MAX = 1 << 16
FINGERPRINT_BYTES_MAX = 4096
INCARNATIONS_MAX = 1 << 16
COUNTER_MAX = 1 << 30
"""Highest epoch and ordinal that a file may say: a quarter of what their fields hold. Nobody counts
so far, and what is read here can always be counted up from without an overflow."""

INCARNATION_FIELDS = (
    RecordField("ordinal", "<u4", "1, 2, ... in the order in which the repository met them"),
    RecordField("epoch_base", "<u4", "added to the segment's own epoch"),
    RecordField("segment_id", "16u1", "random, of the segment"),
)
INCARNATION_DTYPE = record_dtype(INCARNATION_FIELDS, 24)

FINGERPRINT_FIELDS = (
    RecordField("id", "<u2", "as the blocks name it; 0 is unlabelled and not in the table"),
    RecordField("label_bytes", "<u2", "length of the label, UTF-8, in the section of labels"),
)
FINGERPRINT_DTYPE = record_dtype(FINGERPRINT_FIELDS, 4)


@dataclass(frozen=True, slots=True, order=True)
class Incarnation:
    """What the repository knows of one segment: its place in the order of versions."""

    ordinal: int
    segment_id: bytes
    epoch_base: int


def check_counter(name: str, value: int) -> None:
    """Raises CorruptError when an epoch or an ordinal is over `COUNTER_MAX`."""
    if value > COUNTER_MAX:
        raise CorruptError(f"{name} {value} is over {COUNTER_MAX}: nobody counted so far")


def incarnation_column(incarnations: Sequence[Incarnation]) -> Column:
    """Records of `INCARNATION_DTYPE`, [n]."""
    column = np.zeros(len(incarnations), INCARNATION_DTYPE)
    for row, one in enumerate(incarnations):
        column[row]["ordinal"], column[row]["epoch_base"] = one.ordinal, one.epoch_base
        column[row]["segment_id"] = np.frombuffer(one.segment_id, np.uint8)
    return column


def fingerprint_columns(fingerprints: Mapping[int, str]) -> tuple[Column, Column]:
    """Records of `FINGERPRINT_DTYPE`, [n], and the labels one after another, uint8."""
    column = np.zeros(len(fingerprints), FINGERPRINT_DTYPE)
    labels = [label.encode() for label in fingerprints.values()]
    column["id"] = list(fingerprints)
    column["label_bytes"] = [len(label) for label in labels]
    return column, np.frombuffer(b"".join(labels), np.uint8)


def read_incarnations(sections: Sections, kind: int) -> tuple[Incarnation, ...]:
    """The table of incarnations. Raises CorruptError."""
    rows = sections.items(kind, INCARNATION_DTYPE.itemsize)
    if rows > INCARNATIONS_MAX:
        raise CorruptError(f"{rows} incarnations are over {INCARNATIONS_MAX}")
    column = sections.column(kind, INCARNATION_DTYPE, rows)
    found = tuple(
        Incarnation(int(one["ordinal"]), one["segment_id"].tobytes(), int(one["epoch_base"]))
        for one in column
    )
    if (
        len({one.ordinal for one in found} - {0}) != rows
        or len({one.segment_id for one in found}) != rows
    ):
        raise CorruptError("an incarnation is in the table twice, or has ordinal 0")
    if rows:
        check_counter("incarnation", int(column["ordinal"].max()))
        check_counter("epoch base", int(column["epoch_base"].max()))
    return found


def read_fingerprints(sections: Sections, kind: int, labels_kind: int) -> dict[int, str]:
    """Labels by id. Raises CorruptError."""
    rows = sections.items(kind, FINGERPRINT_DTYPE.itemsize)
    if rows > FINGERPRINTS_MAX:
        raise CorruptError(f"{rows} fingerprints are over {FINGERPRINTS_MAX}")
    column = sections.column(kind, FINGERPRINT_DTYPE, rows)
    label_bytes = int(column["label_bytes"].sum())
    heap = sections.column(labels_kind, np.uint8, label_bytes).tobytes()
    found: dict[int, str] = {}
    start = 0
    try:
        for one in column:
            end = start + int(one["label_bytes"])
            found[int(one["id"])] = heap[start:end].decode()
            start = end
    except UnicodeDecodeError as error:
        raise CorruptError(f"a fingerprint is not UTF-8: {error}") from error
    if len(found) != rows or 0 in found:
        raise CorruptError("a fingerprint id is in the table twice, or is 0")
    return found
