"""A manifest: one snapshot. Which packs, which of their blocks are live, and how hot those are.

It costs a bit a block and a byte a live block, before compression. Everything else about a block is
in the index of its pack, which the manifest names by digest.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from snapd.blocks.keys import U8, Bools
from snapd.blocks.table import F32
from snapd.errors import CorruptError
from snapd.formats.layout import RecordField, record_dtype
from snapd.formats.sealed import FileTrailer, index_digest
from snapd.formats.sections import Column, Sections, encode_sections
from snapd.formats.tables import (
    Incarnation,
    check_counter,
    fingerprint_columns,
    incarnation_column,
    read_fingerprints,
    read_incarnations,
)


class ManifestSection(IntEnum):
    """Kinds of section in a manifest. A number is never used again for something else."""

    META = 1
    PACKS = 2
    LIVE = 3
    HEAT = 4
    INCARNATIONS = 32
    FINGERPRINTS = 33
    FINGERPRINT_LABELS = 34
    BUDGET = 48


OPTIONAL_SECTIONS = frozenset({ManifestSection.BUDGET})
"""Sections that a reader may pass over without getting anything about a block wrong."""

MANIFEST_META_FIELDS = (
    RecordField("epoch", "<u4", "epoch of the repository; blocks of earlier ones are dead"),
    RecordField("pack_floor", "<u4", "a pack up to this number that is not named here is obsolete"),
    RecordField("pack_last", "<u4", "highest pack number given out so far"),
    RecordField("reserved", "<u4", "zero"),
    RecordField("journal_floor", "<u8", "journal files up to this one are covered by sealed packs"),
    RecordField("blocks", "<u8", "live blocks"),
    RecordField("bytes", "<u8", "their sizes added up"),
    RecordField("committed_ns", "<u8", "nanoseconds since 1970-01-01 UTC; for people, never order"),
)
MANIFEST_META_DTYPE = record_dtype(MANIFEST_META_FIELDS, 48)

PACK_ROW_FIELDS = (
    RecordField("sequence", "<u4", "number of the pack"),
    RecordField("rows", "<u4", "blocks in the pack, live or not: so many bits of LIVE"),
    RecordField("pack_id", "16u1", "file id of the pack"),
    RecordField("index_digest", "16u1", "XXH3-128 of the pack's index"),
)
PACK_ROW_DTYPE = record_dtype(PACK_ROW_FIELDS, 40)

BUDGET_FIELDS = (
    RecordField("write_debt_bytes", "<u8", "written under the daily limit and not made up for yet"),
)
BUDGET_DTYPE = record_dtype(BUDGET_FIELDS, 8)

PACKS_MAX = 1 << 20
ROWS_MAX = 1 << 28
"""Most packs, and blocks in them, that a manifest may name: what a reader makes of it stays small
enough to hold, whatever a forged one claims."""

_HEAT_STEPS_PER_OCTAVE = 8
_HEAT_ZERO_OCTAVE = 16
"""Heat 2^-16 is the smallest that is told from none; 2^15.75 the largest."""


@dataclass(frozen=True, slots=True)
class ManifestPack:
    """One pack of a snapshot."""

    sequence: int
    pack_id: bytes
    index_digest: bytes
    rows: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """One snapshot."""

    epoch: int
    pack_floor: int
    pack_last: int
    journal_floor: int
    committed_ns: int
    bytes: int
    packs: tuple[ManifestPack, ...]
    live: Bools
    """For every row of every pack, in order: whether it is in the snapshot."""
    heat: F32
    """Heat of every live row, in order, float32 [live.sum()]; quantised when encoded."""
    incarnations: tuple[Incarnation, ...]
    fingerprints: dict[int, str]
    write_debt_bytes: int = 0
    """What the daily write budget still owes, see `snapd.plans.budget`; 0 where nobody says."""

    @property
    def blocks(self) -> int:
        """Number of live blocks."""
        return len(self.heat)

    def rows_of_packs(self) -> list[slice]:
        """Where the rows of each pack are in `live`."""
        ends = np.cumsum([0, *(pack.rows for pack in self.packs)])
        return [slice(int(a), int(b)) for a, b in zip(ends[:-1], ends[1:], strict=True)]


def encode_manifest(manifest: Manifest) -> tuple[bytes, int]:
    """The body padded to whole pages, and the length of its sections once decompressed."""
    meta = np.zeros(1, MANIFEST_META_DTYPE)
    for name in ("epoch", "pack_floor", "pack_last", "journal_floor", "blocks", "bytes"):
        meta[name] = getattr(manifest, name)
    meta["committed_ns"] = manifest.committed_ns
    packs = np.zeros(len(manifest.packs), PACK_ROW_DTYPE)
    for row, pack in enumerate(manifest.packs):
        packs[row]["sequence"], packs[row]["rows"] = pack.sequence, pack.rows
        packs[row]["pack_id"] = np.frombuffer(pack.pack_id, np.uint8)
        packs[row]["index_digest"] = np.frombuffer(pack.index_digest, np.uint8)
    fingerprints, labels = fingerprint_columns(manifest.fingerprints)
    columns: dict[int, Column] = {
        ManifestSection.META: meta,
        ManifestSection.PACKS: packs,
        ManifestSection.LIVE: np.packbits(manifest.live),
        ManifestSection.HEAT: quantise_heat(manifest.heat),
        ManifestSection.INCARNATIONS: incarnation_column(manifest.incarnations),
        ManifestSection.FINGERPRINTS: fingerprints,
        ManifestSection.FINGERPRINT_LABELS: labels,
    }
    if manifest.write_debt_bytes:
        budget = np.zeros(1, BUDGET_DTYPE)
        budget["write_debt_bytes"] = manifest.write_debt_bytes
        columns[ManifestSection.BUDGET] = budget
    return encode_sections(columns, OPTIONAL_SECTIONS), sum(
        column.nbytes for column in columns.values()
    )


def decode_manifest(raw: bytes | memoryview, trailer: FileTrailer) -> Manifest:
    """The verified manifest that `trailer` describes. Raises CorruptError or NewerFormatError."""
    if len(raw) != trailer.index_bytes or index_digest(raw) != trailer.index_digest:
        raise CorruptError("manifest does not have its digest")
    sections = Sections(raw, tuple(ManifestSection))
    if sections.raw_bytes != trailer.raw_bytes:
        raise CorruptError("manifest does not have the length that its trailer says")
    meta = sections.column(ManifestSection.META, MANIFEST_META_DTYPE, 1)[0]
    for name in ("epoch", "pack_floor", "pack_last"):
        check_counter(name, int(meta[name]))
    packs = _read_packs(sections, trailer.rows)
    live = _read_live(sections, sum(pack.rows for pack in packs))
    blocks = int(live.sum())
    if blocks != int(meta["blocks"]):
        raise CorruptError(f"manifest has {blocks} live blocks and says {int(meta['blocks'])}")
    return Manifest(
        epoch=int(meta["epoch"]),
        pack_floor=int(meta["pack_floor"]),
        pack_last=int(meta["pack_last"]),
        journal_floor=int(meta["journal_floor"]),
        committed_ns=int(meta["committed_ns"]),
        bytes=int(meta["bytes"]),
        packs=packs,
        live=live,
        heat=restore_heat(sections.column(ManifestSection.HEAT, np.uint8, blocks)),
        incarnations=read_incarnations(sections, ManifestSection.INCARNATIONS),
        fingerprints=read_fingerprints(
            sections, ManifestSection.FINGERPRINTS, ManifestSection.FINGERPRINT_LABELS
        ),
        write_debt_bytes=_read_write_debt(sections),
    )


def quantise_heat(heat: F32) -> U8:
    """Heat on a logarithmic scale of eighths of an octave, uint8 [n]; 0 is none."""
    known = np.nan_to_num(heat, nan=0.0, posinf=3e38, neginf=0.0)
    with np.errstate(divide="ignore"):
        octaves = np.log2(np.maximum(known, 0)) + _HEAT_ZERO_OCTAVE
    steps = np.clip(np.round(octaves * _HEAT_STEPS_PER_OCTAVE) + 1, 0, 255)
    result: U8 = steps.astype(np.uint8)
    return result


def restore_heat(steps: npt.NDArray[np.generic]) -> F32:
    """The heat that `quantise_heat` made these steps of, within 5 %, float32 [n]."""
    octaves = (np.arange(256) - 1) / _HEAT_STEPS_PER_OCTAVE - _HEAT_ZERO_OCTAVE
    scale = np.exp2(octaves).astype(np.float32)
    scale[0] = 0
    result: F32 = scale[steps.astype(np.uint8)]
    return result


def _read_write_debt(sections: Sections) -> int:
    if ManifestSection.BUDGET not in sections:
        return 0
    return int(sections.column(ManifestSection.BUDGET, BUDGET_DTYPE, 1)["write_debt_bytes"][0])


def _read_packs(sections: Sections, rows: int) -> tuple[ManifestPack, ...]:
    if rows > PACKS_MAX:
        raise CorruptError(f"{rows} packs are over {PACKS_MAX}")
    column = sections.column(ManifestSection.PACKS, PACK_ROW_DTYPE, rows)
    if bool((np.diff(column["sequence"].astype(np.int64)) <= 0).any()):
        raise CorruptError("packs of the manifest are not in order")
    return tuple(
        ManifestPack(
            int(one["sequence"]),
            one["pack_id"].tobytes(),
            one["index_digest"].tobytes(),
            int(one["rows"]),
        )
        for one in column
    )


def _read_live(sections: Sections, rows: int) -> Bools:
    if rows > ROWS_MAX:
        raise CorruptError(f"{rows} blocks are over {ROWS_MAX}")
    packed = sections.column(ManifestSection.LIVE, np.uint8, -(-rows // 8))
    return np.unpackbits(packed.astype(np.uint8, copy=False), count=rows).view(np.bool_)
