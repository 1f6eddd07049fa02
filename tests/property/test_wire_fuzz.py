"""The wire under arbitrary bytes: a typed message or ProtocolError, whatever comes."""

import contextlib
from collections.abc import Callable
from typing import Any, get_args, get_type_hints

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapd.blocks import KEY_BYTES_MAX, KeyColumn
from snapd.errors import ProtocolError
from snapd.wire.framing import Frame, FrameDecoder, encode_frame
from snapd.wire.messages import (
    KeyBatch,
    Message,
    Reply,
    Request,
    decode_keys,
    decode_reply,
    decode_request,
    encode_keys,
    encode_message,
)
from snapd.wire.puts import PutReply, PutRequest, decode_put_reply, decode_put_request

FIELDS: dict[Any, st.SearchStrategy[Any]] = {
    int: st.integers(-(2**63), 2**64 - 1),
    bool: st.booleans(),
    float: st.floats(allow_nan=False),
    str: st.text(max_size=20),
    bytes: st.binary(max_size=40),
    list[str]: st.lists(st.text(max_size=20), max_size=5),
    KeyBatch: st.builds(KeyBatch, st.binary(max_size=40), st.binary(max_size=12)),
}


def messages_of(kind: type[Message]) -> st.SearchStrategy[Message]:
    hints = get_type_hints(kind)
    names = [field.name for field in msgspec.structs.fields(kind)]
    return st.builds(kind, **{name: FIELDS[hints[name]] for name in names})


REQUESTS, REPLIES = get_args(Request), get_args(Reply)
PUT_REQUESTS, PUT_REPLIES = get_args(PutRequest), get_args(PutReply)
DECODED = [
    *((kind, decode_request) for kind in REQUESTS),
    *((kind, decode_reply) for kind in REPLIES),
    *((kind, decode_put_request) for kind in PUT_REQUESTS),
    *((kind, decode_put_reply) for kind in PUT_REPLIES),
]
"""Each message, and who decodes it."""
frames_lists = st.lists(
    st.builds(Frame, st.integers(0, 2**32 - 1), st.binary(max_size=50)), max_size=8
)


def test_every_message_has_its_own_tag() -> None:
    kinds = {*REQUESTS, *REPLIES, *PUT_REQUESTS, *PUT_REPLIES}
    assert len({kind.__struct_config__.tag for kind in kinds}) == len(kinds)
    subclasses = {kind for kind in Message.__subclasses__() if kind is not KeyBatch}
    assert subclasses == kinds, "a message that no decoder knows"


@pytest.mark.parametrize(
    ("kind", "decode"), DECODED, ids=lambda one: one.__name__.removeprefix("decode_")
)
@given(data=st.data())
def test_a_message_comes_back_as_it_was(
    kind: type[Message], decode: Callable[[bytes], Message], data: st.DataObject
) -> None:
    message = data.draw(messages_of(kind))
    assert decode(encode_message(message)) == message


@given(st.binary(max_size=300))
def test_arbitrary_payloads_are_messages_or_protocol_errors(payload: bytes) -> None:
    for decode in {decode for _, decode in DECODED}:
        with contextlib.suppress(ProtocolError):
            assert isinstance(decode(payload), Message)


@given(st.sampled_from(DECODED), st.data())
def test_damaged_messages_are_messages_or_protocol_errors(
    decoded: tuple[type[Message], Callable[[bytes], Message]], data: st.DataObject
) -> None:
    kind, decode = decoded
    raw = bytearray(encode_message(data.draw(messages_of(kind))))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(raw)))
    with contextlib.suppress(ProtocolError):
        assert isinstance(decode(bytes(raw[:cut])), Message)


@given(frames_lists, st.lists(st.integers(0, 600), max_size=12))
def test_frames_do_not_depend_on_how_the_stream_is_cut(
    frames: list[Frame], cuts: list[int]
) -> None:
    raw = b"".join(encode_frame(frame.request_id, frame.payload) for frame in frames)
    edges = sorted({0, len(raw), *(cut for cut in cuts if cut < len(raw))})
    decoder = FrameDecoder()
    received = []
    for start, end in zip(edges[:-1], edges[1:], strict=True):
        received += decoder.receive_data(raw[start:end])
    assert received == frames


@given(frames_lists, st.binary(max_size=100), st.integers(1, 40))
def test_garbage_never_becomes_more_than_the_frames_before_it(
    frames: list[Frame], garbage: bytes, step: int
) -> None:
    raw = b"".join(encode_frame(frame.request_id, frame.payload) for frame in frames)
    stream = raw + b"\x00" + garbage  # no frame begins with a zero byte
    decoder = FrameDecoder()
    received = []
    with contextlib.suppress(ProtocolError):
        for start in range(0, len(stream), step):
            received += decoder.receive_data(stream[start : start + step])
    assert received == frames[: len(received)]


@given(st.lists(st.binary(min_size=1, max_size=KEY_BYTES_MAX), max_size=20))
def test_keys_come_back_as_they_were(keys: list[bytes]) -> None:
    assert decode_keys(encode_keys(KeyColumn.from_list(keys))).to_list() == keys


@given(st.binary(max_size=200), st.binary(max_size=40))
def test_arbitrary_key_batches_are_keys_or_protocol_errors(heap: bytes, lengths: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        keys = decode_keys(KeyBatch(heap, lengths)).to_list()
        assert b"".join(keys) == heap
        assert all(1 <= len(key) <= KEY_BYTES_MAX for key in keys)
