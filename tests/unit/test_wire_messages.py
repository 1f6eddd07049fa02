"""Messages and columns that a peer got wrong are ProtocolError, and nothing else."""

import msgspec
import numpy as np
import pytest

from snapd.blocks import KEY_BYTES_MAX, KeyColumn
from snapd.errors import ProtocolError
from snapd.wire.messages import (
    BATCH_KEYS_MAX,
    Codes,
    Exist,
    Hello,
    KeyBatch,
    Stats,
    decode_column,
    decode_keys,
    decode_reply,
    decode_request,
    encode_keys,
    encode_message,
)


def pack(value: object) -> bytes:
    return msgspec.msgpack.encode(value)


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\xc1", id="a byte that MessagePack never uses"),
        pytest.param(pack(None), id="nil"),
        pytest.param(pack({"hello": 1}), id="a map"),
        pytest.param(pack([]), id="an empty array"),
        pytest.param(pack(["no_such_message", 1]), id="an unknown tag"),
        pytest.param(pack([17, 1, "client", "x"]), id="a tag that is a number"),
        pytest.param(pack(["hello", 1]), id="too few fields"),
        pytest.param(pack(["hello", 1, "client", "x", "", 5]), id="too many fields"),
        pytest.param(pack(["hello", "1", "client", "x"]), id="a field of another type"),
        pytest.param(pack(["hello", 2**70 % 2**64, "client", None]), id="a missing value"),
        pytest.param(b"\x94\xa5hello\x01\xa2\xff\xfe\xa1x", id="text that is not UTF-8"),
        pytest.param(pack(["exist", [b"heap"]]), id="half a key batch"),
        pytest.param(b"\xdd\xff\xff\xff\xff", id="an array of four billion items"),
        pytest.param(b"\xc6\xff\xff\xff\xff", id="four billion bytes"),
        pytest.param(b"\x91" * 100_000, id="nested without end"),
        pytest.param(pack(["exist", [b"", b""]]) + b"\x00", id="bytes after the message"),
    ],
)
def test_a_payload_that_is_no_request_is_a_protocol_error(payload: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_request(payload)
    with pytest.raises(ProtocolError):
        decode_reply(payload)


def test_every_proper_prefix_of_a_message_is_refused() -> None:
    raw = encode_message(Hello(1, "client", "name", "fingerprint"))
    for length in range(len(raw)):
        with pytest.raises(ProtocolError):
            decode_request(raw[:length])


def test_a_reply_is_not_taken_for_a_request_nor_the_other_way_round() -> None:
    with pytest.raises(ProtocolError):
        decode_request(encode_message(Codes(b"")))
    with pytest.raises(ProtocolError):
        decode_reply(encode_message(Stats()))


def test_the_default_of_a_new_field_lets_an_older_client_speak() -> None:
    assert decode_request(pack(["hello", 1, "client", "x"])) == Hello(1, "client", "x", "")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.uint64])
def test_a_column_comes_back_as_it_was_and_cannot_be_written(dtype: type[np.generic]) -> None:
    values = np.arange(5).astype(dtype)
    column = decode_column(values.tobytes(), dtype, 5)
    assert column.dtype == dtype
    assert column.tolist() == values.tolist()
    assert not column.flags.writeable


@pytest.mark.parametrize(("length", "rows"), [(7, None), (8, 2), (0, 1), (16, 1), (9, 1)])
def test_a_column_of_the_wrong_length_is_refused(length: int, rows: int | None) -> None:
    with pytest.raises(ProtocolError):
        decode_column(bytes(length), np.uint64, rows)


def test_a_batch_over_the_limit_is_refused() -> None:
    assert len(decode_column(bytes(BATCH_KEYS_MAX), np.uint8)) == BATCH_KEYS_MAX
    with pytest.raises(ProtocolError, match="over"):
        decode_column(bytes(BATCH_KEYS_MAX + 1), np.uint8)


def lengths(*values: int) -> bytes:
    return np.array(values, "<u2").tobytes()


def test_keys_travel_as_heap_and_little_endian_lengths() -> None:
    keys = KeyColumn.from_list([b"a", b"bcd"])
    assert encode_keys(keys) == KeyBatch(b"abcd", b"\x01\x00\x03\x00")
    assert decode_keys(encode_keys(keys)).to_list() == [b"a", b"bcd"]
    assert decode_keys(KeyBatch(b"", b"")).to_list() == []


def test_keys_cut_from_a_larger_column_travel_alone() -> None:
    whole = KeyColumn.from_list([b"one", b"two", b"three"])
    assert encode_keys(KeyColumn(whole.heap, whole.offsets[1:3])).heap == b"two"


def test_a_key_of_the_longest_length_passes() -> None:
    key = b"k" * KEY_BYTES_MAX
    assert decode_keys(KeyBatch(key, lengths(len(key)))).to_list() == [key]


@pytest.mark.parametrize(
    "batch",
    [
        pytest.param(KeyBatch(b"ab", lengths(1)), id="a heap that is too long"),
        pytest.param(KeyBatch(b"ab", lengths(1, 2)), id="a heap that is too short"),
        pytest.param(KeyBatch(b"ab", lengths(0, 2)), id="an empty key"),
        pytest.param(KeyBatch(b"x" * 1025, lengths(1025)), id="a key that is too long"),
        pytest.param(KeyBatch(b"ab", b"\x01"), id="half a length"),
        pytest.param(
            KeyBatch(b"x" * (BATCH_KEYS_MAX + 1), b"\1\0" * (BATCH_KEYS_MAX + 1)), id="many"
        ),
    ],
)
def test_keys_that_do_not_fit_their_lengths_are_refused(batch: KeyBatch) -> None:
    assert decode_request(encode_message(Exist(batch))) == Exist(batch)  # well-formed so far
    with pytest.raises(ProtocolError):
        decode_keys(batch)
