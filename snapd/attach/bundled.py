"""The bundled store's adapter: zero copy, over the mapped segment and the store's socket.

What a block is comes from the mapped slot table and needs no answer from the store, so a flush
works while the store is dead as well. Nothing read here has an effect on eviction: no lease is
taken, and the store does not even notice.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from snapd.attach.labels import LabelIds
from snapd.attach.port import I32, Changes, Fill, Registered, Scan
from snapd.blocks import KEY_BYTES_MAX, BlockTable, KeyColumn
from snapd.blocks.keys import I64, U64, Bools
from snapd.blocks.labels import LABEL_LENGTH_MAX, label_numbers
from snapd.blocks.table import F32, U32
from snapd.config import event
from snapd.errors import CorruptError, ProtocolError, SnapdError, StoreUnavailableError
from snapd.formats.segment import (
    DATA_UNIT_BYTES,
    HEADER_BYTES,
    HeaderState,
    SlotState,
    data_units,
    decode_state,
    in_bounds,
)
from snapd.plans import heat_from_reads, windows
from snapd.segment.view import SegmentView
from snapd.wire.codes import ReturnCode
from snapd.wire.connection import Connection
from snapd.wire.messages import (
    BATCH_KEYS_MAX,
    Codes,
    ColdReady,
    Count,
    DropCold,
    Events,
    EventsWait,
    FillEnd,
    FillStart,
    KeyBatch,
    Labels,
    LabelsOf,
    LoadWait,
    MarkDurable,
    Message,
    PinBlocks,
    RegisterCold,
    Remove,
    RemoveAll,
    ReportCorrupt,
    Reserved,
    UnpinBlocks,
    Wanted,
    decode_column,
    encode_keys,
)

_LOG = logging.getLogger(__name__)

_DESCRIBE_ROWS = 65_536
"""Slots described at a time, which bounds the copies that a description makes."""

_MESSAGE_BYTES = 8 * 2**20
"""Bytes of keys in one message, half of the longest frame."""

_REMOVE_KEYS_MAX = 8192
"""Keys that are removed in one message, so that the store answers others in between."""

_ANSWER_SECONDS = 10.0
"""Deadline of one answer of the store."""

_COURTESY_SECONDS = 2.0
"""Deadline of an answer that work goes on without: a store that hangs must not hold up a flush."""


class BundledSource:
    """A `Source` over a mapped segment; `connection` may have broken, or be None."""

    def __init__(self, view: SegmentView, connection: Connection | None, labels: LabelIds) -> None:
        self._view = view
        self._connection = connection
        self._labels = labels

    def refresh(self) -> None:
        """The slot table is always up to date."""

    def scan(self) -> Scan:
        """Straight from the slot table: two columns, no record is checked yet (see `describe`)."""
        slots = self._view.slots
        before = header_state(self._view)
        state = slots["state"].copy()
        cold = state == SlotState.COLD
        listed = (cold | (state == SlotState.PUBLISHED)) & (slots["epoch"] >= before.epoch)
        sequence = np.where(listed, slots["sequence"], np.uint64(0))
        same_life = header_state(self._view).boot_id == before.boot_id
        return Scan(sequence, cold & listed, before.boot_id if same_life else b"")

    def describe(self, slots: I64) -> BlockTable:
        """Whole records whose key has their hash; the others are left for the next look."""
        parts = [self._describe(rows) for rows in _pieces(slots, _DESCRIBE_ROWS)]
        return BlockTable.concatenate(parts)

    def heat(self, slots: I64) -> F32:
        """From the store's counts of reads, decayed to now."""
        rows = self._view.heat[slots]
        age = time.time() - rows["last_access"].astype(np.float64)
        reads = np.nan_to_num(np.clip(rows["access_count"], 0, 1e9))
        return heat_from_reads(reads, age)

    @contextmanager
    def pinned(self, table: BlockTable) -> Iterator[Bools]:
        """One message a batch; False for all where the store does not answer."""
        held = self._tell(table, PinBlocks)
        try:
            yield held
        finally:
            self._tell(table, UnpinBlocks)

    def buffers(self, table: BlockTable) -> Sequence[memoryview]:
        """Read-only views of the mapping."""
        return [view.toreadonly() for view in _extents(self._view, table.offset, table.size)]

    def still(self, table: BlockTable) -> Bools:
        """Compare whole records with the table, and their epochs with the segment's."""
        slots, whole = self._view.read_slots(table.slot.astype(np.int64))
        same: Bools = (
            whole
            & (slots["sequence"] == table.slot_sequence)
            & (slots["state"] == SlotState.PUBLISHED)
            & (slots["epoch"] >= header_state(self._view).epoch)
        )
        return same

    def report_corrupt(self, table: BlockTable) -> None:
        """The store checks for itself, and drops what is bad."""
        self._tell(table, ReportCorrupt)

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._connection is not None:
            self._connection.close()

    def _tell(
        self, table: BlockTable, message: type[PinBlocks | UnpinBlocks | ReportCorrupt]
    ) -> Bools:
        """Send slots and sequences; which the store agreed to, bool [n].

        A store that does not answer agrees to nothing. That is not unsafe: `still` and the checksum
        decide about what was read, and whoever watches the store notices by himself that it is
        away.
        """
        agreed = np.zeros(len(table), np.bool_)
        if self._connection is None or self._connection.closed:
            return agreed
        try:
            for rows in _pieces(np.arange(len(table)), BATCH_KEYS_MAX):
                request = message(table.slot[rows].tobytes(), table.slot_sequence[rows].tobytes())
                codes = _codes(self._connection, request, len(rows), _COURTESY_SECONDS)
                agreed[rows] = codes == ReturnCode.OK
        except SnapdError:
            agreed[:] = False
        return agreed

    def _texts_of(self, numbers: list[int]) -> list[str]:
        """An `AskStore`."""
        if self._connection is None or self._connection.closed:
            raise StoreUnavailableError("the store is away")
        request = LabelsOf(np.array(numbers, np.uint64).tobytes())
        texts = self._connection.call(request, Labels, _COURTESY_SECONDS).texts
        if len(texts) != len(numbers) or max(map(len, texts), default=0) > LABEL_LENGTH_MAX:
            raise ProtocolError("the store's labels are not those that were asked for")
        return texts

    def _describe(self, rows: I64) -> BlockTable:
        slots, keys, good = self._view.read_blocks(rows)
        good &= (slots["state"] == SlotState.PUBLISHED) | (slots["state"] == SlotState.COLD)
        good &= in_bounds(slots, self._view.geometry)
        good &= slots["epoch"] >= header_state(self._view).epoch
        if not good.all():
            rows, slots, keys = rows[good], slots[good], keys.take(good)
        extents = slots["extent"].astype(np.uint64) * np.uint64(DATA_UNIT_BYTES)
        return BlockTable.for_keys(keys, slots["key_hash"].copy()).with_columns(
            epoch=slots["epoch"],
            sequence=slots["sequence"],
            size=slots["size"],
            stored_size=slots["size"],
            checksum=slots["checksum"],
            fingerprint=self._labels.of(keys, self._texts_of),
            group=slots["group"],
            pin=slots["pin"],
            parent=self._view.heat["parent"][rows],
            heat=self.heat(rows),
            slot=rows,
            slot_sequence=slots["sequence"],
            offset=extents + np.uint64(self._view.geometry.data_offset),
        )


class BundledFeed:
    """A `Feed` over the store's socket."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def changes(self, ack: int, wait_ms: int) -> Changes:
        """Long poll."""
        reply = self._connection.call(
            EventsWait(ack, wait_ms), Events, wait_ms / 1000 + _ANSWER_SECONDS
        )
        kinds = decode_column(reply.kinds, np.uint8)
        return Changes(
            reply.number,
            kinds,
            decode_event_keys(reply.keys, len(kinds)),
            decode_column(reply.slots, np.uint32, len(kinds)),
            decode_column(reply.sequences, np.uint64, len(kinds)),
            decode_column(reply.epochs, np.uint32, len(kinds)),
        )

    def close(self) -> None:
        """Close."""
        self._connection.close()


class BundledSink:
    """A `Sink` over a mapped segment; the lock of `writer` is held while this object lives."""

    def __init__(
        self, view: SegmentView, connection: Connection, writer: int, *, offloads: bool = False
    ) -> None:
        """Take the writer's lock. `offloads`: once everything is served, blocks that are on disk
        become cold when they are evicted. Raises SegmentError if another process has the lock."""
        self._offloads = offloads
        self._view = view
        self._connection = connection
        self._writer = writer
        self.closed = False
        """Whether `close` was called: nothing is written any more."""
        view.hold_writer(writer)

    def register_cold(self, table: BlockTable) -> Registered:
        """One message for each 65,536 rows, fewer where keys are so long that it would not fit.

        A block with a label that its key does not carry was put into a store of another kind. Here
        unlabelled clients would find it, so it is not registered: INVALID_KEY.
        """
        named = (table.fingerprint == 0) | (label_numbers(table.keys) != 0)
        if not named.all():
            return self._register_named(table, named)
        answers = [self._register(part) for part in _messages(table)]
        return Registered(
            np.concatenate([np.empty(0, np.int32), *(answer.codes for answer in answers)]),
            np.concatenate([np.empty(0, np.uint32), *(answer.slots for answer in answers)]),
            np.concatenate([np.empty(0, np.uint64), *(answer.sequences for answer in answers)]),
        )

    def cold_ready(self) -> None:
        """Announce."""
        self._connection.call(ColdReady(self._offloads), Codes, _ANSWER_SECONDS)

    def wanted(self, wait_ms: int) -> tuple[U32, U64]:
        """Long poll."""
        wanted = self._connection.call(LoadWait(wait_ms), Wanted, wait_ms / 1000 + _ANSWER_SECONDS)
        slots = decode_column(wanted.slots, np.uint32)
        return slots, decode_column(wanted.sequences, np.uint64, len(slots))

    def reserve(self, slots: U32, sequences: U64, sizes: U64, *, demand: bool) -> Fill:
        """Reserve extents of the segment; the buffers are the extents themselves."""
        request = FillStart(slots.tobytes(), sequences.tobytes(), demand)
        reply = self._connection.call(request, Reserved, _ANSWER_SECONDS)
        codes = decode_column(reply.codes, np.int32, len(slots))
        offsets = decode_column(reply.offsets, np.uint64, len(slots))
        given = codes == ReturnCode.OK
        buffers = _extents(self._view, np.where(given, offsets, 0), np.where(given, sizes, 0))
        return Fill(
            slots,
            sequences,
            codes,
            decode_column(reply.slots, np.uint32, len(slots)),
            decode_column(reply.sequences, np.uint64, len(slots)),
            buffers,
        )

    def publish(self, fill: Fill, codes: I32) -> I32:
        """End the fill for every block that got space."""
        result = fill.codes.copy()
        given = np.flatnonzero(fill.codes == ReturnCode.OK)
        if len(given):
            request = FillEnd(
                fill.cold_slots[given].tobytes(),
                fill.cold_sequences[given].tobytes(),
                fill.slots[given].tobytes(),
                fill.sequences[given].tobytes(),
                codes[given].astype(np.int32).tobytes(),
            )
            result[given] = _codes(self._connection, request, len(given))
        return result

    def drop_cold(self, slots: U32, sequences: U64) -> None:
        """In batches of a message's size."""
        for rows in _pieces(np.arange(len(slots)), BATCH_KEYS_MAX):
            request = DropCold(slots[rows].tobytes(), sequences[rows].tobytes())
            _codes(self._connection, request, len(rows))

    def close(self) -> None:
        """Close the connection, and say by the lock that nothing will be written any more."""
        self._connection.close()
        if not self.closed:
            self._view.release_writer(self._writer)
            self.closed = True

    def _register_named(self, table: BlockTable, named: Bools) -> Registered:
        """Register these rows of the table; the others stay on the disk."""
        event(
            _LOG,
            logging.INFO,
            "left blocks on the disk whose keys do not carry their fingerprint",
            blocks=len(table) - int(named.sum()),
        )
        given = self.register_cold(table.take(named))
        codes = np.full(len(table), ReturnCode.INVALID_KEY, np.int32)
        slots, sequences = np.zeros(len(table), np.uint32), np.zeros(len(table), np.uint64)
        codes[named], slots[named], sequences[named] = given.codes, given.slots, given.sequences
        return Registered(codes, slots, sequences)

    def _register(self, table: BlockTable) -> Registered:
        request = RegisterCold(
            keys=encode_keys(table.keys),
            key_hashes=table.key_hash.tobytes(),
            sizes=table.size.tobytes(),
            checksums=table.checksum.tobytes(),
            groups=table.group.tobytes(),
            pins=table.pin.tobytes(),
            heats=table.heat.tobytes(),
        )
        reply = self._connection.call(request, Reserved, _ANSWER_SECONDS)
        rows = len(table)
        return Registered(
            decode_column(reply.codes, np.int32, rows),
            decode_column(reply.slots, np.uint32, rows),
            decode_column(reply.sequences, np.uint64, rows),
        )


class BundledOffload:
    """An `Offload` over the store's socket."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def keep(self, slots: I64, sequences: U64, epoch: int) -> Bools:
        """In batches of a message's size."""
        agreed = np.zeros(len(slots), np.bool_)
        for rows in _pieces(np.arange(len(slots)), BATCH_KEYS_MAX):
            columns = slots[rows].astype(np.uint32).tobytes(), sequences[rows].tobytes()
            request = MarkDurable(*columns, epoch)
            codes = _codes(self._connection, request, len(rows), _COURTESY_SECONDS)
            agreed[rows] = codes == ReturnCode.OK
        return agreed

    def drop(self, slots: I64, sequences: U64) -> None:
        """In batches of a message's size."""
        for rows in _pieces(np.arange(len(slots)), BATCH_KEYS_MAX):
            columns = slots[rows].astype(np.uint32).tobytes(), sequences[rows].tobytes()
            _codes(self._connection, DropCold(*columns), len(rows), _COURTESY_SECONDS)

    def close(self) -> None:
        """Close."""
        self._connection.close()


class BundledRemover:
    """A `Remover` over the store's socket."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def remove(self, keys: KeyColumn) -> int:
        """In batches of a message's size. What is removed and not durable in time, by the store's
        deadline for that, counts as well: whoever promises more journals it himself."""
        removed = 0
        rows, lengths = np.arange(len(keys), dtype=np.int64), keys.lengths.astype(np.uint64)
        for piece in windows(rows, lengths, bytes_max=_MESSAGE_BYTES, blocks_max=_REMOVE_KEYS_MAX):
            request = Remove(encode_keys(keys.take(piece)), force=True)
            codes = _codes(self._connection, request, len(piece))
            removed += int(((codes == ReturnCode.OK) | (codes == ReturnCode.WRITE_FAIL)).sum())
        return removed

    def remove_all(self) -> int:
        """One request."""
        return self._connection.call(RemoveAll(force=True), Count, _ANSWER_SECONDS).value

    def close(self) -> None:
        """Close."""
        self._connection.close()


def header_state(view: SegmentView) -> HeaderState:
    """Epoch and life of the segment. Raises CorruptError when its header stays unreadable.

    The store renews one copy of the state after the other, so one look may fall between two
    renewals and find neither whole; a second look then does not.
    """
    try:
        return decode_state(view.data[:HEADER_BYTES].tobytes())
    except CorruptError:
        return decode_state(view.data[:HEADER_BYTES].tobytes())


def decode_event_keys(batch: KeyBatch, rows: int) -> KeyColumn:
    """Keys of events, of which a remove-all has an empty one. Raises ProtocolError."""
    lengths = decode_column(batch.lengths, np.uint16, rows).astype(np.int64)
    if rows and int(lengths.max()) > KEY_BYTES_MAX:
        raise ProtocolError(f"an event's key is {int(lengths.max())} bytes long")
    try:
        return KeyColumn.from_lengths(np.frombuffer(batch.heap, np.uint8), lengths)
    except ValueError as error:
        raise ProtocolError(str(error)) from error


def _codes(
    connection: Connection, request: Message, rows: int, timeout_seconds: float = _ANSWER_SECONDS
) -> I32:
    reply = connection.call(request, Codes, timeout_seconds)
    return decode_column(reply.codes, np.int32, rows)


def _pieces(rows: I64, count_max: int) -> list[I64]:
    return [rows[at : at + count_max] for at in range(0, len(rows), count_max)]


def _messages(table: BlockTable) -> Iterator[BlockTable]:
    """The table in pieces that fit into one message each."""
    rows = np.arange(len(table), dtype=np.int64)
    lengths = table.keys.lengths.astype(np.uint64)
    for piece in windows(rows, lengths, bytes_max=_MESSAGE_BYTES, blocks_max=BATCH_KEYS_MAX):
        yield table if len(piece) == len(table) else table.take(piece)


def _extents(view: SegmentView, offsets: U64, sizes: U64) -> list[memoryview]:
    """The padded bytes of each extent. Raises ProtocolError for one outside the data area."""
    geometry = view.geometry
    ends = offsets.astype(np.int64) + data_units(sizes) * DATA_UNIT_BYTES
    used = sizes > 0
    if bool((used & ((offsets < geometry.data_offset) | (ends > geometry.file_bytes))).any()):
        raise ProtocolError("an extent lies outside the segment's data area")
    data = view.data
    return [data[a:b] for a, b in zip(offsets.tolist(), ends.tolist(), strict=True)]
