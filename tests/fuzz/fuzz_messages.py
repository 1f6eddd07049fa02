"""Frames and messages on the store's socket, from both sides."""

from __future__ import annotations

import random
from typing import Any, get_args

import msgspec
import numpy as np

from snapd.blocks import KEY_BYTES_MAX, KeyColumn
from snapd.errors import ProtocolError
from snapd.wire import messages as m
from snapd.wire.framing import FrameDecoder, encode_frame

_KEYS = m.encode_keys(KeyColumn.from_list([b"key-0", b"a longer key", b"k"]))
_COLUMN = np.arange(3, dtype=np.uint64).tobytes()
_SAMPLES: dict[Any, Any] = {
    bytes: _COLUMN,
    str: "client",
    int: 3,
    float: 1.5,
    bool: True,
    list[str]: ["dtype=bf16", ""],
    m.KeyBatch: _KEYS,
}


def seeds() -> list[bytes]:
    """A frame of each message, and all of them in one stream."""
    frames = [
        encode_frame(number, m.encode_message(_sample(kind)))
        for number, kind in enumerate([*get_args(m.Request), *get_args(m.Reply)])
    ]
    return [*frames, b"".join(frames)]


def _sample(kind: type[m.Message]) -> m.Message:
    fields = msgspec.structs.fields(kind)
    return kind(**{field.name: _SAMPLES[field.type] for field in fields})


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Change a value inside a message and frame it again."""
    frames = FrameDecoder().receive_data(data)
    chosen = rng.randrange(len(frames))
    payloads = [frame.payload for frame in frames]
    tree = msgspec.msgpack.decode(payloads[chosen])
    payloads[chosen] = msgspec.msgpack.encode(_changed(tree, rng))
    return b"".join(
        encode_frame(frame.request_id, payload)
        for frame, payload in zip(frames, payloads, strict=True)
    )


def _changed(value: Any, rng: random.Random) -> Any:
    if isinstance(value, list) and value and rng.random() < 0.85:
        at = rng.randrange(len(value))
        return [*value[:at], _changed(value[at], rng), *value[at + 1 :]]
    if isinstance(value, list):
        return rng.choice([value[:-1], [*value, 0], value + value, [], [[[]]]])
    if isinstance(value, bytes):
        raw = bytearray(value or b"\0")
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        return rng.choice([bytes(raw), value[:-1], value * 2, value * 1000, b"", value[::-1]])
    if isinstance(value, int):
        return rng.choice([0, -1, value + 1, 2**31, 2**32, 2**63, 2**64 - 1, -(2**63), None, "7"])
    if isinstance(value, str):
        return rng.choice(["", value * 1000, "\udcff".encode("utf-8", "surrogatepass"), "put_end"])
    return rng.choice([None, True, float("nan"), {}, b""])


def check(data: bytes) -> None:
    """In one piece or in two, the same frames; each a typed message that survives a round trip."""
    whole = FrameDecoder()
    try:
        frames = whole.receive_data(data)
    except ProtocolError:
        return
    halves = FrameDecoder()
    middle = len(data) // 2
    assert halves.receive_data(data[:middle]) + halves.receive_data(data[middle:]) == frames
    for frame in frames:
        for decode in (m.decode_request, m.decode_reply):
            try:
                message = decode(frame.payload)
            except ProtocolError:
                continue
            _check_message(message, decode)


def _check_message(message: m.Message, decode: Any) -> None:
    again = m.encode_message(message)
    assert m.encode_message(decode(again)) == again
    for field in msgspec.structs.fields(type(message)):
        value = getattr(message, field.name)
        try:
            if isinstance(value, m.KeyBatch):
                keys = m.decode_keys(value)
                lengths = keys.lengths.tolist()
                assert all(1 <= one <= KEY_BYTES_MAX for one in lengths)
                assert b"".join(keys.to_list()) == value.heap
            elif isinstance(value, bytes):
                assert m.decode_column(value, np.uint64).tobytes() == value
        except ProtocolError:
            continue
