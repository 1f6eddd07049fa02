"""Frames on a Unix socket, without the socket: `FrameDecoder` takes bytes and gives frames.

A frame is a 16-byte header (magic, request id, payload length, all little-endian) and a payload
in MessagePack. The length is checked against `FRAME_BYTES_MAX` before a byte is buffered for it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from snapd.errors import ProtocolError

FRAME_MAGIC = 0x31444E53
"""ASCII "SND1", little-endian: the protocol's name and its framing version."""

FRAME_BYTES_MAX = 16 * 2**20
"""Longest payload accepted, in bytes."""

_HEADER = struct.Struct("<IIQ")


@dataclass(frozen=True, slots=True)
class Frame:
    """One message: `request_id` pairs a reply with its request, `payload` is MessagePack."""

    request_id: int
    payload: bytes


def encode_frame(request_id: int, payload: bytes) -> bytes:
    """The bytes of one frame. Raises ProtocolError if the payload is too long."""
    if len(payload) > FRAME_BYTES_MAX:
        raise ProtocolError(
            f"message of {len(payload)} bytes is over the limit of {FRAME_BYTES_MAX}: "
            "send fewer keys in one batch"
        )
    return _HEADER.pack(FRAME_MAGIC, request_id, len(payload)) + payload


class FrameDecoder:
    """Collects received bytes and cuts them into frames."""

    def __init__(self, bytes_max: int = FRAME_BYTES_MAX) -> None:
        self._buffer = bytearray()
        self._bytes_max = bytes_max

    @property
    def buffered(self) -> int:
        """Bytes of a frame that has begun and is not complete yet."""
        return len(self._buffer)

    def receive_data(self, data: bytes) -> list[Frame]:
        """Take bytes as they came and return the frames they complete.

        Raises ProtocolError on a wrong magic or a length over the limit; the connection must then
        be closed, since the position of the next frame is unknown.
        """
        self._buffer += data
        frames: list[Frame] = []
        start = 0
        while len(self._buffer) - start >= _HEADER.size:
            magic, request_id, length = _HEADER.unpack_from(self._buffer, start)
            if magic != FRAME_MAGIC:
                raise ProtocolError(f"frame starts with {magic:#010x}, not {FRAME_MAGIC:#010x}")
            if length > self._bytes_max:
                raise ProtocolError(f"frame of {length} bytes is over {self._bytes_max}")
            end = start + _HEADER.size + length
            if len(self._buffer) < end:
                break
            frames.append(Frame(request_id, bytes(self._buffer[start + _HEADER.size : end])))
            start = end
        del self._buffer[:start]
        return frames
