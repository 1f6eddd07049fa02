"""Messages between the store and its clients and daemon, as MessagePack structs.

Each request has one reply, paired by the frame's request id; long polls (`LoadWait`, `EventsWait`)
are requests whose reply comes late. A batch travels as columns: little-endian arrays in `bytes`
fields, so that neither side makes an object for each block. `decode_column` checks their length.

Keys are one heap and uint16 lengths. Slots are uint32, sequences, sizes, offsets and checksums
uint64, codes int32. A slot number with its sequence names one version of one slot: the store
refuses a pair that is no longer true.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from snapd.blocks import KEY_BYTES_MAX, KeyColumn
from snapd.errors import ProtocolError

PROTOCOL_VERSION = 2
"""2: keys carry the tag of their label (`snapd.blocks.labels`)."""

BATCH_KEYS_MAX = 65_536
"""Most keys in one message."""


class Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Base of all messages."""


class KeyBatch(Message, frozen=True):
    """n keys: `heap` holds them one after another, `lengths` is uint16 [n]."""

    heap: bytes
    lengths: bytes


# --- requests of any client -------------------------------------------------------------------


class Hello(Message, frozen=True, tag="hello"):
    """First message of a connection. `role` is "client", "daemon" or "operator" (reads only).

    A client that names a `fingerprint`, its label of up to 1024 characters, puts only keys with the
    tag of it; one that names none, only keys without a tag."""

    protocol: int
    role: str
    name: str
    fingerprint: str = ""


class PutStart(Message, frozen=True, tag="put_start"):
    """Reserve space for blocks. `sizes` uint64 [n]; `upsert` replaces existing keys.

    Reply: `Reserved`, with OBJECT_ALREADY_EXISTS for a key that is there and not upserted.
    """

    keys: KeyBatch
    sizes: bytes
    upsert: bool = False
    pin: int = 0
    soft_pin_ttl_ms: int = 0
    keep_pin: bool = False
    """A block that replaces one with a soft pin takes over the rest of its time."""
    groups: bytes = b""
    """uint32 [n], 0 for none; without it a block has the group of the one that it replaces."""


class PutEnd(Message, frozen=True, tag="put_end"):
    """Publish reserved blocks whose bytes are all in place; `checksums` uint64 [n]. → `Codes`.

    Where a block replaces another one, the reply waits until the old version cannot come back."""

    slots: bytes
    sequences: bytes
    checksums: bytes


class PutRevoke(Message, frozen=True, tag="put_revoke"):
    """Give reserved space back; the sender will not write there again. → `Codes`."""

    slots: bytes
    sequences: bytes


class GetStart(Message, frozen=True, tag="get_start"):
    """Find blocks and take read leases. Cold ones are loaded; those that do not arrive within
    `wait_ms` are misses. → `Located`."""

    keys: KeyBatch
    wait_ms: int


class Query(Message, frozen=True, tag="query"):
    """Sizes of blocks, resident or cold, without lease or load. → `Located` (offsets zero)."""

    keys: KeyBatch


class ListKeys(Message, frozen=True, tag="list_keys"):
    """Keys of blocks, resident or cold, in the slots from `first` on, without lease. → `Listed`."""

    first: int = 0


class Exist(Message, frozen=True, tag="exist"):
    """Which keys are served, resident or cold; takes read leases. → `Codes` of 1 or 0."""

    keys: KeyBatch


class Remove(Message, frozen=True, tag="remove"):
    """Remove keys; with a daemon, durable before the reply, or WRITE_FAIL. → `Codes`."""

    keys: KeyBatch
    force: bool = False


class RemoveAll(Message, frozen=True, tag="remove_all"):
    """Remove every key (leased ones stay unless `force`); durable like `Remove`. → `Count`, or
    `Failure` with WRITE_FAIL."""

    force: bool = False


class ReportCorrupt(Message, frozen=True, tag="report_corrupt"):
    """Blocks whose bytes did not have their checksum when read. The store checks and drops them
    (a cold copy, if there is one, takes their place). → `Codes`."""

    slots: bytes
    sequences: bytes


class Stats(Message, frozen=True, tag="stats"):
    """Counters and gauges. → `StatsReply`."""


# --- requests of the daemon -------------------------------------------------------------------


class Attach(Message, frozen=True, tag="attach"):
    """Become the store's daemon (all connections with the same `daemon_id` are one daemon).

    → `Attached`, or `Failure` if another daemon is attached.
    """

    daemon_id: bytes


class RegisterCold(Message, frozen=True, tag="register_cold"):
    """Blocks that are on disk only. Keys that the store has already (resident, or removed and not
    yet journaled) are refused with OBJECT_ALREADY_EXISTS. → `Reserved` (offsets zero)."""

    keys: KeyBatch
    key_hashes: bytes
    sizes: bytes
    checksums: bytes
    groups: bytes
    """uint32 [n]"""
    pins: bytes
    """uint8 [n]"""
    heats: bytes
    """float32 [n]"""


class ColdReady(Message, frozen=True, tag="cold_ready"):
    """All cold blocks are registered: from now on cold keys are served. With `offload`, durable
    blocks (`MarkDurable`, `RegisterCold`) become cold when they are evicted. → `Codes` (empty)."""

    offload: bool = False


class MarkDurable(Message, frozen=True, tag="mark_durable"):
    """Resident blocks whose bytes are on disk and live. `epoch`: the remove-alls in this segment's
    life that the daemon has made durable; with one too few nothing is marked. → `Codes`."""

    slots: bytes
    sequences: bytes
    epoch: int


class DropCold(Message, frozen=True, tag="drop_cold"):
    """Forget cold blocks that cannot be loaded any more, and of resident ones that they are
    durable. → `Codes`, OBJECT_NOT_FOUND for what is not cold."""

    slots: bytes
    sequences: bytes


class LoadWait(Message, frozen=True, tag="load_wait"):
    """Long poll for cold blocks that somebody waits for. → `Wanted` (empty after `wait_ms`)."""

    wait_ms: int


class FillStart(Message, frozen=True, tag="fill_start"):
    """Reserve space for cold blocks. `demand` may evict; without it the fill stops below the
    eviction watermark with NO_AVAILABLE_HANDLE. → `Reserved`: new slots to write into."""

    slots: bytes
    sequences: bytes
    demand: bool


class FillEnd(Message, frozen=True, tag="fill_end"):
    """Publish filled blocks in place of their cold slots, if those are still cold and unchanged.

    `codes` int32 [n]: 0, the bytes are in place and verified; else give the space back, and with
    INVALID_READ forget the cold block too. → `Codes`: 0 published, OBJECT_NOT_FOUND superseded.
    """

    cold_slots: bytes
    cold_sequences: bytes
    slots: bytes
    sequences: bytes
    codes: bytes


class PinBlocks(Message, frozen=True, tag="pin"):
    """Keep resident blocks in place while they are written to disk, without touching their place
    in the eviction order; ends with `UnpinBlocks` or with the connection. → `Codes`."""

    slots: bytes
    sequences: bytes


class UnpinBlocks(Message, frozen=True, tag="unpin"):
    """End `PinBlocks`. → `Codes`."""

    slots: bytes
    sequences: bytes


class LabelsOf(Message, frozen=True, tag="labels_of"):
    """What clients called the labels of these numbers, uint64 [n], n up to 1024. → `Labels`."""

    numbers: bytes


class EventsWait(Message, frozen=True, tag="events_wait"):
    """Long poll for events; `ack` is the number of the last batch made durable (0 at first).

    Acknowledged removals are answered to those who wait for them. → `Events`.
    """

    ack: int
    wait_ms: int


# --- replies ----------------------------------------------------------------------------------


class HelloReply(Message, frozen=True, tag="hello_reply"):
    """What a connection needs to work on the segment.

    `segment_id` is the incarnation: it lives as long as the segment's sequence counter; `boot_id`
    is one life of the store process. `writer` names this connection: before it writes a byte it
    holds an open-file-description lock on byte `writer_lock_base + writer` of the segment file,
    until it will not write any more.
    """

    segment_path: str
    segment_id: bytes
    boot_id: bytes
    writer: int
    writer_lock_base: int
    lease_ms: int
    version: str
    label_blocks: int = 0
    """Of a client: about how many blocks have its label, at most a second ago."""
    other_blocks: int = 0
    """And how many do not."""


class Attached(Message, frozen=True, tag="attached"):
    """`epoch` counts the remove-alls in this segment's life."""

    epoch: int


class Codes(Message, frozen=True, tag="codes"):
    """int32 [n]."""

    codes: bytes


class Count(Message, frozen=True, tag="count"):
    """One number."""

    value: int


class Reserved(Message, frozen=True, tag="reserved"):
    """codes int32, slots uint32, sequences uint64, offsets uint64 (bytes into the segment file),
    all [n]. Where the code is not 0 the rest is 0."""

    codes: bytes
    slots: bytes
    sequences: bytes
    offsets: bytes


class Located(Message, frozen=True, tag="located"):
    """codes int32, slots uint32; sequences, offsets, sizes and checksums uint64; all [n]."""

    codes: bytes
    slots: bytes
    sequences: bytes
    offsets: bytes
    sizes: bytes
    checksums: bytes


class Listed(Message, frozen=True, tag="listed"):
    """Keys of some slots; `next` is the slot to go on from, 0 at the end. `moved` counts blocks
    that took another slot since the store's start: one that did between two requests may be in
    neither reply. `complete` is false where there may be keys that no slot names, or names yet."""

    keys: KeyBatch
    next: int
    moved: int
    complete: bool


class Wanted(Message, frozen=True, tag="wanted"):
    """Cold slots and sequences that readers wait for."""

    slots: bytes
    sequences: bytes


class Labels(Message, frozen=True, tag="labels"):
    """n labels; "" for one that nobody has said lately."""

    texts: list[str]


class Events(Message, frozen=True, tag="events"):
    """A numbered batch of events, given again until it is acknowledged.

    `kinds` uint8 [n] of `EventKind`; keys [n] (empty for REMOVE_ALL); `slots` uint32 (2^32 - 1 for
    a key that the store did not know) and `sequences` uint64 [n]: for REMOVED the sequence of the
    removal (versions of the key with a lower one are gone), for REMOVE_ALL the sequence it happened
    at, for CORRUPT the version that was dropped; `epochs` uint32 [n].
    """

    number: int
    kinds: bytes
    keys: KeyBatch
    slots: bytes
    sequences: bytes
    epochs: bytes


class EventKind:
    """Values of `Events.kinds`."""

    REMOVED = 1
    REMOVE_ALL = 2
    CORRUPT = 3


class StatsReply(Message, frozen=True, tag="stats_reply"):
    """The store's counters since its start, and its gauges."""

    blocks: int
    cold_blocks: int
    bytes_used: int
    bytes_capacity: int
    slots_used: int
    slots_capacity: int
    hits: int
    misses: int
    puts: int
    evictions: int
    removals: int
    corrupt: int
    loads_waiting: int
    writers_lingering: int
    clients: int
    daemon_attached: bool
    epoch: int
    uptime_seconds: float
    adopted_blocks: int
    dropped_slots: int
    offloaded: int = 0
    """Of the evictions: blocks that stayed readable from disk."""


class Failure(Message, frozen=True, tag="failure"):
    """The request could not be carried out at all."""

    code: int
    message: str


Request = (
    Hello
    | PutStart
    | PutEnd
    | PutRevoke
    | GetStart
    | Query
    | ListKeys
    | Exist
    | Remove
    | RemoveAll
    | ReportCorrupt
    | Stats
    | Attach
    | RegisterCold
    | ColdReady
    | MarkDurable
    | DropCold
    | LoadWait
    | FillStart
    | FillEnd
    | PinBlocks
    | UnpinBlocks
    | LabelsOf
    | EventsWait
)

Reply = (
    HelloReply
    | Attached
    | Codes
    | Count
    | Reserved
    | Located
    | Listed
    | Wanted
    | Labels
    | Events
    | StatsReply
    | Failure
)

_encoder = msgspec.msgpack.Encoder()
_requests: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_replies: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)


def encode_message(message: Message) -> bytes:
    """MessagePack of a request or a reply."""
    return _encoder.encode(message)


def decode_request(payload: bytes) -> Request:
    """A typed request. Raises ProtocolError."""
    try:
        return _requests.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"not a request: {error}") from error


def decode_reply(payload: bytes) -> Reply:
    """A typed reply. Raises ProtocolError."""
    try:
        return _replies.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"not a reply: {error}") from error


Scalar = TypeVar("Scalar", bound=np.generic)


def decode_column(raw: bytes, dtype: type[Scalar], rows: int | None = None) -> npt.NDArray[Scalar]:
    """A read-only array over `raw`; raises ProtocolError unless it holds `rows` whole items."""
    width = np.dtype(dtype).itemsize
    if len(raw) % width or (rows is not None and len(raw) != rows * width):
        raise ProtocolError(f"column of {len(raw)} bytes is not {rows} items of {width}")
    if len(raw) // width > BATCH_KEYS_MAX:
        raise ProtocolError(f"batch of {len(raw) // width} is over {BATCH_KEYS_MAX}")
    return np.frombuffer(raw, dtype)


def encode_keys(keys: KeyColumn) -> KeyBatch:
    """A column of keys as it travels; every key is at most `KEY_BYTES_MAX` long."""
    heap = keys.heap[keys.offsets[0] : keys.offsets[-1]]
    return KeyBatch(heap.tobytes(), keys.lengths.astype(np.uint16).tobytes())


def decode_keys(batch: KeyBatch) -> KeyColumn:
    """A column of keys. Raises ProtocolError on lengths of 0, over the limit or that do not add
    up to the heap."""
    lengths = decode_column(batch.lengths, np.uint16).astype(np.int64)
    if len(lengths) and not 1 <= int(lengths.min()) <= int(lengths.max()) <= KEY_BYTES_MAX:
        raise ProtocolError(f"key lengths must be 1 to {KEY_BYTES_MAX} bytes")
    try:
        return KeyColumn.from_lengths(np.frombuffer(batch.heap, np.uint8), lengths)
    except ValueError as error:
        raise ProtocolError(str(error)) from error
