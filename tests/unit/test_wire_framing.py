"""Frames from bytes that come in any pieces, that lie about their length, or are no frames."""

import struct

import pytest

from snapd.errors import ProtocolError
from snapd.wire.framing import FRAME_BYTES_MAX, FRAME_MAGIC, Frame, FrameDecoder, encode_frame


def header(magic: int, request_id: int, length: int) -> bytes:
    return struct.pack("<IIQ", magic, request_id, length)


def test_the_header_is_16_bytes_little_endian_and_starts_with_the_name() -> None:
    assert encode_frame(0x01020304, b"xyz") == b"SND1\x04\x03\x02\x01\x03" + b"\0" * 7 + b"xyz"


def test_a_frame_that_comes_byte_by_byte_is_given_when_its_last_byte_is_there() -> None:
    decoder = FrameDecoder()
    raw = encode_frame(7, b"payload")
    for place in range(len(raw) - 1):
        assert decoder.receive_data(raw[place : place + 1]) == []
    assert decoder.receive_data(raw[-1:]) == [Frame(7, b"payload")]


def test_frames_that_come_together_are_given_together_and_in_order() -> None:
    frames = [Frame(n, b"x" * n) for n in range(20)]
    raw = b"".join(encode_frame(frame.request_id, frame.payload) for frame in frames)
    assert FrameDecoder().receive_data(raw) == frames


@pytest.mark.parametrize("length", [FRAME_BYTES_MAX + 1, 2**63, 2**64 - 1])
def test_a_huge_length_is_refused_before_its_bytes_are_waited_for(length: int) -> None:
    with pytest.raises(ProtocolError, match=str(length)):
        FrameDecoder().receive_data(header(FRAME_MAGIC, 1, length))


def test_the_longest_frame_passes_and_one_byte_more_does_not() -> None:
    decoder = FrameDecoder(bytes_max=100)
    assert decoder.receive_data(encode_frame(1, b"x" * 100)) == [Frame(1, b"x" * 100)]
    with pytest.raises(ProtocolError):
        decoder.receive_data(encode_frame(1, b"x" * 101))


def test_a_message_over_the_limit_is_not_sent() -> None:
    with pytest.raises(ProtocolError, match="fewer keys"):
        encode_frame(1, bytes(FRAME_BYTES_MAX + 1))


@pytest.mark.parametrize("magic", [0, FRAME_MAGIC ^ 1, 0x20544547])  # the last is "GET "
def test_what_is_not_a_frame_is_refused(magic: int) -> None:
    with pytest.raises(ProtocolError, match="starts with"):
        FrameDecoder().receive_data(header(magic, 0, 0))


def test_garbage_after_a_good_frame_is_refused() -> None:
    with pytest.raises(ProtocolError):
        FrameDecoder().receive_data(encode_frame(1, b"good") + b"HTTP/1.1 200 OK\r\n")


def test_a_partial_header_alone_is_neither_a_frame_nor_an_error() -> None:
    assert FrameDecoder().receive_data(b"\xff" * 15) == []
